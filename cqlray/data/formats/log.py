"""Logs: Parquet, CSV or a DataFrame with one row for each step, as people's own recorders write
them.

A row holds an observation, the action taken there, its reward, the episode it belongs to, and
flags. The rows of an episode stand together, in order, or are sorted where a column of steps is
named; several files are one log in the natural order of their paths, and an episode may continue in
the next file. The final observation of an episode is found like this:

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

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
from cqlray.data.formats.log_missing import Counts, MissingValues
from cqlray.data.formats.log_rows import LogRows, piece_of
from cqlray.data.formats.log_steps import Episodes, Order, order_of, sorting
from cqlray.data.formats.log_text import Found, note_categories, one_hot, one_hot_names
from cqlray.data.source import PIECE_SIZE, Piece, Source, describe_environment, narrow
from cqlray.errors import UserError
from cqlray.storage.outside import free_memory

if TYPE_CHECKING:
    import pandas

Files = list[tuple[str, Callable[[], Batches]]]
_COPIES = 3  # of the rows while they are sorted


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
    found = Found()
    openers: Files = [(file.name, partial(batches, file, names, order, found)) for file in files]
    return _source(name, data_format, openers, columns, found, rejoining)


def open_frame(frame: pandas.DataFrame, names: ColumnNames) -> Source:
    """A pandas DataFrame of log rows.

    Raises:
        UserError: as open_log.
    """
    columns = resolve(names, frame_columns(frame), FRAME)
    found = Found()
    openers: Files = [(FRAME, partial(frame_batches, frame, names, found))]
    return _source("DataFrame", "dataframe", openers, columns, found)


def _source(
    name: str,
    data_format: str,
    files: Files,
    columns: LogColumns,
    found: Found,
    rejoining: bool = False,
) -> Source:
    _look(files, columns, found)
    categories = found.sorted_categories()
    order = order_of(files, columns)
    episodes = Episodes(columns, rejoining, scattered=order is not None)
    widths: dict[str, int] = {}
    first = next(_rows(files, categories, widths, episodes), None)
    if first is None:
        raise UserError(f"dataset {name!r} has no rows")
    observation_dim, action_dim = first.observations.shape[1], first.actions.shape[1]
    if first.next_observations is not None and first.next_observations.shape[1] != observation_dim:
        following = first.next_observations.shape[1]
        raise UserError(
            f"dataset {name!r}: next observations have {following} numbers, observations"
            f" {observation_dim}; name them alike"
        )
    named = one_hot_names(columns, categories)
    treated = MissingValues.of(named, widths) if columns.missing else None
    log = _Log(name, files, columns, categories, order, treated, rejoining)
    provenance = _provenance(log, named, found)
    indicators = len(treated.indicators) if treated is not None else 0
    environment = describe_environment(observation_dim + indicators, action_dim)
    return Source(name, data_format, environment, log.pieces, provenance)


@dataclass(frozen=True)
class _Log:
    """A log that was looked at once: how its rows are read, each time anew."""

    name: str
    files: Files
    columns: LogColumns
    categories: Mapping[str, Sequence[str]]
    order: Order | None  # where a column counts the steps
    treated: MissingValues | None
    rejoining: bool

    def pieces(self) -> Iterator[Piece]:
        """The episodes, some at a time."""
        return map(piece_of, self.blocks(Counts()))

    def blocks(self, counts: Counts) -> Iterator[LogRows]:
        """Whole episodes, in order; `counts` notes what is done about missing values."""
        order, treated = self.order, self.treated
        episodes = Episodes(self.columns, self.rejoining, scattered=order is not None)
        rows = _rows(self.files, self.categories, {}, episodes)
        whole = (
            _sorted(rows, self.name, order)
            if order is not None and order.moved
            else _whole_episodes(rows)
        )
        if order is not None:
            splits = treated is not None and treated.splits_steps
            whole = _in_step(whole, order, episodes, counts if splits else None)
        return whole if treated is None else treated.mended(whole, counts)


def _provenance(log: _Log, named: LogColumns, found: Found) -> dict[str, Any]:
    """What dataset.json says of how the log was read."""
    provenance: dict[str, Any] = {"columns": named.described()}
    notes = [*found.notes(), *(log.order.notes() if log.order else [])]
    if log.treated is not None:
        provenance["columns"]["observation"] += log.treated.indicator_columns
        provenance["missing"] = log.treated.description()
        counts = Counts()
        for _ in log.blocks(counts):  # read once, to count
            pass
        notes += counts.notes(log.treated.rules, log.columns.step)
    if notes:
        provenance["reading"] = notes
    return provenance


def _look(files: Files, columns: LogColumns, found: Found) -> None:
    """Read the log once where its text decides how it is read: complete `found`."""
    first = next((batch for _, opened in files for _, batch in opened() if batch.num_rows), None)
    if first is not None and (found.has_text or columns.categorical):
        for _, opened in files:
            for of_file, batch in opened():
                note_categories(of_file, batch, found)


def _rows(
    files: Files,
    categories: Mapping[str, Sequence[str]],
    widths: dict[str, int],
    episodes: Episodes,
) -> Iterator[LogRows]:
    """All rows of the files, a batch at a time."""
    names = tuple(file for file, _ in files)
    for index, (_, opened) in enumerate(files):
        row = 0
        for columns, batch in opened():
            if batch.num_rows:
                coded = one_hot(columns, batch, categories)
                yield _of_batch(*coded, widths, episodes, (names, index), row)
            row += batch.num_rows


def _of_batch(
    columns: LogColumns,
    batch: Any,
    widths: dict[str, int],
    episodes: Episodes,
    place: tuple[tuple[str, ...], int],
    row: int,
) -> LogRows:
    files, index = place
    file, n = files[index], batch.num_rows

    def vectors(names: tuple[str, ...]) -> Array:
        return log_values.matrix(batch, names, widths, file, row)

    def flags(name: str | None) -> Array:
        if name is None:
            return np.zeros(n, bool)
        return log_values.flags(batch.column(name), name, file, row)

    episode, first = episodes.of(batch, file, row)
    steps = np.zeros(n)
    if columns.step is not None:
        steps, _ = log_values.step_numbers(batch.column(columns.step), columns.step, file)
    return LogRows(
        files=files,
        file=np.full(n, index),
        episode=episode,
        step=steps,
        observations=vectors(columns.observation),
        actions=vectors(columns.action),
        rewards=_rewards(columns, batch, file),
        terminations=flags(columns.terminated),
        truncations=flags(columns.truncated),
        closing=log_values.no_value(batch, columns.action),
        first=first,
        cut=np.zeros(n, bool),
        row=np.arange(row, row + n),
        next_observations=vectors(columns.next_observation) if columns.next_observation else None,
    )


def _rewards(columns: LogColumns, batch: Any, file: str) -> Array:
    """[n]: a column, or what the expression makes of several."""
    if columns.reward_expression is None:
        return log_values.numbers(batch.column(columns.reward), columns.reward, file)
    named = columns.reward_expression.columns
    values = {name: log_values.numbers(batch.column(name), name, file) for name in named}
    return narrow(columns.reward_expression(values))


def _sorted(blocks: Iterator[LogRows], name: str, order: Order) -> Iterator[LogRows]:
    """All rows, sorted by episode and step in memory, whole episodes of about PIECE_SIZE at a time.

    Raises:
        UserError: they take more memory than there is.
    """
    held: list[LogRows] = []
    size, free = 0, free_memory()
    for block in blocks:
        held.append(block)
        size += block.size
        if _COPIES * size > free:
            raise UserError(
                f"dataset {name!r} is not sorted by episode and {order.column}, and sorting it here"
                f" takes more than the {free / 2**30:.1f} GiB of memory that are free; sort it"
                " before, with a database for example"
            )
    rows = LogRows.joined(held)
    held.clear()
    places = sorting(rows.episode, rows.step)
    rows = rows.map(lambda values: values[places])
    rows = dataclasses.replace(rows, first=np.diff(rows.episode, prepend=-1) != 0)
    starts, begin = np.flatnonzero(rows.first), 0
    for end in [*starts[1:], len(rows)]:
        if end - begin >= PIECE_SIZE or end == len(rows):
            yield rows.split(end)[0].split(begin)[1]
            begin = end


def _in_step(
    blocks: Iterator[LogRows], order: Order, episodes: Episodes, split: Counts | None
) -> Iterator[LogRows]:
    """The same whole episodes; with `split`, cut where steps are missing, which it counts.

    Raises:
        UserError: a step is missing from one, or is there twice.
    """
    for whole in blocks:
        block = whole
        before = np.concatenate([[np.nan], block.step[:-1]])
        if split is not None:
            gaps = order.gaps(block.step, before, block.first)
            split.add_gaps(gaps, block.episode)
            block = dataclasses.replace(
                block, first=block.first | gaps, cut=block.cut | np.append(gaps[1:], False)
            )
        at = order.first_wrong(block.step, before, block.first)
        if at is not None:
            place = f"{block.files[block.file[at]]}, row {block.row[at]}"
            name = episodes.names[block.episode[at]]
            raise order.mistake(place, float(block.step[at]), float(before[at]), name)
        yield block


def _whole_episodes(blocks: Iterator[LogRows]) -> Iterator[LogRows]:
    """The same rows, cut where episodes begin, about PIECE_SIZE at a time; an episode that spans
    two files comes alone.
    """
    held: list[LogRows] = []
    for part in blocks:
        block = part
        starts = np.flatnonzero(block.first)
        if held and held[-1].file[-1] != block.file[0]:
            *whole, rest = _cut_last(held)
            yield from whole
            held = [rest]
            if len(starts):  # what began in the file before ends here
                end, block = block.split(int(starts[0]))
                yield LogRows.joined([rest, end] if len(end) else [rest])
                held = []
        held.append(block)
        if sum(map(len, held)) >= PIECE_SIZE and sum(int(rows.first.sum()) for rows in held) > 1:
            *whole, rest = _cut_last(held)
            yield from whole
            held = [rest]
    if held:
        yield LogRows.joined(held)


def _cut_last(held: list[LogRows]) -> list[LogRows]:
    """The whole episodes, if there are any, and the last one, which may continue."""
    rows = LogRows.joined(held)
    last = int(np.flatnonzero(rows.first)[-1])
    return list(rows.split(last)) if last else [rows]
