"""Which columns of a log hold what.

A name may be a pattern (`sensor_*`); what it matches is taken in the order of the file's columns,
of several files the first one's.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cqlray.data.formats.log_reward import Expression, parse
from cqlray.data.source import listed
from cqlray.errors import UserError

# What the columns of terminated and truncated are called where they are not named.
_DEFAULT_FLAGS = (("terminated", "termination"), ("truncated", "truncation"))
# Fields of LogColumns that name no columns.
_NO_NAMES = ("episode_column", "categorical", "missing", "reward_expression")
_FILE = "FILE"  # stands for the file's name in columns.episode


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of a log are.

    Names, or patterns such as `sensor_*` for the first two and next_observation.
    """

    observation: tuple[str, ...] = ("observation*",)
    action: tuple[str, ...] = ("action*",)
    reward: str = "reward"  # or an expression over columns, as `log_reward` reads it
    # the episode's name or number; FILE+NAME: together with the file's, FILE: the file's alone
    episode: str = "episode"
    # a counter or a time; where it is named, rows are sorted by it, else they must be in order
    step: str | None = None
    # None: the column of that name (or `termination`) where there is one
    terminated: str | None = None
    truncated: str | None = None  # likewise
    next_observation: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()  # of the observations: one column of 0 and 1 per category
    missing: tuple[str, ...] = ()  # rules for missing values, as in `data/missing.py`


@dataclass(frozen=True)
class LogColumns:
    """The names of a log's columns, patterns resolved."""

    observation: tuple[str, ...]
    action: tuple[str, ...]
    reward: str
    episode: str  # FILE+ before it: each file counts its own; FILE: each file is one
    step: str | None
    terminated: str | None
    truncated: str | None
    next_observation: tuple[str, ...]
    episode_column: str | None  # None: each file is one episode
    categorical: tuple[str, ...]
    missing: tuple[str, ...]
    reward_expression: Expression | None  # where `reward` is one

    @property
    def by_file(self) -> bool:
        """Whether an episode's name counts within its file alone."""
        return self.episode != self.episode_column

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that hold numbers or vectors."""
        rewards = self.reward_expression.columns if self.reward_expression else (self.reward,)
        named = (*self.observation, *self.action, *rewards, *self.next_observation)
        return tuple(name for name in dict.fromkeys(named) if name not in self.categorical)

    @property
    def needed(self) -> tuple[str, ...]:
        """All columns, each once."""
        others = (self.episode_column, self.step, self.terminated, self.truncated)
        numbers = (*self.numbers, *self.categorical)
        return tuple(dict.fromkeys((*numbers, *(name for name in others if name is not None))))

    def described(self) -> dict[str, str | list[str]]:
        """Each option that has columns, with their names: `columns` in dataset.json."""
        return {
            option: list(named) if isinstance(named, tuple) else named
            for option, named in vars(self).items()
            if named and option not in _NO_NAMES
        }


def resolve(
    names: ColumnNames, available: Sequence[str], file: str, order: Sequence[str] | None = None
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

    _require_some(names, available)
    terminated, truncated = _flags(names, available, file)
    columns = LogColumns(
        observation=several(names.observation),
        action=several(names.action),
        reward=names.reward,
        episode=names.episode,
        step=None if names.step is None else one(names.step),
        terminated=terminated,
        truncated=truncated,
        next_observation=several(names.next_observation),
        episode_column=_episode_column(names.episode, available, file),
        categorical=several(names.categorical),
        missing=names.missing,
        reward_expression=_reward(names.reward, available, file),
    )
    _require_observed(columns, file)
    _require_single(columns, available, file)
    _require_named_once(columns, file)
    return columns


def _require_some(names: ColumnNames, available: Sequence[str]) -> None:
    """Raises UserError where no observation or no action is named."""
    for kind, patterns in (("observation", names.observation), ("action", names.action)):
        if not patterns:
            raise UserError(
                f"columns.{kind} is empty; name at least one column{_nearest(kind, available)}"
            )


def _one(name: str, available: Sequence[str], file: str) -> str:
    if name not in available:
        raise UserError(f"{file}: no column {name!r}{_nearest(name, available)}")
    return name


def _reward(name: str, available: Sequence[str], file: str) -> Expression | None:
    """The expression, or None where it is the name of a column.

    Raises:
        UserError: there is no such column, or the expression is wrong.
    """
    if name in available or not any(sign in name for sign in "+-*/%<>=(`"):
        _one(name, available, file)
        return None
    expression = parse(name)
    for column in expression.columns:
        _one(column, available, file)
    return expression


def _episode_column(name: str, available: Sequence[str], file: str) -> str | None:
    """The column in NAME, FILE+NAME or FILE."""
    if name not in available and name == _FILE:
        return None
    prefix = f"{_FILE}+"
    if name not in available and name.startswith(prefix):
        name = name.removeprefix(prefix)
    return _one(name, available, file)


def _several(
    patterns: Sequence[str], available: Sequence[str], file: str, order: Sequence[str]
) -> tuple[str, ...]:
    """The columns that each pattern matches, in the order of `order`. Columns that it does not have
    come last, and validation reports them.
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


def _flags(
    names: ColumnNames, available: Sequence[str], file: str
) -> tuple[str | None, str | None]:
    """The columns of terminated and truncated: as named, or columns of that name if there are
    any.
    """
    named = (names.terminated, names.truncated)
    free = [name for name in available if name not in named]
    terminated, truncated = (
        next((default for default in defaults if default in free), None)
        if name is None
        else _one(name, available, file)
        for name, defaults in zip(named, _DEFAULT_FLAGS, strict=True)
    )
    return terminated, truncated


def _require_single(columns: LogColumns, available: Sequence[str], file: str) -> None:
    """Raises UserError where a column that is needed stands in the file twice."""
    doubled = [column for column in columns.needed if list(available).count(column) > 1]
    if doubled:
        raise UserError(
            f"{file}: more than one column is called {doubled[0]!r}; each name must stand there"
            " once"
        )


def _require_observed(columns: LogColumns, file: str) -> None:
    """Raises UserError where a category is no observation, or its next one would not be coded."""
    for name in columns.categorical:
        if name not in columns.observation:
            raise UserError(
                f"{file}: column {name!r} is named by columns.categorical alone; name it by"
                " columns.observation, too"
            )
    if columns.next_observation and (columns.categorical or columns.missing):
        option = "categorical" if columns.categorical else "missing"
        raise UserError(
            f"{file}: columns.{option} goes without columns.next_observation; leave the latter out,"
            " and observations are taken from the rows that follow"
        )


def _require_named_once(columns: LogColumns, file: str) -> None:
    """Check that no column is named twice, by one option or by two.

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
