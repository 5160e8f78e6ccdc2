"""Text of a log as numbers: decimal commas, words for missing values, categories as one-hot
columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cqlray.data.episode import Array
from cqlray.data.formats.log_columns import LogColumns
from cqlray.data.source import listed
from cqlray.errors import UserError

# What stands for no value, in small letters. `nan` does not: it is read as a number, which
# validation reports.
MISSING = ("", "-", "--", "na", "n/a", "#n/a", "<na>", "null", "none")
MOST_CATEGORIES = 100
_COMMA = r"^[+-]?\d*,\d+([eE][+-]?\d+)?$"
# Such as 1,234: thousands or decimals. 0,125 and 1234,5 are decimals.
_EITHER = r"^[+-]?[1-9]\d{0,2},\d{3}$"


class NoNumberError(ValueError):
    """Text that is no number, or may be two."""

    def __init__(self, row: int, column: str, text: str, why: str) -> None:
        super().__init__(f"row {row}, column {column}: {text[:60]!r} {why}")
        self.column = column


@dataclass
class Found:
    """What reading a log's text brought to light; it grows while the log is read."""

    commas: dict[str, None] = field(default_factory=dict)  # columns with decimal commas
    points: set[str] = field(default_factory=set)  # columns of text with decimal points
    has_text: bool = False
    categories: dict[str, set[str]] = field(default_factory=dict)

    def sorted_categories(self) -> dict[str, list[str]]:
        """Each column's categories: numbers by value, else by the alphabet."""

        def key(word: str) -> tuple[bool, int, str]:
            is_number = word.removeprefix("-").isdecimal()
            return not is_number, int(word) if is_number else 0, word

        return {name: sorted(words, key=key) for name, words in self.categories.items()}

    def notes(self) -> list[str]:
        """A line for each thing."""
        lines = [f"column {name}: decimal commas" for name in self.commas]
        for name, words in self.sorted_categories().items():
            lines.append(f"column {name}: {len(words)} categories, {listed(words)}")
        return lines


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, as dictionary too."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def with_numbers(
    columns: LogColumns, batch: pa.RecordBatch, found: Found, row: int
) -> pa.RecordBatch:
    """The batch with text in columns of numbers as float64.

    Raises:
        NoNumberError: some text is no number, or may be two.
    """
    for name in columns.numbers:
        values = batch.column(name)
        if is_text(values.type):
            found.has_text = True
            numbers = _numbers(values, name, found, row)
            batch = batch.set_column(batch.schema.get_field_index(name), name, numbers)
    return batch


def _numbers(values: pa.Array, name: str, found: Found, row: int) -> pa.Array:
    texts = pc.utf8_trim_whitespace(_plain(values))
    missing = pc.is_in(pc.utf8_lower(texts), pa.array(MISSING, texts.type))
    texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
    has_comma = pc.fill_null(pc.match_substring(texts, ","), False)
    has_point = pc.fill_null(pc.match_substring(texts, "."), False)
    if pc.any(has_comma).as_py():
        texts = _with_points(texts, has_comma, name, found, row)
    elif pc.any(has_point).as_py():
        found.points.add(name)
        if name in found.commas:
            at = int(has_point.index(True).as_py())
            why = "has a point, and rows before a comma; a column has one of them"
            raise NoNumberError(row + at, name, texts[at].as_py(), why)
    try:
        return pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        at = next(i for i, text in enumerate(texts.to_pylist()) if not _is_number(text))
        raise NoNumberError(row + at, name, texts[at].as_py(), "is no number") from None


def _with_points(
    texts: pa.Array, has_comma: pa.Array, name: str, found: Found, row: int
) -> pa.Array:
    """The texts with a point for the decimal comma."""
    with_comma = texts.filter(has_comma)
    right = pc.match_substring_regex(with_comma, _COMMA)
    if not pc.all(right).as_py():
        places = np.flatnonzero(has_comma.to_numpy(zero_copy_only=False))
        at = int(places[right.index(False).as_py()])
        raise NoNumberError(row + at, name, texts[at].as_py(), "is no number")
    points = pc.fill_null(pc.match_substring(texts, "."), False)
    first = int(has_comma.index(True).as_py())
    if pc.any(points).as_py():
        other = texts[int(points.index(True).as_py())].as_py()
        why = f"and {other!r} a point; a column has one of them"
    elif name in found.points:
        why = "and rows before a point; a column has one of them"
    elif name not in found.commas and pc.all(pc.match_substring_regex(with_comma, _EITHER)).as_py():
        why = "which may part thousands or decimals; write the column with points"
    else:
        found.commas[name] = None
        return pc.replace_substring(texts, ",", ".")
    raise NoNumberError(row + first, name, texts[first].as_py(), f"has a comma, {why}")


def _is_number(text: str | None) -> bool:
    try:
        return text is None or float(text) is not None
    except ValueError:
        return False


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def words(values: pa.Array) -> pa.Array:
    """A column of categories as text; whole numbers without a point, missing ones null."""
    texts = pc.utf8_trim_whitespace(pc.cast(_plain(values), pa.string()))
    texts = pc.replace_substring_regex(texts, r"^(-?\d+)\.0+$", r"\1")
    missing = pc.is_in(pc.utf8_lower(texts), pa.array(MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), texts)


def note_categories(columns: LogColumns, batch: pa.RecordBatch, found: Found) -> None:
    """Add the batch's categories to what was found.

    Raises:
        UserError: there are too many.
    """
    for name in columns.categorical:
        known = found.categories.setdefault(name, set())
        known.update(pc.unique(words(batch.column(name))).drop_null().to_pylist())
        if len(known) > MOST_CATEGORIES:
            raise UserError(
                f"column {name} holds more than {MOST_CATEGORIES} categories; leave it out of"
                " columns.categorical, or of the log"
            )


def one_hot_names(columns: LogColumns, categories: Mapping[str, Sequence[str]]) -> LogColumns:
    """The columns with one for each category, such as `ward=ICU`, in place of each categorical."""

    def expanded() -> Iterator[str]:
        for name in columns.observation:
            found = categories.get(name)
            yield from [name] if found is None else (f"{name}={word}" for word in found)

    return dataclasses.replace(columns, observation=tuple(expanded()), categorical=())


def one_hot(
    columns: LogColumns, batch: pa.RecordBatch, categories: Mapping[str, Sequence[str]]
) -> tuple[LogColumns, pa.RecordBatch]:
    """The batch with a column of 0 and 1 for each category; NaN where there is none.

    Raises:
        UserError: a category is not among them.
    """
    for name in columns.categorical:
        texts = words(batch.column(name))
        codes = pc.index_in(texts, pa.array(categories[name], pa.string()))
        if codes.null_count != texts.null_count:
            new = next(text for text in texts.to_pylist() if text not in (None, *categories[name]))
            raise UserError(f"column {name}: the category {new!r} was not there before")
        at: Array = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        for code, word in enumerate(categories[name]):
            hot = np.where(at < 0, np.nan, at == code)
            batch = batch.append_column(f"{name}={word}", pa.array(hot, from_pandas=True))
    return one_hot_names(columns, categories), batch
