"""The data benchmark: what it prints, and that nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cqlray.benchmarks.data import main, text


def test_the_command_prints_what_programs_rely_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--transitions",
        "20500",
        "--observation-dim",
        "3",
        "--action-dim",
        "2",
        "--batch-size",
        "8",
        "--members",
        "2",
    ]
    assert main([*sizes, "--directory", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(value > 0 for value in found.values())
    assert (found["transitions"], found["batch_rows"]) == (20_500, 16)
    assert found["column_bytes"] == (20_500 + 21) * 12 + 20_500 * (8 + 8 + 4 + 1 + 1)
    assert found["parquet_to_columns_of_pyarrow"] == pytest.approx(
        found["parquet_to_columns_bytes_per_s"] / found["pyarrow_bytes_per_s"]
    )
    assert found["file_cold_of_memory"] == pytest.approx(
        found["file_cold_batches_per_s"] / found["memory_batches_per_s"]
    )
    assert not list(tmp_path.iterdir())
    assert "of pyarrow" in text(found)


def test_wrong_arguments_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--members", "0"], "must be positive"),
        (["--directory", str(tmp_path / "no")], "no such directory"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert expected in capsys.readouterr().err
