"""Open Parquet files by what their metadata says, before anything of them takes memory.

Fifty kilobytes can hold a hundred megabytes of values, or a million times that: equal values take
no space. So a file is opened only if what is held of it at a time fits in memory, and if it does
not expand as no recording does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from cqlray.errors import UserError
from cqlray.storage.outside import require_memory

# A file with more values than both, in bytes, was made to fill memory: gzip packs 1032 bytes in
# one at best, and nobody records the same number all the time.
LARGEST_EXPANSION, ALWAYS_READ = 1000, 2**30
COPIES = 3  # of the values while they are read: in the file's types, as arrays, and joined
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT96": 12}  # others: 8 bytes


def open_parquet(
    source: Any, name: str, size: int, columns: Sequence[str] | None = None, rows: int | None = None
) -> pq.ParquetFile:
    """Open a Parquet file; texts are to be read as dictionaries, so that none is held twice.

    Args:
        source: a local path, or a file that is open.
        size: bytes of the file.
        columns: those that will be read; by default all.
        rows: how many of them are held at a time; by default all.

    Raises:
        UserError: the columns take more memory than there is, or expand too far.
    """
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    names = set(schema.names if columns is None else columns)
    if texts := [field.name for field in schema if field.name in names and _is_text(field.type)]:
        file = pq.ParquetFile(source, read_dictionary=texts, metadata=file.metadata)
    whole, held = _decoded_bytes(file, names, rows)
    require_expansion(whole, size, name)
    require_memory(COPIES * held, name)
    return file


def require_expansion(decoded: int, size: int, name: str) -> None:
    """Raises UserError where so many bytes of values cannot honestly come from a file's `size`."""
    if decoded > max(LARGEST_EXPANSION * size, ALWAYS_READ):
        raise UserError(
            f"{name}: {decoded / 2**30:,.1f} GiB of values in {size:,} bytes; no recording packs"
            " like this, the file is damaged or was made to fill the memory"
        )


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "binary", "large_binary")


def _decoded_bytes(file: Any, columns: set[str], rows: int | None) -> tuple[int, int]:
    """Bytes that the columns take altogether, and at a time.

    A row of a nested column may hold all the values of its row group, and each text in it may be
    the longest.
    """
    metadata, whole, held = file.metadata, 0, 0
    leaves = [
        index
        for index in range(metadata.num_columns)
        if metadata.schema.column(index).path.partition(".")[0] in columns
    ]
    for group in range(metadata.num_row_groups):
        of_group, at_a_time = metadata.row_group(group), 0
        share = min(1.0, rows / max(of_group.num_rows, 1)) if rows is not None else 1.0
        for leaf in leaves:
            column = of_group.column(leaf)
            nested = metadata.schema.column(leaf).max_repetition_level > 0
            width = _WIDTHS.get(column.physical_type, 8)
            if nested and column.physical_type == "BYTE_ARRAY":
                width = column.total_uncompressed_size
            size = max(column.total_uncompressed_size, column.num_values * width, 0)
            whole += size
            at_a_time += int(size * (1.0 if nested else share))
        held = held + at_a_time if rows is None else max(held, at_a_time)
    return whole, held
