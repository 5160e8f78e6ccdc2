"""The steps of a log: which episode each row is of, and whether its rows follow one another at one
stride, by a counter or by timestamps.

Where a column of steps is named, rows may stand in any order. A first reading, of which hardly
anything is kept, finds out whether they must be sorted; sorting then takes the log in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.formats import log_values
from cqlray.data.formats.log_columns import LogColumns
from cqlray.errors import UserError

# By how much of the stride a clock may be unsteady.
JITTER = 0.05
_SAMPLE = 1_000_000  # differences that the stride is found from


@dataclass(frozen=True)
class Order:
    """How the rows of a log with a column of steps follow one another."""

    column: str
    stride: float | None = None  # in microseconds where is_time; None: no episode has two rows
    is_time: bool = False
    moved: int = 0  # rows that sorting moves; 0: nothing is to be sorted
    rows: int = 0

    def notes(self) -> list[str]:
        """What was found and is done, a line each."""
        lines = []
        if self.stride is not None and (self.is_time or self.stride != 1):
            lines.append(f"column {self.column}: a step every {self._told(self.stride, True)}")
        if self.moved:
            lines.append(
                f"sorted by episode and {self.column}: {self.moved:,} of {self.rows:,} rows were"
                " not in their place"
            )
        return lines

    def first_wrong(self, steps: Array, before: Array, first: Array) -> int | None:
        """The first row that does not follow the one before at the stride."""
        if self.stride is None:
            return None
        allowed = JITTER * self.stride
        wrong = np.flatnonzero(~(np.abs(steps - before - self.stride) <= allowed) & ~first)
        return int(wrong[0]) if len(wrong) else None

    def gaps(self, steps: Array, before: Array, first: Array) -> Array:
        """[n] bool: rows before which rows are missing."""
        if self.stride is None:
            return np.zeros(len(steps), bool)
        missing: Array = (steps - before > (1 + JITTER) * self.stride) & ~first
        return missing

    def mistake(self, place: str, step: float, before: float, episode: Any) -> UserError:
        """The message about a row that does not follow the one before in its episode."""
        assert self.stride is not None
        due = before + self.stride
        why = (
            f"a row too many in episode {episode!r}, or an unsteady clock; if each file counts its"
            " own episodes, give --columns.episode FILE+NAME"
            if step < due
            else f"rows are missing from episode {episode!r}"
        )
        told = [self._told(value) for value in (step, before, due)]
        return UserError(
            f"{place}, column {self.column}: {told[0]} follows {told[1]}; it should be {told[2]}:"
            f" {why}"
        )

    def _told(self, value: float, is_stride: bool = False) -> str:
        if not self.is_time or not np.isfinite(value):
            return f"{value:.{9 if is_stride else 15}g}"
        if is_stride:
            return f"{value / 1e6:.9g} s"
        return str(np.datetime64(int(value), "us")).removesuffix(".000000")


class Episodes:
    """Numbers the episodes in the order in which they first appear, batch after batch.

    Args:
        rejoining: a name that appears again is another episode.
        scattered: a name that appears again is the same episode; else it is an error.
    """

    def __init__(
        self, columns: LogColumns, rejoining: bool = False, scattered: bool = False
    ) -> None:
        self.columns, self.rejoining, self.scattered = columns, rejoining, scattered
        self.names: list[Any] = []
        self.numbers: dict[Any, int] = {}
        self.last = -1  # the last row's episode
        self.step = np.nan  # and its step

    def of(self, batch: Any, file: str, row: int) -> tuple[Array, Array]:
        """[n] int64: each row's episode; [n] bool: whether it differs from the row before.

        Raises:
            UserError: an episode's rows do not stand together, or a row names none.
        """
        column = self.columns.episode_column
        starts, names = np.zeros(1, np.int64), [None]
        if column is not None:
            starts, names = log_values.runs(batch.column(column), file, row)
        keys = [(file, name) for name in names] if self.columns.by_file else names
        before = self.last
        found = []
        for start, key in zip(starts, keys, strict=True):
            self.last = self._number(key, file, row + int(start))
            found.append(self.last)
        lengths = np.diff(np.append(starts, batch.num_rows))
        episodes = np.repeat(np.array(found, np.int64), lengths)
        return episodes, episodes != np.concatenate([[before], episodes[:-1]])

    def _number(self, key: Any, file: str, row: int) -> int:
        if self.last >= 0 and key == self.names[self.last]:
            return self.last
        if key in self.numbers and self.scattered:
            return self.numbers[key]
        if key in self.numbers and not self.rejoining:
            raise UserError(
                f"{file}, row {row}: episode {key!r} comes again after"
                f" {self.names[self.last]!r}; the rows of an episode must stand together (files in"
                " the order of their names): give --columns.step NAME, by which they are sorted,"
                f" or --columns.episode FILE+{self.columns.episode} if each file counts its own"
            )
        self.numbers[key] = len(self.names)
        self.names.append(key)
        return self.numbers[key]

    def steps(self, batch: Any, file: str) -> tuple[Array, Array, bool]:
        """[n] float64: each row's step, and that of the row before; whether they are times."""
        assert self.columns.step is not None
        name = self.columns.step
        steps, is_time = log_values.step_numbers(batch.column(name), name, file)
        before = np.concatenate([[self.step], steps[:-1]])
        self.step = float(steps[-1])
        return steps, before, is_time


def order_of(files: Any, columns: LogColumns) -> Order | None:
    """Find out how the rows follow one another; None where no column of steps is named.

    Where they are in order nothing of them is kept; else 16 bytes of each row, to count.
    """
    if columns.step is None:
        return None
    episodes = Episodes(columns, scattered=True)
    differences: list[Array] = []
    sampled, newest, is_time = 0, -1, False
    for file, opened in files:
        row = 0
        for _, batch in opened():
            if not batch.num_rows:
                continue
            numbers, first = episodes.of(batch, file, row)
            steps, before, is_time = episodes.steps(batch, file)
            back = np.diff(numbers, prepend=newest) < 0
            if (back | ((steps < before) & ~first)).any():
                return _scattered(files, columns)
            newest = int(numbers[-1])
            if sampled < _SAMPLE:
                differences.append((steps - before)[~first])
                sampled += len(differences[-1])
            row += batch.num_rows
    return Order(columns.step, _stride(np.concatenate([np.empty(0), *differences])), is_time)


def _scattered(files: Any, columns: LogColumns) -> Order:
    """The same where rows must be sorted."""
    assert columns.step is not None
    episodes = Episodes(columns, scattered=True)
    parts, is_time = [], False
    for file, opened in files:
        row = 0
        for _, batch in opened():
            if batch.num_rows:
                numbers, _ = episodes.of(batch, file, row)
                steps, _, is_time = episodes.steps(batch, file)
                parts.append((numbers, steps))
            row += batch.num_rows
    numbers, steps = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = sorting(numbers, steps)
    moved = int((order != np.arange(len(order))).sum())
    inside = np.diff(numbers[order]) == 0
    stride = _stride(np.diff(steps[order])[inside])
    return Order(columns.step, stride, is_time, moved, len(order))


def sorting(episodes: Array, steps: Array) -> Array:
    """The order of rows by episode and step; equal ones stay in their order."""
    order: Array = np.lexsort((steps, episodes))
    return order


def _stride(differences: Array) -> float | None:
    """The lower median of what is above 0: gaps and repeated rows are few."""
    known = differences[differences > 0]
    if not len(known):
        return None if not len(differences) else 1.0
    middle = (len(known) - 1) // 2
    return float(np.partition(known, middle)[middle])
