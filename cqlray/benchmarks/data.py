"""How fast data is loaded and batches are looked up in memory and in a file, beside what memory and
disk could do.

    python -m cqlray.benchmarks.data --transitions 1000000

One run measures everything, so that the ratios are of one machine at one time. Data are random
numbers in a temporary directory; `--directory` says on which disk. The dataset in memory, looked up
batch by batch, is the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cqlray.data import loading
from cqlray.data.columns import fill_columns
from cqlray.data.dataset import Description
from cqlray.data.episode import Array, Shard
from cqlray.data.prefetch import Prefetcher
from cqlray.data.shards import to_parquet
from cqlray.data.store import READERS, ColumnFile, HostColumns, write_store

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
    (directory / "dataset.json").write_text(json.dumps(written))
    return written


def loading_rates(
    directory: Path, description: dict[str, Any], data: HostColumns
) -> dict[str, float]:
    """Bytes of columns per second, of each way to them."""
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
    """The disk alone, the page cache emptied of the file: bytes per second in order, and reads of 4
    KiB anywhere.
    """
    size = path.stat().st_size
    offsets = (
        np.random.default_rng(0).integers(0, max(size // 4096, 1), RANDOM_READS) * 4096
    ).tolist()
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(READERS) as readers:

        def in_order() -> None:
            while file.read(4 * 2**20):
                pass

        def anywhere() -> None:
            list(
                readers.map(lambda part: [os.pread(file.fileno(), 4096, at) for at in part], parts)
            )

        parts = [offsets[reader::READERS] for reader in range(READERS)]
        empty_page_cache(path)
        started = time.perf_counter()
        in_order()
        sequential = size / (time.perf_counter() - started)
        empty_page_cache(path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        started = time.perf_counter()
        anywhere()
        return {
            "disk_bytes_per_s": sequential,
            "disk_random_reads_per_s": RANDOM_READS / (time.perf_counter() - started),
        }


def empty_page_cache(path: Path) -> None:
    """Of one file that nobody has mapped; where the file system has no disk below, nothing
    happens.
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
    with path.open("rb") as warmed:
        while warmed.read(4 * 2**20):
            pass
    rates["file_warm"] = BLOCK * BLOCKS / seconds_of(lambda: prefetched(file, BLOCKS, 0))
    file.close()
    return {f"{name}_batches_per_s": rate for name, rate in rates.items()}


