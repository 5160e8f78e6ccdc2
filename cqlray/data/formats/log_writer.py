"""Write episodes as a log, Parquet or CSV, which the log reader reads with its default column
names.

Columns: observation_0 ..., action_0 ..., reward, episode, step, terminated, truncated. Each episode
has one closing row with its final observation, in which action, reward and flags are null. CSV has
the shortest digits that name a float32, so the same bits are read again. Seeds and tiers are not
written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cqlray.data.episode import Array, Shard, steps_of_rows
from cqlray.errors import UserError
from cqlray.storage.disk import move
from cqlray.storage.locks import reserved


def write_log(shards: Iterable[Shard], path: str | Path) -> int:
    """Write the episodes, numbered from 0, and return the number of rows. The file appears whole or
    not at all.

    Raises:
        UserError: the file exists, its name ends in neither .parquet nor .csv, there are no
            episodes, or it cannot be written.
    """
    file = Path(path)
    if "://" in str(path):
        raise UserError(f"{path}: logs are written to local disk; write there and copy")
    if file.suffix not in (".parquet", ".csv"):
        raise UserError(f"{file}: a log is a file whose name ends in .parquet or .csv")
    temporary = file.with_name(f".{file.name}.tmp")
    with reserved(file):
        return _write_whole(shards, file, temporary)


def _write_whole(shards: Iterable[Shard], file: Path, temporary: Path) -> int:
    try:
        rows = _write(shards, temporary, file.suffix)
        if not rows:
            raise UserError(f"{file}: there is no episode to write")
        move(temporary, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _write(shards: Iterable[Shard], path: Path, suffix: str) -> int:
    writer: Any = None
    rows = episodes = 0
    try:
        for shard in shards:
            table = log_table(shard, episodes)
            if writer is None:
                writer = _writer(path, table.schema, suffix)
            writer.write_table(table)
            rows += table.num_rows
            episodes += shard.num_episodes
    finally:
        if writer is not None:
            writer.close()
    return rows


def _writer(path: Path, schema: pa.Schema, suffix: str) -> Any:
    if suffix == ".parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    return pyarrow.csv.CSVWriter(
        path, schema, write_options=pyarrow.csv.WriteOptions(quoting_style="none")
    )


def log_table(shard: Shard, first_episode: int = 0) -> pa.Table:
    """The log rows of a shard, its episodes numbered from `first_episode`."""
    rows, closing = shard.step_rows, np.ones(len(shard.observations), bool)
    closing[rows] = False

    def steps(values: Array) -> pa.Array:
        wide = np.zeros(len(closing), values.dtype)
        wide[rows] = values
        return pa.array(wide, mask=closing)

    columns = {
        f"observation_{i}": pa.array(shard.observations[:, i])
        for i in range(shard.observations.shape[1])
    }
    columns |= {f"action_{i}": steps(shard.actions[:, i]) for i in range(shard.actions.shape[1])}
    columns["reward"] = steps(shard.rewards)
    episodes = np.arange(first_episode, first_episode + shard.num_episodes)
    columns["episode"] = pa.array(np.repeat(episodes, shard.lengths + 1))
    columns["step"] = pa.array(steps_of_rows(shard.lengths))
    columns["terminated"] = steps(shard.terminations)
    columns["truncated"] = steps(shard.truncations)
    return pa.table(columns)
