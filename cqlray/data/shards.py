"""A shard as a Parquet file: one row a step, and one more row at each episode's end for its final observation.

Columns: episode and step (int32), observation and action (fixed-size lists of float32), reward (float32), termination
and truncation (bool), tier (string), seed (int64). In the closing row of an episode, action, reward and the two flags
are null: `frame.dropna(subset="reward")` leaves the transitions' rows.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cqlray.data.episode import Array, Shard
from cqlray.errors import UserError

COLUMNS = ("episode", "step", "observation", "action", "reward", "termination", "truncation", "tier", "seed")


def _step_rows(lengths: Array) -> Array:
    """[N + E] bool: True at rows that are steps, False at the closing rows."""
    is_step = np.ones(int(lengths.sum()) + len(lengths), bool)
    is_step[np.cumsum(lengths + 1) - 1] = False
    return is_step


def to_table(shard: Shard) -> pa.Table:
    """The shard as an Arrow table of the columns above."""
    is_step = _step_rows(shard.lengths)
    closing = pa.array(~is_step)
    episode = np.repeat(np.arange(shard.num_episodes, dtype=np.int32), shard.lengths + 1)

    def widened(values: Array) -> Array:
        wide = np.zeros((len(is_step), *values.shape[1:]), values.dtype)
        wide[is_step] = values
        return wide

    def vectors(values: Array, mask: pa.Array | None = None) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)

    def numbers(values: Array) -> pa.Array:
        return pa.array(widened(values), mask=~is_step)

    steps = np.arange(len(is_step)) - np.repeat(shard.starts + np.arange(shard.num_episodes), shard.lengths + 1)
    columns = [
        pa.array(episode),
        pa.array(steps.astype(np.int32)),
        vectors(shard.observations),
        vectors(widened(shard.actions), closing),
        numbers(shard.rewards),
        numbers(shard.terminations),
        numbers(shard.truncations),
        pa.array([shard.tier] * len(is_step), pa.string()),
        pa.array(np.repeat(shard.seeds, shard.lengths + 1)),
    ]
    return pa.Table.from_arrays(columns, names=list(COLUMNS))


def from_table(table: pa.Table, name: str) -> Shard:
    """The shard that `to_table` made the table from.

    Raises:
        UserError: the table is not one of ours.
    """
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise UserError(f"{name}: no column {', '.join(missing)}; a cqlray shard has {', '.join(COLUMNS)}")
    if table.num_rows == 0:
        raise UserError(f"{name}: the shard has no rows; remove it or collect it again")
    table = table.combine_chunks()
    is_step = table["reward"].is_valid().to_numpy()
    lengths = np.diff(np.flatnonzero(~is_step), prepend=-1) - 1
    if is_step[-1] or (lengths <= 0).any():
        raise UserError(f"{name}: an episode has no closing row; the file was cut or is not a cqlray shard")
    steps = table.filter(pa.array(is_step))

    def vectors(source: pa.Table, column: str) -> Array:
        values = source[column].combine_chunks()
        if not pa.types.is_fixed_size_list(values.type):
            raise UserError(f"{name}: column {column} is {values.type}; it should be a fixed-size list of float32")
        flat: Array = values.flatten().to_numpy()
        return flat.reshape(-1, values.type.list_size)

    def numbers(column: str) -> Array:
        values: Array = steps[column].to_numpy()
        return values

    return Shard(
        observations=vectors(table, "observation"),
        actions=vectors(steps, "action"),
        rewards=numbers("reward"),
        terminations=numbers("termination"),
        truncations=numbers("truncation"),
        lengths=lengths.astype(np.int64),
        seeds=table["seed"].to_numpy()[~is_step],
        tier=str(table["tier"][0]),
    )


def to_parquet(shard: Shard) -> bytes:
    """The shard as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(to_table(shard), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes, name: str) -> Shard:
    """The shard of a Parquet file's bytes; `name` is what messages call it.

    Raises:
        UserError: the bytes are not a shard's file.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{name}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    return from_table(table, name)