def measure(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints."""
    path = directory / "columns"
    mean, std = (
        np.zeros(sizes.observation_dim, np.float32),
        np.ones(sizes.observation_dim, np.float32),
    )

    def open_file() -> ColumnFile:
        return write_store(path, sizes.shards(), "benchmark", mean, std, lambda actions: actions)

    description = write_shards(sizes, directory)
    started = time.perf_counter()
    open_file().close()
    write_seconds = time.perf_counter() - started
    data = HostColumns(loading.load_columns(directory)[1], mean, std, lambda actions: actions)
    found = {
        "transitions": sizes.transitions,
        "observation_dim": sizes.observation_dim,
        "action_dim": sizes.action_dim,
        "batch_rows": sizes.rows,
        "column_bytes": sum(getattr(data.data, field.name).nbytes for field in fields(data.data)),
        "file_bytes": path.stat().st_size,
        "file_write_seconds": write_seconds,
        **loading_rates(directory, description, data),
        **disk_rates(path),
        **batch_rates(sizes, data, open_file, path),
    }
    ratios = {
        "parquet_to_columns_of_pyarrow": ("parquet_to_columns_bytes_per_s", "pyarrow_bytes_per_s"),
        "shards_to_columns_of_memcpy": ("shards_to_columns_bytes_per_s", "memcpy_bytes_per_s"),
        "host_prefetch_of_memory": ("host_prefetch_batches_per_s", "memory_batches_per_s"),
        "file_warm_of_memory": ("file_warm_batches_per_s", "memory_batches_per_s"),
        "file_cold_of_memory": ("file_cold_batches_per_s", "memory_batches_per_s"),
    }
    found |= {name: found[part] / found[whole] for name, (part, whole) in ratios.items()}
    # A transition is one read, or two where its records lie across the border of two pages.
    found["file_cold_reads_of_disk"] = (
        found["file_cold_batches_per_s"] * sizes.rows / found["disk_random_reads_per_s"]
    )
    return found


def text(found: dict[str, Any]) -> str:
    """The result for people."""

    def line(name: str, key: str, unit: str, note: str = "") -> str:
        value = found[key] / 1e6 if unit == " MB/s" else found[key]
        return f"  {name:<28}{value:11,.0f}{unit:<6}{note}".rstrip()

    sizes = (
        f"({found['observation_dim']}, {found['action_dim']}), {found['column_bytes'] / 1e6:,.0f}"
        " MB of columns"
    )
    of_pyarrow, of_copy = (
        found["parquet_to_columns_of_pyarrow"],
        found["shards_to_columns_of_memcpy"],
    )
    of_memory = {
        name: found[f"{name}_of_memory"] for name in ("host_prefetch", "file_warm", "file_cold")
    }
    of_disk = f"{found['file_cold_reads_of_disk']:.0%} of the disk's reads"
    lines = [
        f"{found['transitions']:,} transitions {sizes}",
        line("memory copied", "memcpy_bytes_per_s", " MB/s"),
        line(
            "shards to columns",
            "shards_to_columns_bytes_per_s",
            " MB/s",
            f"{of_copy:.0%} of a copy",
        ),
        *(
            [line("object store to columns", "object_store_bytes_per_s", " MB/s")]
            if "object_store_bytes_per_s" in found
            else []
        ),
        line("pyarrow alone", "pyarrow_bytes_per_s", " MB/s"),
        line(
            "Parquet to columns",
            "parquet_to_columns_bytes_per_s",
            " MB/s",
            f"{of_pyarrow:.0%} of pyarrow",
        ),
        line("disk in order", "disk_bytes_per_s", " MB/s"),
        line("disk, 4 KiB anywhere", "disk_random_reads_per_s", "/s"),
        f"batches of {found['batch_rows']:,} transitions",
        line("memory, one by one", "memory_batches_per_s", "/s"),
        line(
            "memory, prefetched",
            "host_prefetch_batches_per_s",
            "/s",
            f"{of_memory['host_prefetch']:.0%}",
        ),
        line(
            "file in the page cache",
            "file_warm_batches_per_s",
            "/s",
            f"{of_memory['file_warm']:.0%}",
        ),
        line(
            "file on the disk",
            "file_cold_batches_per_s",
            "/s",
            f"{of_memory['file_cold']:.0%}; {of_disk}",
        ),
    ]
    return "\n".join(lines)


def main(
    argv: Sequence[str] | None = None,
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
    measure_more: Callable[[Sizes], dict[str, float]] = lambda _: {},
) -> int:
    """The command `cqlray benchmark data`; `measure_more` adds what needs more than this folder may
    import.
    """
    parser = parser_class(
        "cqlray benchmark data", description="Rates of loading and of looking up batches."
    )
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--observation-dim", type=int, default=17)
    parser.add_argument("--action-dim", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--members", type=int, default=1, help="each has a batch of its own")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the files are made for the while [the system's temporary one]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if (
        min(
            options.transitions,
            options.observation_dim,
            options.action_dim,
            options.batch_size,
            options.members,
        )
        < 1
    ):
        parser.error("all numbers must be positive")
    if options.directory is not None and not options.directory.is_dir():
        parser.error(f"--directory {options.directory}: no such directory")
    sizes = Sizes(
        options.transitions,
        options.observation_dim,
        options.action_dim,
        options.batch_size * options.members,
    )
    with tempfile.TemporaryDirectory(
        prefix="cqlray-benchmark-", dir=options.directory
    ) as directory:
        found = measure(sizes, Path(directory)) | measure_more(sizes)
    print(json.dumps(found) if options.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
