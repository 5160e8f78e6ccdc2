"""Which members have a row at which update count: what a resumed run still has to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cqlray.storage.run_directory import RunDirectory


class RowIndex:
    """The students' rows of a run's files by member and updates.

    A file is read once, when it is first needed; from then on `add` keeps the index up to date.
    Nobody else may write to the directory meanwhile.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.members: dict[str, dict[int, set[int]]] = {}  # file -> updates -> members
        self.complete: set[str] = set()  # files that were read

    def add(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note rows that are appended to a file, or are about to be."""
        found = self.members.setdefault(file, {})
        for row in rows:
            if is_of_student(row):
                found.setdefault(row["updates"], set()).add(row["member"])

    def missing(self, file: str, members: Sequence[int], updates: Iterable[int]) -> list[int]:
        """The update counts, ascending, at which some of the members lack a row in a file."""
        found = self._of(file)
        return sorted(at for at in updates if not found.get(at, set()).issuperset(members))

    def _of(self, file: str) -> dict[int, set[int]]:
        if file not in self.complete:
            self.add(file, self.directory.each_row(file))
            self.complete.add(file)
        return self.members[file]


def is_of_student(row: Mapping[str, Any]) -> bool:
    """Whether a row is about a member's snapshot, not the teacher or the random policy."""
    return bool(
        row.get("stage", "students") == "students" and row.get("policy", "student") == "student"
    )
