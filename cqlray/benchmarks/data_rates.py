"""What the data benchmark measures: loading, the disk alone, and looking up batches."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cqlray.data import loading
from cqlray.data.columns import fill_columns
from cqlray.data.dataset import DESCRIPTION, Description
from cqlray.data.episode import Array, Shard
from cqlray.data.prefetch import Prefetcher
from cqlray.data.shards import to_parquet
from cqlray.data.store import READERS, ColumnFile, HostColumns

ROUNDS = 3
PER_SHARD, EPISODE = 50_000, 1000  # transitions
BLOCK = 32  # updates whose batches are gathered at once, as the learner does
BLOCKS = 20  # in each round
COLD_BLOCKS = 2  # so that most of the file stays unread
RANDOM_READS = 4000


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    transitions: int
    observation_dim: int
    action_dim: int
    rows: int  # transitions of all members' batches in one update

    def shards(self) -> Iterator[Shard]:
        """Random episodes of EPISODE steps."""
        for start in range(0, self.transitions, PER_SHARD):
            rng, steps = np.random.default_rng(start), min(PER_SHARD, self.transitions - start)
            lengths = np.diff(np.append(np.arange(0, steps, EPISODE), steps))
            truncations = np.zeros(steps, bool)
            truncations[np.cumsum(lengths) - 1] = True
            yield Shard(
                observations=rng.standard_normal(
                    (steps + len(lengths), self.observation_dim), np.float32
                ),
                actions=rng.random((steps, self.action_dim), np.float32) * 2 - 1,
                rewards=rng.standard_normal(steps, np.float32),
                terminations=np.zeros(steps, bool),
                truncations=truncations,
                lengths=lengths,
                seeds=np.arange(len(lengths)),
                tier="random",
            )

    def index(self, block: int, updates: int = BLOCK) -> Array:
        """Uniform transitions for the batches of a block of updates."""
        return np.random.default_rng(block).integers(0, self.transitions, updates * self.rows)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a piece of work, its median over ROUNDS."""
    measured = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def write_shards(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Write the dataset's files; its description."""
    description = Description({})
    for shard in sizes.shards():
        (directory / description.add(shard)).write_bytes(to_parquet(shard))
    written = description.finish()
    (directory / DESCRIPTION).write_text(json.dumps(written))
    return written


def loading_rates(
    directory: Path, description: dict[str, Any], data: HostColumns
) -> dict[str, float]:
    """Bytes of columns per second, for each way to load them."""
    arrays = [getattr(data.data, field.name) for field in fields(data.data)]
    size = sum(array.nbytes for array in arrays)
    files = [directory / entry["file"] for entry in description["shards"]]
    shards = list(loading.iterate_shards(directory, description))
    shape = (
        description["transitions"],
        description["episodes"],
        shards[0].observations.shape[1],
        shards[0].actions.shape[1],
    )
    seconds = {
        "memcpy": seconds_of(lambda: [array.copy() for array in arrays]),
        "pyarrow": seconds_of(lambda: [pq.read_table(file) and None for file in files]),
        "parquet_to_columns": seconds_of(lambda: loading.load_columns(directory)),
        "shards_to_columns": seconds_of(lambda: fill_columns(shards, *shape)),
    }
    return {f"{name}_bytes_per_s": size / measured for name, measured in seconds.items()}


def disk_rates(path: Path) -> dict[str, float]:
    """The disk alone, with the file removed from the page cache: bytes per second read in order,
    and reads of 4 KiB at random places.
    """
    size = path.stat().st_size
    pages = np.random.default_rng(0).integers(0, max(size // 4096, 1), RANDOM_READS)
    offsets = (pages * 4096).tolist()
    parts = [offsets[reader::READERS] for reader in range(READERS)]
    empty_page_cache(path)
    started = time.perf_counter()
    read_through(path)
    in_order = time.perf_counter() - started
    empty_page_cache(path)
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(READERS) as readers:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        started = time.perf_counter()
        list(readers.map(lambda part: [os.pread(file.fileno(), 4096, at) for at in part], parts))
        anywhere = time.perf_counter() - started
    return {"disk_bytes_per_s": size / in_order, "disk_random_reads_per_s": RANDOM_READS / anywhere}


def read_through(path: Path) -> None:
    """Read a file from its beginning to its end."""
    with path.open("rb", buffering=0) as file:
        while file.read(4 * 2**20):
            pass


def empty_page_cache(path: Path) -> None:
    """Remove a file that nobody has mapped from the page cache; without a disk below, as in a RAM
    disk, nothing happens.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def batch_rates(
    sizes: Sizes, data: HostColumns, open_file: Callable[[], ColumnFile], path: Path
) -> dict[str, float]:
    """Updates' batches per second, from memory and from the file."""

    def prefetched(rows: HostColumns | ColumnFile, blocks: int, first: int) -> None:
        prefetcher = Prefetcher(sizes.index, rows.gather)
        for block in range(first, first + blocks):
            prefetcher.block(block)
        prefetcher.close()

    def direct() -> None:
        for batch in range(BLOCK * BLOCKS):
            data.gather(sizes.index(batch, updates=1))

    rates = {
        "memory": BLOCK * BLOCKS / seconds_of(direct),
        "host_prefetch": BLOCK * BLOCKS / seconds_of(lambda: prefetched(data, BLOCKS, 0)),
    }
    empty_page_cache(path)
    file = open_file()
    started = time.perf_counter()
    prefetched(file, COLD_BLOCKS, 0)
    rates["file_cold"] = BLOCK * COLD_BLOCKS / (time.perf_counter() - started)
    read_through(path)  # into the page cache
    rates["file_warm"] = BLOCK * BLOCKS / seconds_of(lambda: prefetched(file, BLOCKS, 0))
    file.close()
    return {f"{name}_batches_per_s": rate for name, rate in rates.items()}
