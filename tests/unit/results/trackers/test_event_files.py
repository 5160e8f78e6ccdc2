"""TensorBoard's event files, read by TensorBoard's own code."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cqlray.results.trackers.event_files import event_file

pytest.importorskip("tensorboard")

SCALARS = [
    ("train/td_loss", 0.5, 1),
    ("eval/return_mean", math.nan, 0),
    ("train/td_loss", 1e300, 127),
    ("train/td_loss", 2.5, 128),
    ("eval/return_mean", -3.0, 20_000),
    ("Größe", 3.0, 10**12),
    ("train/td_loss", 7.0, 5),
]


def records(data: bytes) -> Iterator[Any]:
    """The events of a file, each checksum checked."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import masked_crc32c

    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        header, event = data[at : at + 8], data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8) == (masked_crc32c(header),)
        assert struct.unpack_from("<I", data, at + 12 + length) == (masked_crc32c(event),)
        yield Event.FromString(event)
        at += 16 + length


def test_a_file_holds_the_scalars_in_their_order() -> None:
    first, *events = records(event_file(SCALARS, 123.5))
    assert first.file_version == "brain.Event:2"
    assert [event.wall_time for event in events] == [123.5] * len(SCALARS)
    found = [(event.summary.value[0].tag, event.step) for event in events]
    assert found == [(tag, step) for tag, _, step in SCALARS]
    with np.errstate(over="ignore"):
        expected = np.array([value for _, value, _ in SCALARS]).astype(np.float32)
    values = [event.summary.value[0].simple_value for event in events]
    np.testing.assert_array_equal(values, expected)


def test_a_file_without_scalars_says_its_version_alone() -> None:
    (event,) = records(event_file([], 1.0))
    assert event.file_version == "brain.Event:2"


def test_records_of_many_lengths_have_the_right_checksums() -> None:
    scalars = [("t" * (1 + index % 40), float(index), 7**index) for index in range(20)]
    scalars += [("t" * size, 0.0, size) for size in range(1, 300)]
    assert len(list(records(event_file(scalars, 2.0)))) == 1 + len(scalars)
