"""Logs: Parquet, CSV or a DataFrame with one row for each step, as people's own recorders write
them.

A row holds an observation, the action taken there, its reward, the episode it belongs to, and
flags. The rows of an episode stand together, in order; several files are one log in the natural
order of their paths, and an episode may continue in the next file. The final observation of an
episode is found like this:

1. A last row whose action is null in every column is a closing row: it holds the final observation
  alone.
2. Otherwise, where there are columns of the next observation, the last row's next observation is
  the final one.
3. Otherwise a last row that is marked terminated stays a step, and its observation is repeated as
  the final one, which no target looks at after a termination. (Dropping the row would lose the last
  reward: in sparse tasks, the only one.)
4. Otherwise the last row serves as the final observation of the row before it; its action and
  reward are left out.

A flag on a row that 1 or 4 drops marks the end of its episode: it is moved to the last step that is
kept. An episode of which no step is left has length 0, which validation reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.formats import log_values
from cqlray.data.formats.files import DataPath
from cqlray.data.formats.log_columns import ColumnNames, LogColumns, resolve
from cqlray.data.formats.log_files import (
    FRAME,
    Batches,
    batches,
    column_names,
    frame_batches,
    frame_columns,
)
from cqlray.data.formats.rows import Rows
from cqlray.data.source import PIECE_SIZE, UNKNOWN_TIER, Piece, Source, describe_environment
from cqlray.errors import UserError

if TYPE_CHECKING:
    import pandas

Files = list[tuple[str, Callable[[], Batches]]]


@dataclass(frozen=True)
class _LogRows:
    """n consecutive rows of a log."""

    files: tuple[str, ...]  # those that the rows are from
    observations: Array  # [n, observation_dim]
    actions: Array  # [n, action_dim]
    rewards: Array  # [n]
    terminations: Array  # [n] bool
    truncations: Array  # [n] bool
    closing: Array  # [n] bool: the action is null
    first: Array  # [n] bool: an episode begins here
    row: Array  # [n] int64: row in its file
    next_observations: Array | None  # [n, observation_dim]

    def __len__(self) -> int:
        return len(self.rewards)

    def split(self, at: int) -> tuple[_LogRows, _LogRows]:
        """The rows before `at`, and those from there on."""
        return self._map(lambda values: values[:at]), self._map(lambda values: values[at:])

    def _map(self, change: Callable[[Array], Array]) -> _LogRows:
        arrays = {
            name: change(value)
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **cast(Any, arrays))

    @staticmethod
    def joined(parts: list[_LogRows]) -> _LogRows:
        if len(parts) == 1:
            return parts[0]
        names = [name for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        files = tuple(dict.fromkeys(file for part in parts for file in part.files))
        return dataclasses.replace(parts[0], files=files, **arrays)


def open_log(
    name: str, data_format: str, files: list[DataPath], names: ColumnNames, rejoining: bool = False
) -> Source:
    """Parquet or CSV files as one log.

    Args:
        rejoining: an episode's name may appear again later; those rows are then another episode.

    Raises:
        UserError: the first file cannot be read, or has not these columns. Iterating raises it for
            what comes later.
    """
    order = column_names(files[0])
    columns = resolve(names, order, files[0].name)
    openers: Files = [(file.name, partial(batches, file, names, order)) for file in files]
    return _source(name, data_format, openers, columns, rejoining)


def open_frame(frame: pandas.DataFrame, names: ColumnNames) -> Source:
    """A pandas DataFrame of log rows.

    Raises:
        UserError: as open_log.
    """
    columns = resolve(names, frame_columns(frame), FRAME)
    openers: Files = [(FRAME, partial(frame_batches, frame, names))]
    return _source("DataFrame", "dataframe", openers, columns, False)


def _source(
    name: str, data_format: str, files: Files, columns: LogColumns, rejoining: bool
) -> Source:
    first = next(_rows(files, {}, rejoining), None)
    if first is None:
        raise UserError(f"dataset {name!r} has no rows")
    observation_dim, action_dim = first.observations.shape[1], first.actions.shape[1]
    if first.next_observations is not None and first.next_observations.shape[1] != observation_dim:
        found = first.next_observations.shape[1]
        raise UserError(
            f"dataset {name!r}: next observations have {found} numbers, observations"
            f" {observation_dim}; name them alike"
        )
    environment = describe_environment(observation_dim, action_dim)

    def pieces() -> Iterator[Piece]:
        for rows in _whole_episodes(_rows(files, {}, rejoining)):
            yield _piece(rows)

    return Source(name, data_format, environment, pieces, {"columns": columns.described()})


def _rows(files: Files, widths: dict[str, int], rejoining: bool) -> Iterator[_LogRows]:
    """All rows of the files, a batch at a time."""
    episodes = _Episodes(rejoining)
    for file, opened in files:
        row = 0
        for columns, batch in opened():
            if batch.num_rows:
                yield _of_batch(columns, batch, widths, episodes, file, row)
            row += batch.num_rows


def _of_batch(
    columns: LogColumns,
    batch: Any,
    widths: dict[str, int],
    episodes: _Episodes,
    file: str,
    row: int,
) -> _LogRows:
    def vectors(names: tuple[str, ...]) -> Array:
        return log_values.matrix(batch, names, widths, file, row)

    def flags(name: str | None) -> Array:
        if name is None:
            return np.zeros(batch.num_rows, bool)
        return log_values.flags(batch.column(name), name, file, row)

    first = episodes.begin(batch.column(columns.episode), file, row)
    if columns.step is not None:
        steps = log_values.step_numbers(batch.column(columns.step), columns.step, file)
        episodes.check_steps(steps, first, columns.step, file, row)
    return _LogRows(
        files=(file,),
        observations=vectors(columns.observation),
        actions=vectors(columns.action),
        rewards=log_values.numbers(batch.column(columns.reward), columns.reward, file),
        terminations=flags(columns.terminated),
        truncations=flags(columns.truncated),
        closing=log_values.no_value(batch, columns.action),
        first=first,
        row=np.arange(row, row + batch.num_rows),
        next_observations=vectors(columns.next_observation) if columns.next_observation else None,
    )


class _Episodes:
    """Finds where episodes begin, batch after batch."""

    def __init__(self, rejoining: bool) -> None:
        self.rejoining = rejoining
        self.current: Any = None
        self.seen: set[Any] = set()
        self.step = 0.0  # of the last row

    def begin(self, values: Any, file: str, row: int) -> Array:
        """[n] bool: the rows where an episode begins.

        Raises:
            UserError: an episode's rows do not stand together.
        """
        starts, names = log_values.runs(values, file, row)
        first = np.zeros(len(values), bool)
        for start, name in zip(starts, names, strict=True):
            if start == 0 and self.seen and name == self.current:
                continue
            if name in self.seen and not self.rejoining:
                raise UserError(
                    f"{file}, row {row + start}: episode {name!r} comes again after"
                    f" {self.current!r}; the rows of an episode must stand together (files in the"
                    " order of their names): sort by episode, or give each its own name"
                )
            first[start] = True
            self.seen.add(name)
            self.current = name
        return first

    def check_steps(self, steps: Array, first: Array, column: str, file: str, row: int) -> None:
        """Check that steps count up by 1 in each episode.

        Raises:
            UserError: rows are missing or not in order.
        """
        before = np.concatenate([[self.step], steps[:-1]])
        wrong = np.flatnonzero((steps != before + 1) & ~first)
        if len(wrong):
            at = int(wrong[0])
            raise UserError(
                f"{file}, row {row + at}, column {column}: {steps[at]:g} follows {before[at]:g}; it"
                f" should be {before[at] + 1:g}: rows are missing or not in order"
            )
        self.step = float(steps[-1])


def _whole_episodes(blocks: Iterator[_LogRows]) -> Iterator[_LogRows]:
    """The same rows, cut where episodes begin, about PIECE_SIZE at a time; an episode that spans
    two files comes alone.
    """
    held: list[_LogRows] = []
    for part in blocks:
        block = part
        starts = np.flatnonzero(block.first)
        if held and held[-1].files[-1] != block.files[0]:
            *whole, rest = _cut_last(held)
            yield from whole
            held = [rest]
            if len(starts):  # what began in the file before ends here
                end, block = block.split(int(starts[0]))
                yield _LogRows.joined([rest, end] if len(end) else [rest])
                held = []
        held.append(block)
        if sum(map(len, held)) >= PIECE_SIZE and sum(int(rows.first.sum()) for rows in held) > 1:
            *whole, rest = _cut_last(held)
            yield from whole
            held = [rest]
    if held:
        yield _LogRows.joined(held)


def _cut_last(held: list[_LogRows]) -> list[_LogRows]:
    """The whole episodes, if there are any, and the last one, which may continue."""
    rows = _LogRows.joined(held)
    last = int(np.flatnonzero(rows.first)[-1])
    return list(rows.split(last)) if last else [rows]


def _piece(rows: _LogRows) -> Piece:
    """Whole episodes, their final observations found by the rules above."""
    lasts = np.append(np.flatnonzero(rows.first)[1:], len(rows)) - 1
    following = rows.next_observations
    found = Rows(
        observations=rows.observations,
        actions=rows.actions,
        rewards=rows.rewards,
        terminations=rows.terminations,
        truncations=rows.truncations,
        lasts=lasts,
        dropped=rows.closing[lasts] | (~rows.terminations[lasts] & (following is None)),
        final=(rows.observations if following is None else following)[lasts],
    )
    shard, is_step = found.shard(UNKNOWN_TIER)
    one_file = len(rows.files) == 1
    return Piece(
        shard,
        " to ".join(rows.files[:: max(1, len(rows.files) - 1)]),
        rows.row[is_step] if one_file else None,
        None if following is None else following[is_step],
    )
