"""How fast data is loaded, and batches are looked up in memory and in a file, compared with what
memory and disk can do.

    python -m cqlray.benchmarks.data --transitions 1000000

One run measures everything, so that ratios compare the same machine at the same time. The data are
random numbers in a temporary directory; `--directory` chooses the disk. The baseline is the dataset
in memory, looked up batch by batch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from cqlray.benchmarks.command import ABOUT, Parser, parse, show
from cqlray.benchmarks.data_rates import Sizes, batch_rates, disk_rates, loading_rates, write_shards
from cqlray.data import loading
from cqlray.data.store import ColumnFile, HostColumns, write_store

# A rate as a share of another, by name.
RATIOS = {
    "parquet_to_columns_of_pyarrow": ("parquet_to_columns_bytes_per_s", "pyarrow_bytes_per_s"),
    "shards_to_columns_of_memcpy": ("shards_to_columns_bytes_per_s", "memcpy_bytes_per_s"),
    "host_prefetch_of_memory": ("host_prefetch_batches_per_s", "memory_batches_per_s"),
    "file_warm_of_memory": ("file_warm_batches_per_s", "memory_batches_per_s"),
    "file_cold_of_memory": ("file_cold_batches_per_s", "memory_batches_per_s"),
}
# The table for people: name, rate, and the share of what, where it is one.
LOADING = (
    ("memory copied", "memcpy_bytes_per_s", None),
    ("shards to columns", "shards_to_columns_bytes_per_s", "shards_to_columns_of_memcpy"),
    ("object store to columns", "object_store_bytes_per_s", None),
    ("pyarrow alone", "pyarrow_bytes_per_s", None),
    ("Parquet to columns", "parquet_to_columns_bytes_per_s", "parquet_to_columns_of_pyarrow"),
    ("disk in order", "disk_bytes_per_s", None),
    ("disk, 4 KiB anywhere", "disk_random_reads_per_s", None),
)
BATCHES = (
    ("memory, one by one", "memory_batches_per_s", None),
    ("memory, prefetched", "host_prefetch_batches_per_s", "host_prefetch_of_memory"),
    ("file in the page cache", "file_warm_batches_per_s", "file_warm_of_memory"),
    ("file on the disk", "file_cold_batches_per_s", "file_cold_of_memory"),
)
WHOLE = {
    "shards_to_columns_of_memcpy": " of a copy",
    "parquet_to_columns_of_pyarrow": " of pyarrow",
}


def measure(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints."""
    path = directory / "columns"
    mean = np.zeros(sizes.observation_dim, np.float32)
    std = np.ones(sizes.observation_dim, np.float32)

    def open_file() -> ColumnFile:
        return write_store(
            path, sizes.shards(), "benchmark", lambda: (mean, std), lambda actions: actions
        )

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
    found |= {name: found[part] / found[whole] for name, (part, whole) in RATIOS.items()}
    # A transition is one read, or two where its records lie across the border of two pages.
    reads = found["file_cold_batches_per_s"] * sizes.rows
    return {**found, "file_cold_reads_of_disk": reads / found["disk_random_reads_per_s"]}


def text(found: dict[str, Any]) -> str:
    """The result for people."""
    sizes = f"({found['observation_dim']}, {found['action_dim']})"
    lines = [
        f"{found['transitions']:,} transitions {sizes}, {found['column_bytes'] / 1e6:,.0f} MB of"
        " columns",
        *(_line(found, *row) for row in LOADING if row[1] in found),
        f"batches of {found['batch_rows']:,} transitions",
        *(_line(found, *row) for row in BATCHES),
    ]
    return "\n".join(lines) + f"; {found['file_cold_reads_of_disk']:.0%} of the disk's reads"


def _line(found: dict[str, Any], name: str, rate: str, share: str | None) -> str:
    value, unit = found[rate], "/s"
    if rate.endswith("_bytes_per_s"):
        value, unit = value / 1e6, " MB/s"
    note = "" if share is None else f"{found[share]:.0%}{WHOLE.get(share, '')}"
    return f"  {name:<28}{value:11,.0f}{unit:<6}{note}".rstrip()


def main(
    argv: Sequence[str] | None = None,
    parser_class: Parser = argparse.ArgumentParser,
    measure_more: Callable[[Sizes], dict[str, float]] = lambda _: {},
) -> int:
    """The command `python -m cqlray.benchmarks.data`; `measure_more` adds what needs Ray."""
    parser = parser_class("cqlray benchmark data", description=ABOUT["data"])
    add = parser.add_argument
    add("--transitions", type=int, default=1_000_000)
    add("--observation-dim", type=int, default=17)
    add("--action-dim", type=int, default=6)
    add("--batch-size", type=int, default=256)
    add("--members", type=int, default=1, help="each has a batch of its own")
    add(
        "--directory",
        type=Path,
        help="where the files are made for the while [the system's temporary one]",
    )
    numbers = ("transitions", "observation_dim", "action_dim", "batch_size", "members")
    options = parse(parser, argv, positive=numbers)
    if options.directory is not None and not options.directory.is_dir():
        parser.error(f"--directory {options.directory}: no such directory")
    rows = options.batch_size * options.members
    sizes = Sizes(options.transitions, options.observation_dim, options.action_dim, rows)
    with tempfile.TemporaryDirectory(
        prefix="cqlray-benchmark-", dir=options.directory
    ) as directory:
        found = measure(sizes, Path(directory)) | measure_more(sizes)
    return show(found, text, options.json)


if __name__ == "__main__":
    sys.exit(main())
