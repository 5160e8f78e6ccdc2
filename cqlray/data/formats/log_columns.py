"""The columns of a log: which they are, and Arrow's values as numpy arrays.

A name may be a pattern (`sensor_*`); what it matches is taken in the order of the file's columns,
of several files the first one's. A column may hold numbers or vectors (lists of numbers, all of one
length). A number that is null is NaN.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cqlray.data.episode import Array
from cqlray.data.formats.files import readable
from cqlray.data.source import listed, narrow
from cqlray.errors import UserError

_TRUE, _FALSE = ("true", "t", "yes", "1", "1.0"), ("false", "f", "no", "0", "0.0", "")
# Where the flags' columns are not named.
_DEFAULT_FLAGS = {
    "terminated": ("terminated", "termination"),
    "truncated": ("truncated", "truncation"),
}


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of a log are.

    Names, or patterns such as `sensor_*` for the first two and next_observation.
    """

    observation: tuple[str, ...] = ("observation*",)
    action: tuple[str, ...] = ("action*",)
    reward: str = "reward"
    episode: str = "episode"  # tells episodes apart; its rows stand together
    step: str | None = None  # counts 1 up from row to row of an episode; only checked
    terminated: str | None = (
        None  # None: the column of that name (or `termination`) where there is one
    )
    truncated: str | None = None  # likewise
    next_observation: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogColumns:
    """The names of a log's columns, patterns resolved."""

    observation: tuple[str, ...]
    action: tuple[str, ...]
    reward: str
    episode: str
    step: str | None
    terminated: str | None
    truncated: str | None
    next_observation: tuple[str, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """Those that hold numbers or vectors."""
        return tuple(
            dict.fromkeys((*self.observation, *self.action, self.reward, *self.next_observation))
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """All, each once."""
        others = (self.episode, self.step, self.terminated, self.truncated)
        return tuple(dict.fromkeys((*self.numbers, *(name for name in others if name is not None))))

    def described(self) -> dict[str, str | list[str]]:
        """What dataset.json says of them, under `columns`: those of each option that has some."""
        return {
            option: list(named) if isinstance(named, tuple) else named
            for option, named in vars(self).items()
            if named
        }


def resolve(
    names: ColumnNames,
    available: Sequence[str],
    file: str,
    order: Sequence[str] | None = None,
) -> LogColumns:
    """Find the columns.

    Args:
        available: the file's columns, in its order.
        order: the columns of the log's first file, where this is another one.

    Raises:
        UserError: one is missing, stands there twice, or is named twice.
    """

    def one(name: str) -> str:
        return _one(name, available, file)

    def several(patterns: tuple[str, ...]) -> tuple[str, ...]:
        return _several(patterns, available, file, available if order is None else order)

    for kind, patterns in (("observation", names.observation), ("action", names.action)):
        if not patterns:
            raise UserError(
                f"columns.{kind} is empty; name at least one column{_nearest(kind, available)}"
            )
    flags_named = (names.terminated, names.truncated)
    free = [name for name in available if name not in flags_named]
    columns = LogColumns(
        observation=several(names.observation),
        action=several(names.action),
        reward=one(names.reward),
        episode=one(names.episode),
        step=None if names.step is None else one(names.step),
        terminated=(
            _default_flag("terminated", free) if names.terminated is None else one(names.terminated)
        ),
        truncated=(
            _default_flag("truncated", free) if names.truncated is None else one(names.truncated)
        ),
        next_observation=several(names.next_observation),
    )
    doubled = [column for column in columns.needed if list(available).count(column) > 1]
    if doubled:
        raise UserError(
            f"{file}: more than one column is called {doubled[0]!r}; each name must stand there"
            " once"
        )
    _require_named_once(columns, file)
    return columns


def _one(name: str, available: Sequence[str], file: str) -> str:
    if name not in available:
        raise UserError(f"{file}: no column {name!r}{_nearest(name, available)}")
    return name


def _several(
    patterns: Sequence[str], available: Sequence[str], file: str, order: Sequence[str]
) -> tuple[str, ...]:
    """Those that each pattern matches in their order; what `order` does not have comes last, and
    validation tells of it.
    """
    found: list[str] = []
    for pattern in patterns:
        if pattern in available or not any(sign in pattern for sign in "*?["):
            found.append(_one(pattern, available, file))
            continue
        matching = {name for name in available if fnmatchcase(name, pattern)}
        if not matching:
            raise UserError(f"{file}: no column matches {pattern!r}{_nearest(pattern, available)}")
        found += [name for name in dict.fromkeys([*order, *available]) if name in matching]
    return tuple(found)


def _default_flag(kind: str, available: Sequence[str]) -> str | None:
    return next((default for default in _DEFAULT_FLAGS[kind] if default in available), None)


def _require_named_once(columns: LogColumns, file: str) -> None:
    """Let columns of which each is one thing, and once, pass.

    Raises:
        UserError: one is named twice.
    """
    option_of: dict[str, str] = {}
    for option, named in columns.described().items():
        for column in [named] if isinstance(named, str) else named:
            if column in option_of:
                before = option_of[column]
                twice = "twice by" if before == option else f"by columns.{before} and by"
                raise UserError(
                    f"{file}: column {column!r} is named {twice} columns.{option} (patterns"
                    " included); name each column once"
                )
            option_of[column] = option


def _nearest(name: str, available: Sequence[str]) -> str:
    """The end of a message about a missing column."""
    close = difflib.get_close_matches(name.strip("*?"), available, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{meant} It has {listed(available) or 'no columns'}".replace("; It has", "; it has")


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
        raise UserError(
            f"{file}: column {name} holds {kind}; it should hold numbers, or vectors of one length"
        )
    found: Array = values.to_numpy(zero_copy_only=False)
    return narrow(found)


def step_numbers(values: pa.Array, name: str, file: str) -> Array:
    """[n] float64: the column that counts an episode's steps, text too.

    Raises:
        UserError: it holds something else.
    """
    with readable(f"{file}, column {name}", "column of step numbers"):
        found: Array = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return found


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
        words = pc.utf8_lower(
            pc.utf8_trim_whitespace(pc.fill_null(pc.cast(values, pa.string()), ""))
        )
        true = pc.is_in(words, pa.array(_TRUE)).to_numpy(zero_copy_only=False)
        known: Array = true | pc.is_in(words, pa.array(_FALSE)).to_numpy(zero_copy_only=False)
    if not known.all():
        wrong = int(known.argmin())
        raise UserError(
            f"{file}, row {row + wrong}, column {name}: {values[wrong]} is neither true nor false"
            " (nor 1 nor 0)"
        )
    result: Array = true
    return result


def no_value(batch: pa.RecordBatch, columns: Sequence[str]) -> Array:
    """[n] bool: every one of the columns is null in that row."""
    empty = np.ones(batch.num_rows, bool)
    for name in columns:
        empty &= batch.column(name).is_null().to_numpy(zero_copy_only=False)
    return empty


def runs(values: pa.Array, file: str, row: int) -> tuple[Array, list[Any]]:
    """Rows where a run of equal values begins, and those values.

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
