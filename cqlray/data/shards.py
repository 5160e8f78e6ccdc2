"""Shards as Parquet files: one row for each step, and a closing row for each episode's final
observation.

Columns: episode and step (int32), observation and action (fixed-size lists of float32), reward
(float32), termination and truncation (bool), tier (string), seed (int64). In the closing row of an
episode, action, reward and the two flags are null: `frame.dropna(subset="reward")` leaves the
transitions' rows.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cqlray.data.episode import Array, Shard, steps_of_rows
from cqlray.data.parquet import open_parquet
from cqlray.errors import UserError

TYPES = {
    "episode": pa.int32(),
    "step": pa.int32(),
    "observation": pa.float32(),  # of the lists' values
    "action": pa.float32(),
    "reward": pa.float32(),
    "termination": pa.bool_(),
    "truncation": pa.bool_(),
    "tier": pa.string(),
    "seed": pa.int64(),
}
COLUMNS = tuple(TYPES)
LONGEST_TIER = 200  # characters


def to_table(shard: Shard) -> pa.Table:
    """The shard as an Arrow table of the columns above."""
    rows, closing = shard.step_rows, np.ones(len(shard.observations), bool)
    closing[rows] = False
    episode = np.repeat(np.arange(shard.num_episodes, dtype=np.int32), shard.lengths + 1)

    def widened(values: Array) -> Array:
        wide = np.zeros((len(closing), *values.shape[1:]), values.dtype)
        wide[rows] = values
        return wide

    def vectors(values: Array, mask: pa.Array | None = None) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)

    def numbers(values: Array) -> pa.Array:
        return pa.array(widened(values), mask=closing)

    columns = [
        pa.array(episode),
        pa.array(steps_of_rows(shard.lengths).astype(np.int32)),
        vectors(shard.observations),
        vectors(widened(shard.actions), pa.array(closing)),
        numbers(shard.rewards),
        numbers(shard.terminations),
        numbers(shard.truncations),
        pa.array([shard.tier] * len(closing), pa.string()),
        pa.array(np.repeat(shard.seeds, shard.lengths + 1)),
    ]
    return pa.Table.from_arrays(columns, names=list(COLUMNS))


def from_table(table: pa.Table, name: str) -> Shard:
    """The shard that `to_table` made the table from.

    Raises:
        UserError: the table is not one of ours.
    """
    _check_columns(table, name)
    table = table.select(COLUMNS).combine_chunks()
    _check_types(table, name)
    is_step = table["reward"].is_valid().to_numpy()
    lengths = np.diff(np.flatnonzero(~is_step), prepend=-1) - 1
    if is_step[-1] or (lengths <= 0).any():
        raise UserError(
            f"{name}: an episode has no closing row; the file was cut or is not a cqlray shard"
        )
    steps = table.select(["action", "reward", "termination", "truncation"]).filter(
        pa.array(is_step)
    )
    _check_rows(table, steps, lengths, name)
    return Shard(
        observations=_matrix(table["observation"]),
        actions=_matrix(steps["action"]),
        rewards=steps["reward"].to_numpy(),
        terminations=steps["termination"].to_numpy(),
        truncations=steps["truncation"].to_numpy(),
        lengths=lengths.astype(np.int64),
        seeds=table["seed"].to_numpy()[~is_step],
        tier=_tier(table["tier"], name),
    )


def _tier(column: pa.ChunkedArray, name: str) -> str:
    """The shard's one tier.

    Raises:
        UserError: there are several, or it is no name that people could read.
    """
    tiers = column.unique().to_pylist()
    if len(tiers) > 1:
        raise UserError(f"{name}: column tier has {len(tiers)} values; a shard is of one tier")
    tier: str = tiers[0]
    if not tier.isprintable() or len(tier) > LONGEST_TIER:
        raise UserError(
            f"{name}: column tier holds {tier[:20]!r}; a tier has a name of {LONGEST_TIER}"
            " printable characters at most"
        )
    return tier


def _matrix(column: pa.ChunkedArray) -> Array:
    """[rows, width] of a column of vectors."""
    values = column.combine_chunks()
    flat: Array = values.flatten().to_numpy()
    return flat.reshape(-1, values.type.list_size)


def _check_columns(table: pa.Table, name: str) -> None:
    """Check that each column is there once, and that there are rows."""
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise UserError(
            f"{name}: no column {', '.join(missing)}; a cqlray shard has {', '.join(COLUMNS)}"
        )
    doubled = [column for column in COLUMNS if table.column_names.count(column) > 1]
    if doubled:
        raise UserError(
            f"{name}: more than one column {', '.join(doubled)}; a cqlray shard has one of each"
        )
    if table.num_rows == 0:
        raise UserError(f"{name}: the shard has no rows; remove it or collect it again")


def _check_types(table: pa.Table, name: str) -> None:
    for column, right in TYPES.items():
        found = table.schema.field(column).type
        is_vector = column in ("observation", "action")
        if is_vector and (
            not pa.types.is_fixed_size_list(found)
            or found.value_type != right
            or found.list_size < 1
        ):
            raise UserError(
                f"{name}: column {column} is {found}; it should be a fixed-size list of {right}"
            )
        if column == "tier" and pa.types.is_dictionary(found):  # as open_parquet reads text
            found = found.value_type
        if not is_vector and found != right:
            raise UserError(f"{name}: column {column} is {found}; it should be {right}")


def _check_rows(table: pa.Table, steps: pa.Table, lengths: Array, name: str) -> None:
    """Check that no value is missing where one should be, and no row is missing or moved."""
    filled = [(column, table[column]) for column in ("step", "observation", "tier", "seed")]
    filled += [(column, steps[column]) for column in ("action", "termination", "truncation")]
    for column, values in filled:
        missing = values.null_count
        if column in ("observation", "action"):
            missing += values.combine_chunks().flatten().null_count
        if missing:
            raise UserError(
                f"{name}: column {column} has no value in {missing} places; the file was changed or"
                " damaged"
            )
    counted = steps_of_rows(lengths)
    wrong = np.flatnonzero(table["step"].to_numpy() != counted)
    if len(wrong):
        raise UserError(
            f"{name}, row {wrong[0]}, column step: it should be {counted[wrong[0]]}; rows are"
            " missing or moved"
        )


def to_parquet(shard: Shard) -> bytes:
    """The shard as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(to_table(shard), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes, name: str, rows: int | None = None) -> Shard:
    """The shard of a Parquet file's bytes; `name` is what messages call it.

    Raises:
        UserError: the bytes are not a shard's file, or not one of so many rows.
    """
    try:
        return from_table(read_table(pa.BufferReader(data), name, len(data), rows), name)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        MemoryError,
    ) as error:  # ValueError: names that are no UTF-8
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: not a readable Parquet file ({reason})") from None


def read_table(source: Any, name: str, size: int, rows: int | None = None) -> pa.Table:
    """The table in a shard's file, a local path or an open file, of `size` bytes. Columns are read
    one by one, so that only one of them is held undecoded.

    Raises:
        UserError: it takes too much memory, or has another number of rows than `rows`. What pyarrow
            raises of a damaged file.
    """
    with open_parquet(source, name, size) as file:
        if rows is not None and file.metadata.num_rows != rows:
            raise UserError(
                f"{name}: {file.metadata.num_rows:,} rows; its content is not what dataset.json"
                f" says, {rows:,}"
            )
        names = file.schema_arrow.names
        if any(names.count(column) != 1 for column in COLUMNS):
            return file.schema_arrow.empty_table()  # from_table says what is wrong
        return pa.table(
            {column: file.read([column], use_threads=False)[column] for column in COLUMNS}
        )
