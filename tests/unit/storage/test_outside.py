"""Files from outside: no traceback, no hang, no memory for what a file only says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cqlray.errors import UserError
from cqlray.storage import outside
from cqlray.storage.checkpoint import decode, encode, read_metadata
from cqlray.storage.run_directory import (
    EVALUATIONS,
    EVENTS,
    FITTED_Q,
    METRICS,
    RunDirectory,
    read_json,
)

DEEP = "[" * 100_000 + "]" * 100_000
TERABYTES = 2**42


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEEP, "nested more than 64 levels deep"),
        ("[" * 70 + "]" * 70, "nested more than 64 levels deep"),
        ('{"a": ' * 100_000, "nested more than 64 levels deep"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ("1" * 5000, "not readable JSON"),
        ('{"a": "\\ud800"}', "not readable JSON"),
        (b'{"a": "\xff"}', "not readable JSON"),
        (b"", "not readable JSON"),
        (b"\0" * 20, "not readable JSON"),
        ("{'a': 1}", "not readable JSON"),
    ],
    ids=range(10),
)
def test_json_that_is_refused(text: str | bytes, expected: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{expected}") as caught:
        outside.parse_json(text, "here")
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1


def test_json_that_is_read() -> None:
    """Text as editors on other systems write it, numbers beyond a double, 64 levels."""
    assert outside.parse_json(b'\xef\xbb\xbf{"a": 1e400}', "here") == {"a": float("inf")}
    assert outside.parse_json('{"é": "\\u00e9"}'.encode("utf-16"), "here") == {"é": "é"}
    assert outside.parse_json("[" * 64 + "]" * 64, "here")


def test_a_pipe_a_directory_and_terabytes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "directory").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(TERABYTES)
    for name in ("pipe", "link", "directory"):
        with pytest.raises(UserError, match=f"{name}: cannot be read: not a file"):
            outside.read_file(tmp_path / name)
    with pytest.raises(UserError, match=r"sparse: it takes 4,096.0 GiB of memory"):
        outside.read_file(tmp_path / "sparse")
    with pytest.raises(UserError, match="sparse: more than 100,000,000 bytes"):
        read_json(tmp_path / "sparse")
    (tmp_path / METRICS).symlink_to("sparse")
    with pytest.raises(UserError, match="not lines of text"):
        RunDirectory(tmp_path).rows(METRICS)


def test_rows_that_are_no_rows(tmp_path: Path) -> None:
    """A line that a kill cut off is dropped, other damage is said."""
    whole = '{"a": 1}\n'
    for damaged, expected in (
        (whole + '{"a": [1, 2\n' + whole, None),
        (whole + "[1]\n" + whole, "its value is missing or not as cqlray writes it"),
        (whole + '{"a": ' + DEEP + "}\n", "nested more than 64"),
        (whole + '{"a": 1, "a": 2}\n', "stands twice"),
    ):
        (tmp_path / "x.jsonl").write_text(damaged)
        if expected is None:
            assert RunDirectory(tmp_path).rows("x.jsonl") == [{"a": 1}] * 2
        else:
            with pytest.raises(UserError, match=expected):
                RunDirectory(tmp_path).rows("x.jsonl")


@pytest.mark.parametrize(
    "header",
    [
        DEEP.encode(),
        json.dumps({"__metadata__": {"cqlray": DEEP}}).encode(),
        json.dumps({"__metadata__": {"cqlray": "[]"}}).encode(),
        json.dumps({"__metadata__": {"cqlray": 1}}).encode(),
        b'{"__metadata__": [], "__metadata__": {}}',
        b'{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
    ],
    ids=range(6),
)
def test_headers_of_checkpoints(tmp_path: Path, header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header
    (tmp_path / "c.safetensors").write_bytes(data)
    for read in (lambda: decode(data), lambda: read_metadata(tmp_path / "c.safetensors")):
        with pytest.raises(UserError, match="not a readable cqlray checkpoint"):
            read()


@pytest.mark.parametrize(
    ("file", "row", "place"),
    [
        (METRICS, {"stage": "students", "member": "0", "updates": 1}, "member"),
        (EVALUATIONS, {"policy": "random", "member": None, "updates": None}, "returns"),
        (FITTED_Q, {"member": 0, "updates": True, "fqe_return": None}, "updates"),
        (EVENTS, {"at": 1.0, "event": ["session"]}, "event"),
    ],
)
def test_rows_of_other_types(tmp_path: Path, file: str, row: dict[str, Any], place: str) -> None:
    (tmp_path / file).write_text(json.dumps(row))
    with pytest.raises(UserError, match=rf"{file}: \w+ is missing or not as cqlray writes it"):
        RunDirectory(tmp_path).rows(file)


def test_a_header_that_lies_about_its_length(tmp_path: Path) -> None:
    sound = encode({}, {"updates": 1})
    for length in (0, 1, len(sound), 10**8, 2**63, 2**64 - 1):
        (tmp_path / "c").write_bytes(length.to_bytes(8, "little") + sound[8:])
        with pytest.raises(UserError, match="not a readable cqlray checkpoint"):
            read_metadata(tmp_path / "c")


def test_files_of_macos_beside_snapshots_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "population-0"
    folder.mkdir(parents=True)
    for name in ("000000100", "._000000100", "._", ".000000200", "best", "1e3"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    assert list(RunDirectory(tmp_path).snapshots(0)) == [100]
