"""The values of a log's columns, from Arrow to numpy.

A column may hold numbers or vectors (lists of numbers, all of one length). A number that is null is
NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cqlray.data.episode import Array
from cqlray.data.formats.files import readable
from cqlray.data.formats.log_text import MISSING
from cqlray.data.source import narrow
from cqlray.errors import UserError

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0", *MISSING)


def matrix(
    batch: pa.RecordBatch, columns: Sequence[str], widths: dict[str, int], file: str, row: int
) -> Array:
    """[n, width of all columns] of numbers; what is null is NaN.

    Args:
        widths: each column's numbers in a row; a column that it does not have is entered, from the
            first vector met.
        row: row in the file of the batch's first row, for messages.

    Raises:
        UserError: a column holds something else, or a vector of another length.
    """
    parts = [_column(batch.column(name), name, widths, file, row) for name in columns]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _column(values: pa.Array, name: str, widths: dict[str, int], file: str, row: int) -> Array:
    if isinstance(values, pa.ExtensionArray):  # Ray's tensors are lists within
        values = values.storage
    kind = values.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        widths.setdefault(name, 1)
        return numbers(values, name, file)[:, None]
    lengths = pc.list_value_length(values)
    known = lengths.drop_null()
    if name not in widths and len(known):
        widths[name] = known[0].as_py()
    width = widths.get(name, 0)
    other = pc.indices_nonzero(pc.fill_null(pc.not_equal(lengths, width), False)).to_numpy()
    if len(other):
        found = lengths[int(other[0])]
        raise UserError(
            f"{file}, row {row + other[0]}, column {name}: {found} numbers; the first row has"
            f" {width}"
        )
    flat = numbers(pc.list_flatten(values), name, file)
    if values.null_count == 0:
        return flat.reshape(-1, width)
    whole = np.full(
        (len(values), width), np.nan, flat.dtype if flat.dtype.kind == "f" else np.float32
    )
    whole[values.is_valid().to_numpy(zero_copy_only=False)] = flat.reshape(-1, width)
    return whole


def numbers(values: pa.Array, name: str, file: str) -> Array:
    """[n] float32 (float64 where float32 would not hold them); what is null is NaN.

    Raises:
        UserError: they are no numbers.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan, np.float32)
    is_number = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    if is_number:
        values = (
            pc.cast(values, pa.float64(), safe=False)
            if not pa.types.is_boolean(kind)
            else pc.cast(values, pa.uint8())
        )
    elif not pa.types.is_floating(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        raise UserError(
            f"{file}: column {name} holds {kind}; it should hold numbers, or vectors of one length"
        )
    found: Array = values.to_numpy(zero_copy_only=False)
    return narrow(found)


def step_numbers(values: pa.Array, name: str, file: str) -> tuple[Array, bool]:
    """[n] float64 of the column that counts or times an episode's steps, text too; and whether they
    are times, in microseconds.

    Raises:
        UserError: it holds something else.
    """
    with readable(
        f"{file}, column {name}",
        "column of step numbers or of times (numbers, or text such as 2026-11-28T10:05:00)",
    ):
        if pa.types.is_dictionary(values.type):
            steps, is_time = _steps(values.dictionary)
            steps = steps.take(values.indices)
        else:
            steps, is_time = _steps(values)
        found: Array = steps.to_numpy(zero_copy_only=False)
        return found, is_time


def _steps(values: pa.Array) -> tuple[pa.Array, bool]:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            return pc.cast(pc.utf8_trim_whitespace(values), pa.float64()), False
        except pa.ArrowInvalid:
            values = _times(values)
    elif not pa.types.is_temporal(kind):
        return pc.cast(values, pa.float64(), safe=False), False
    if pa.types.is_duration(kind):
        values = pc.cast(values, pa.duration("us"), safe=False)
    elif not pa.types.is_time(kind):
        values = pc.cast(values, pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
    else:
        values = pc.cast(values, pa.time64("us"), safe=False)
    return pc.cast(pc.cast(values, pa.int64()), pa.float64(), safe=False), True


def _times(values: pa.Array) -> pa.Array:
    """Times from text as ISO 8601 has it, with time zones or without."""
    texts = pc.utf8_trim_whitespace(values)
    try:
        return pc.cast(texts, pa.timestamp("us"))
    except pa.ArrowInvalid:
        return pc.cast(texts, pa.timestamp("us", "UTC"))


def flags(values: pa.Array, name: str, file: str, row: int) -> Array:
    """[n] bool of true and false, 1 and 0, or their names; null is false.

    Raises:
        UserError: something else stands there.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return np.zeros(len(values), bool)
    if pa.types.is_boolean(kind):
        found: Array = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
        return found
    with readable(f"{file}, column {name}", "column of flags"):
        if not pa.types.is_dictionary(kind):
            values = pc.cast(values, pa.string()).dictionary_encode()
        # Each word is looked at once; the last one stands for null.
        words = pa.concat_arrays([pc.cast(values.dictionary, pa.string()), pa.array([""])])
        words = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(words, "")))
        codes = pc.fill_null(pc.cast(values.indices, pa.int64()), len(words) - 1).to_numpy()
        true = pc.is_in(words, pa.array(_TRUE)).to_numpy(zero_copy_only=False)[codes]
        false = pc.is_in(words, pa.array(_FALSE)).to_numpy(zero_copy_only=False)[codes]
    known: Array = true | false
    if not known.all():
        wrong = int(known.argmin())
        word = str(values[wrong])[:60]
        word = word if word.isprintable() else repr(word)  # a message is one line
        raise UserError(
            f"{file}, row {row + wrong}, column {name}: {word} is neither true nor false (nor 1"
            " nor 0)"
        )
    result: Array = true
    return result


def no_value(batch: pa.RecordBatch, columns: Sequence[str]) -> Array:
    """[n] bool: all of the columns are null in that row."""
    empty = np.ones(batch.num_rows, bool)
    for name in columns:
        empty &= batch.column(name).is_null().to_numpy(zero_copy_only=False)
    return empty


def runs(values: pa.Array, file: str, row: int) -> tuple[Array, list[Any]]:
    """The rows at which runs of equal values begin, and those values.

    Raises:
        UserError: one is null.
    """
    if values.null_count:
        at = pc.indices_nonzero(values.is_null())[0].as_py()
        raise UserError(
            f"{file}, row {row + at}: the episode's column is empty; every row belongs to an"
            " episode"
        )
    with readable(file, "log: its episode column should hold names or numbers"):
        coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    return starts, [coded.dictionary[int(codes[start])].as_py() for start in starts]
