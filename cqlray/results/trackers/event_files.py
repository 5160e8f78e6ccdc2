"""TensorBoard's event files, made all scalars at once.

A file is a sequence of records: length (8 bytes), checksum of the length (4), an Event in protobuf,
checksum of the Event (4). TensorBoard's writer makes them one by one in Python, about 20,000 per
second, and a run of a thousand members has millions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_POLYNOMIAL = 0x82F63B78  # CRC-32C, lowest bit first
_MASK = 0xA282EAD8  # added to checksums in records
_HEADER, _FOOTER = 12, 4


def event_file(scalars: Sequence[tuple[str, float, int]], wall_time: float) -> bytes:
    """The bytes of a file of scalars, each (tag, value, step), in this order; no step is
    negative.
    """
    version = b"\x1a\x0d" + b"brain.Event:2"
    events = [_bytes(b"\x09" + np.float64(wall_time).tobytes() + version)[None]]
    indices = [np.zeros(1, np.int64)]
    places: dict[str, list[int]] = {}
    for place, (tag, _, _) in enumerate(scalars):
        places.setdefault(tag, []).append(place)
    values = np.array([value for _, value, _ in scalars], np.float64)
    steps = np.array([step for _, _, step in scalars], np.int64)
    sizes = _varint_sizes(steps)
    for tag, of_tag in places.items():
        indices_of_tag = np.array(of_tag)
        for size in np.unique(sizes[indices_of_tag]):  # events of one size form a matrix
            alike = indices_of_tag[sizes[indices_of_tag] == size]
            events.append(_events(tag, values[alike], _varints(steps[alike], size), wall_time))
            indices.append(alike + 1)
    return _records(events, indices)


def _events(tag: str, values: NDArray[np.float64], steps: Bytes, wall_time: float) -> Bytes:
    """[n, bytes]: an Event for each value and step; steps are varints, [n, bytes]."""
    name = tag.encode()
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite
        numbers = values.astype("<f4").view(np.uint8).reshape(-1, 4)
    value = _field(0x0A, name) + b"\x15"
    summary = b"\x0a" + _varint(len(value) + 4) + value
    parts: list[bytes | Bytes] = [
        b"\x09" + np.float64(wall_time).tobytes() + b"\x10",
        steps,
        b"\x2a" + _varint(len(summary) + 4) + summary,
        numbers,
    ]
    wide = [
        np.broadcast_to(_bytes(part), (len(values), len(part))) if isinstance(part, bytes) else part
        for part in parts
    ]
    return np.concatenate(wide, axis=1)


def _records(events: Sequence[Bytes], indices: Sequence[NDArray[np.int64]]) -> bytes:
    """The file's records, from matrices of events [n, bytes] and the position in the file of each
    of their rows.
    """
    count, longest = sum(map(len, events)), max(event.shape[1] for event in events)
    lengths = np.zeros(count, np.int64)
    aligned = np.zeros((count, longest), np.uint8)  # at the right edge, for the checksums
    for event, places in zip(events, indices, strict=True):
        lengths[places] = event.shape[1]
        aligned[places, longest - event.shape[1] :] = event
    sums = _checksums(aligned, lengths)
    headers = lengths.astype("<u8").view(np.uint8).reshape(-1, 8)
    header_sums = _checksums(headers, np.full(count, 8))
    starts = np.concatenate([[0], np.cumsum(lengths + _HEADER + _FOOTER)])
    file = np.zeros(starts[-1], np.uint8)
    for event, places in zip(events, indices, strict=True):
        parts = (headers[places], header_sums[places], event, sums[places])
        record = np.concatenate(parts, axis=1)
        file[starts[places][:, None] + np.arange(record.shape[1])] = record
    return file.tobytes()


def _checksums(aligned: Bytes, lengths: NDArray[np.int64]) -> Bytes:
    """[n, 4]: the masked CRC-32C of rows that end at the right edge, with zeros before them.

    CRC-32C starts with all bits set. Starting with no bit set and the first four bytes inverted
    gives the same result; then the zeros before a row change nothing, and all rows can be computed
    together.
    """
    rows, width = aligned.shape
    inverted = aligned.copy()
    first = (width - lengths)[:, None] + np.arange(4)
    inverted[np.arange(rows)[:, None], first] ^= 0xFF
    sums = np.zeros(rows, np.uint32)
    for column in np.ascontiguousarray(inverted.T):
        sums = _TABLE[(sums ^ column) & 0xFF] ^ (sums >> 8)
    sums = ~sums
    masked = ((sums >> 15) | (sums << 17)) + np.uint32(_MASK)
    return masked.astype("<u4").view(np.uint8).reshape(-1, 4)


def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_TABLE = _table()


def _field(key: int, content: bytes) -> bytes:
    return bytes([key]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    steps = np.array([number], np.int64)
    return _varints(steps, _varint_sizes(steps)[0]).tobytes()


def _varint_sizes(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bytes each number takes as a varint, which has seven bits in a byte."""
    limits = 1 << (7 * np.arange(1, 9, dtype=np.int64))
    return np.searchsorted(limits, numbers, side="right") + 1


def _varints(numbers: NDArray[np.int64], size: int) -> Bytes:
    """Numbers that all take `size` bytes, as varints [n, size]."""
    parts = (numbers[:, None] >> (7 * np.arange(size))) & 0x7F
    parts[:, : size - 1] |= 0x80
    return parts.astype(np.uint8)


def _bytes(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)
