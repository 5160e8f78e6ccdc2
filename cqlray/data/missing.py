"""What is done about missing values, by column: rules in the order in which they are given.

`glucose=forward:3` holds the last value for 3 steps at most, `meal=0` is a constant,
`lab*=indicator` adds a column that is 1 where the value is missing, `*=split` ends the episode
there, as a truncation, `*=drop` leaves the episode out. What one rule leaves goes to the next that
matches.

The same rules fill a block of rows here, and one observation after another for a policy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from cqlray.data.episode import Array
from cqlray.errors import UserError
from cqlray.storage.rows import MissingRules

_FORMS = (
    "COLUMN=HOW, where HOW is forward, forward:STEPS, a number, indicator, indicator:forward,"
    " indicator:NUMBER, split or drop"
)
_HOW = re.compile(r"(forward|indicator|split|drop)(?::(.+))?")


@dataclass(frozen=True)
class Rule:
    """What is done about the missing values of some columns."""

    pattern: str
    how: str  # forward, constant, indicator, split or drop
    forward: bool = False  # hold the last value
    limit: int | None = None  # for so many steps at most
    constant: float | None = None  # fill what is left with this
    text: str = ""  # as it was given

    def matches(self, name: str) -> bool:
        """Whether the rule is for this column."""
        return name == self.pattern or fnmatchcase(name, self.pattern)


def parse(text: str) -> Rule:
    """A rule from its text.

    Raises:
        UserError: it is none.
    """
    pattern, equals, how = text.rpartition("=")
    wrong = UserError(f"columns.missing {text!r}: it should be {_FORMS}")
    if not equals or not pattern:
        raise wrong
    found = _HOW.fullmatch(how)
    if found is None:
        return Rule(pattern, "constant", constant=_number(how, wrong), text=text)
    kind, detail = found[1], found[2]
    if kind == "forward":
        if detail is not None and (not detail.isdecimal() or int(detail) < 1):
            raise wrong
        return Rule(pattern, kind, True, int(detail) if detail else None, text=text)
    if kind == "indicator":
        forward = detail == "forward"
        value = 0.0 if detail is None or forward else _number(detail, wrong)
        return Rule(pattern, kind, forward, constant=value, text=text)
    if detail is not None:
        raise wrong
    return Rule(pattern, kind, text=text)


def _number(text: str, wrong: UserError) -> float:
    try:
        value = float(text)
    except ValueError:
        raise wrong from None
    if not np.isfinite(value):
        raise wrong
    return value


def chosen(rules: Sequence[Rule], names: Sequence[str]) -> Array:
    """[R, D] bool: which rule is for which column."""
    return np.array([[rule.matches(name) for name in names] for rule in rules], bool).reshape(
        len(rules), len(names)
    )


def indicated(rules: Sequence[Rule], names: Sequence[str]) -> Array:
    """[D] bool: the columns that get an indicator."""
    marks = [rule.how == "indicator" for rule in rules]
    return np.asarray(chosen(rules, names)[marks].any(axis=0))


def filled(rule: Rule, values: Array, gaps: Array, starts: Array) -> None:
    """Fill the gaps in place as the rule says; a constant may be one that the rule does not have.

    Args:
        values: [n, D].
        gaps: [n, D] bool: where this rule is to fill.
        starts: [n] int: the first row of each row's episode.
    """
    if rule.forward:
        rows = np.arange(len(values))[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(values), -1, rows), axis=0)
        held = gaps & (last >= starts[:, None])
        if rule.limit is not None:
            held &= rows - last <= rule.limit
        row, column = np.nonzero(held)
        values[row, column] = values[last[row, column], column]
    if rule.constant is not None:
        values[gaps & np.isnan(values)] = rule.constant


class ObservationFill:
    """Fills observations one after another as the data that a policy was trained on was filled.

    Args:
        description: `missing` of dataset.json.
    """

    def __init__(self, description: MissingRules) -> None:
        self.names: list[str] = description["observation"]
        self.rules = [parse(text) for text in description["rules"]]
        self.chosen = chosen(self.rules, self.names)
        self.indicated = indicated(self.rules, self.names)
        self.reset()

    def reset(self) -> None:
        """Begin an episode: nothing is known of earlier steps."""
        self.last = np.full((len(self.rules), len(self.names)), np.nan, np.float32)
        self.age = np.zeros((len(self.rules), len(self.names)), np.int64)

    def __call__(self, observation: Array) -> Array:
        """[D + K] float32: the observation of the next step, [D], filled, and its indicators. What
        no rule fills stays NaN: training left such steps out.
        """
        values = np.array(observation, np.float32)
        marks, left = np.zeros(len(values), np.float32), np.zeros(len(values), bool)
        for index, rule in enumerate(self.rules):
            gaps = np.isnan(values) & self.chosen[index] & ~left
            if rule.how in ("split", "drop"):
                left |= gaps
            if rule.how == "indicator":
                marks[gaps] = 1.0
            known = ~np.isnan(values)
            self.last[index][known] = values[known]
            self.age[index] = np.where(known, 0, self.age[index] + 1)
            if rule.forward:
                within = gaps if rule.limit is None else gaps & (self.age[index] <= rule.limit)
                values[within] = self.last[index][within]
            if rule.constant is not None:
                values[gaps & np.isnan(values)] = rule.constant
        return np.concatenate([values, marks[self.indicated]])
