"""Which rows a run has, by member and updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqlray.errors import UserError
from cqlray.storage.row_index import RowIndex
from cqlray.storage.run_directory import (
    EVALUATIONS,
    FITTED_Q,
    METRICS,
    RunDirectory,
    snapshot_name,
    write_bytes,
)


def has(index: RowIndex, file: str, member: int, updates: int) -> bool:
    """Whether nothing is missing of the member at that update count."""
    return index.missing(file, [member], [updates]) == []


def metrics(member: int, updates: int) -> dict[str, Any]:
    return {"stage": "students", "member": member, "updates": updates}


def judged(member: int, updates: int) -> dict[str, Any]:
    return {"policy": "student", "member": member, "updates": updates, "returns": [1.0]}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create(tmp_path / "run", {})
    teacher = {"stage": "teacher", "round": 1, "updates": 10, "environment_steps": 10}
    directory.append(METRICS, [teacher, metrics(0, 10)])
    directory.append(
        EVALUATIONS,
        [{"policy": "random", "member": None, "updates": None, "returns": [0.0]}, judged(0, 10)],
    )
    return directory


def test_it_knows_what_the_files_have_and_what_was_added(directory: RunDirectory) -> None:
    index = RowIndex(directory)
    assert has(index, METRICS, 0, 10)
    assert not has(index, METRICS, 1, 10)
    assert not has(index, FITTED_Q, 0, 10)
    index.add(METRICS, [metrics(1, 10)])
    assert has(index, METRICS, 1, 10)


def test_the_teacher_and_the_references_are_no_members(directory: RunDirectory) -> None:
    index = RowIndex(directory)
    assert not has(index, EVALUATIONS, None, None)  # type: ignore[arg-type]
    assert index.missing(METRICS, [0], [10]) == []


def test_what_is_added_before_the_file_is_read_is_kept(directory: RunDirectory) -> None:
    index = RowIndex(directory)
    index.add(EVALUATIONS, [judged(1, 20)])  # not on disk yet: a writer has it
    assert has(index, EVALUATIONS, 1, 20)
    assert has(index, EVALUATIONS, 0, 10)


def test_missing_are_the_update_counts_that_lack_a_member(directory: RunDirectory) -> None:
    directory.append(METRICS, [metrics(1, 10), metrics(0, 20)])
    index = RowIndex(directory)
    assert index.missing(METRICS, [0, 1], [30, 20, 10]) == [20, 30]
    assert index.missing(METRICS, [0], [10, 20]) == []


def test_a_file_is_read_once(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    each_row = RunDirectory.each_row

    def counted(self: RunDirectory, name: str) -> Iterator[dict[str, Any]]:
        read.append(name)
        return each_row(self, name)

    monkeypatch.setattr(RunDirectory, "each_row", counted)
    index = RowIndex(directory)
    for population in range(20):
        index.missing(METRICS, [population], range(0, 100, 10))
    assert read == [METRICS]


def test_snapshots_are_found_by_their_updates(directory: RunDirectory) -> None:
    with pytest.raises(UserError, match="no snapshot of its students yet; go on with: cqlray"):
        directory.last_snapshot(0)
    for updates in (20, 1_000_000_000, 3):
        write_bytes(directory / snapshot_name(0, updates), b"")
    write_bytes(directory / snapshot_name(1, 7), b"")
    assert list(directory.snapshots(0)) == [3, 20, 1_000_000_000]
    updates, file = directory.last_snapshot(0)
    assert (updates, file.stem) == (1_000_000_000, "1000000000")
    assert directory.snapshots(2) == {}
