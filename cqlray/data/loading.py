"""Read a dataset's files, shard by shard or into columns.

Threads read ahead of the file that is being used.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cqlray.data import shards as shard_files
from cqlray.data.columns import Columns, fill_columns
from cqlray.data.dataset import dataset_directory, read_description, require_digest, rows_of
from cqlray.data.episode import Shard
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, Location, file_size
from cqlray.storage.patience import patiently

# A file takes several times its shard's size while it is read. One thread reads ahead for so many
# files of the dataset, so that what the threads hold stays below a tenth of the data.
FILES_PER_READER = 100


@contextmanager
def _reading(source: AnyPath) -> Iterator[None]:
    """Errors of reading a file become a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{source}: dataset.json names this file, but it is missing") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{str(source)!r}: dataset.json names this file, but it cannot be read ({reason})"
        ) from None


def _read_table(source: AnyPath, rows: int | None) -> pa.Table:
    """A shard's file as a table, which should have so many rows."""
    with _reading(source):
        if isinstance(source, Path):
            size = file_size(Location.parse(source))
            return patiently(
                lambda: shard_files.read_table(source, str(source), size, rows), source
            )
        data = source.read_bytes()
        return shard_files.read_table(pa.BufferReader(data), str(source), len(data), rows)


def iterate_shards(directory: AnyPath, description: dict[str, Any]) -> Iterator[Shard]:
    """The shards of a dataset in order, their digests checked; the next ones are read while one is
    used.

    Raises:
        UserError: there is no shard; or, when its turn comes, a file is missing, damaged or not
            what the description says.
    """
    entries = description["shards"]
    if not entries:
        raise UserError(f"dataset {str(directory)!r} has no shards")
    sources = [directory / Path(entry["file"]).name for entry in entries]
    readers = min(os.cpu_count() or 1, max(1, len(entries) // FILES_PER_READER))
    pool = ThreadPoolExecutor(readers, "cqlray-read")
    try:
        queue = iter(zip(sources, map(rows_of, entries), strict=True))
        ahead = deque(pool.submit(_read_table, *file) for file in islice(queue, readers))
        for source, entry in zip(sources, entries, strict=True):
            with _reading(source):
                shard = shard_files.from_table(ahead.popleft().result(), str(source))
            ahead += [pool.submit(_read_table, *file) for file in islice(queue, 1)]
            require_digest(shard, entry, str(source))
            yield shard
            del shard  # before the next one is made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load_columns(path: AnyPath) -> tuple[dict[str, Any], Columns]:
    """Description and columns of a dataset directory; the dimensions are the first shard's.

    Raises:
        UserError: something is missing, damaged or not what the description says.
    """
    directory, description = dataset_directory(path), read_description(path)
    shards = iterate_shards(directory, description)
    first = next(shards)
    transitions = _sum(directory, description, "transitions")
    episodes = _sum(directory, description, "episodes")
    dimensions = first.observations.shape[1], first.actions.shape[1]
    return description, fill_columns(chain([first], shards), transitions, episodes, *dimensions)


def _sum(directory: AnyPath, description: dict[str, Any], key: str) -> int:
    """The sum over all shards of a number in dataset.json."""
    total = 0
    for index, entry in enumerate(description["shards"]):
        if not isinstance(entry.get(key), int) or entry[key] < 1:
            raise UserError(
                f"{directory / 'dataset.json'}: shards[{index}].{key} is {entry.get(key)!r}; it"
                " should be 1 or more"
            )
        total += entry[key]
    return total
