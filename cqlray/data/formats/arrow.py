"""Read files in Arrow's own format, whose arrays take in memory what they take in the file."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from cqlray.errors import UserError
from cqlray.storage.outside import require_memory

_MAGIC_BYTES = 8  # before the first message
_HEADER, _COMPRESSION = 2, 3  # fields of a message, and of the record batch that is its header


def read_arrow(stream: pa.NativeFile, name: str) -> pa.Table:
    """The table in an open file. What the file stores compressed is refused: how large it is would
    be known only afterwards, and Minari compresses nothing.

    Raises:
        UserError: it is compressed, or exceeds memory. What pyarrow raises of a damaged file.
    """
    require_memory(stream.size(), name)
    count = pa.ipc.open_file(stream).num_record_batches  # as the file's end has it
    stream.seek(_MAGIC_BYTES)
    messages = pa.ipc.MessageReader.open_stream(stream)
    schema = pa.ipc.read_schema(_next(messages, name))
    batches: list[pa.RecordBatch] = []
    while len(batches) < count:
        message = _next(messages, name)
        if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
            raise UserError(f"{name}: it is compressed; write it as Minari does, uncompressed")
        batches.append(pa.ipc.read_record_batch(message, schema))
    return pa.Table.from_batches(batches, schema)


def _next(messages: pa.MessageReader, name: str) -> pa.Message:
    try:
        return messages.read_next_message()
    except StopIteration:  # which a generator that reads the file must not see
        raise UserError(f"{name}: it ends before all record batches that it counts") from None


def _is_compressed(message: bytes) -> bool:
    """Whether a record batch, by its flatbuffer, has compressed arrays."""
    header = _field(message, struct.unpack_from("<I", message)[0], _HEADER)
    batch = header + struct.unpack_from("<I", message, header)[0]
    return bool(_field(message, batch, _COMPRESSION))


def _field(buffer: bytes, table: int, index: int) -> Any:
    """The place of a flatbuffer table's field; 0 where it has none."""
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    size = struct.unpack_from("<H", buffer, fields)[0]
    at = 4 + 2 * index
    offset = struct.unpack_from("<H", buffer, fields + at)[0] if at < size else 0
    return table + offset if offset else 0
