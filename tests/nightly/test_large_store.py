"""Data larger than memory, at a size that takes minutes."""

from __future__ import annotations

from pathlib import Path

from tests.unit.data.test_store import peak_of_sampling


def test_twenty_million_transitions_within_two_gibibytes(tmp_path: Path) -> None:
    assert peak_of_sampling(tmp_path / "columns", 20_000_000, 4000) < 2 * 2**30
    (tmp_path / "columns").unlink()
