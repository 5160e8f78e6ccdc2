"""Rules for missing values: what a policy is given is filled as rows of data are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.missing import ObservationFill, parse
from cqlray.errors import UserError

NAMES = ["a", "b", "lab=x", "lab=y"]
HOW = ["forward", "forward:1", "forward:3", "7", "-0.5", "split", "drop"]
HOW += ["indicator", "indicator:2", "indicator:forward"]
RULES = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from(["a", "b", "lab*", "lab=x", "*"]),
        st.sampled_from(HOW),
    ),
    min_size=1,
    max_size=4,
)
VALUES = st.lists(
    st.lists(st.sampled_from([math.nan, math.nan, 1.0, 2.0, 3.0]), min_size=4, max_size=4),
    min_size=1,
    max_size=12,
)


def is_for(text: str, name: str) -> bool:
    """Whether a rule is for a column."""
    pattern = text.rpartition("=")[0]
    return pattern in (name, "*") or (pattern == "lab*" and name.startswith("lab"))


def value_at(column: list[float], step: int, how: str, detail: str) -> float:
    """What a rule puts for the missing value of this step."""
    if how == "forward" or detail == "forward":
        limit = int(detail) if how == "forward" and detail else 10**9
        known = [i for i in range(step) if not math.isnan(column[i]) and step - i <= limit]
        if known:
            return column[known[-1]]
    if how == "indicator":
        return float(detail) if detail not in ("", "forward") else 0.0
    return math.nan if how == "forward" else float(how)


def treated(
    rules: list[str], name: str, column: list[float], ignored: list[bool]
) -> tuple[list[float], list[float] | None, list[str]]:
    """An episode's column after all rules; its indicators; where it is split or dropped."""
    fates, marks = ["ignored" if ignored[step] else "" for step in range(len(column))], None
    for text in [text for text in rules if is_for(text, name)]:
        how, _, detail = text.rpartition("=")[2].partition(":")
        gaps = [i for i, value in enumerate(column) if math.isnan(value) and not fates[i]]
        if how == "indicator":
            marks = marks or [0.0] * len(column)
            marks = [1.0 if i in gaps else mark for i, mark in enumerate(marks)]
        if how in ("split", "drop"):
            fates = [how if i in gaps else fate for i, fate in enumerate(fates)]
        else:
            column = [
                value_at(column, i, how, detail) if i in gaps else value
                for i, value in enumerate(column)
            ]
    return column, marks, fates


def reference(rules: list[str], rows: list[list[float]]) -> tuple[np.ndarray, list[list[str]]]:
    """An episode's rows after all rules and their indicators; for each row, its fates."""
    found = [
        treated(rules, name, list(column), [False] * len(rows))
        for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)
    ]
    marks = [marks for _, marks, _ in found if marks is not None]
    values = np.array([*(column for column, _, _ in found), *marks], np.float32).T
    return values, [list(fates) for fates in zip(*(fates for _, _, fates in found), strict=True)]


@settings(max_examples=150, deadline=None)
@given(RULES, st.lists(VALUES, min_size=1, max_size=3))
def test_observations_one_by_one(rules: list[str], episodes: list[list[list[float]]]) -> None:
    fill = ObservationFill({"rules": rules, "observation": NAMES})
    for rows in episodes:
        fill.reset()
        got = np.stack([fill(np.array(row)) for row in rows])
        np.testing.assert_array_equal(got, reference(rules, rows)[0])


@pytest.mark.parametrize(
    "text", ["a", "=0", "a=", "a=forward:0", "a=forward:x", "a=nan", "a=split:2", "a=indicator:x"]
)
def test_what_is_no_rule_is_told(text: str) -> None:
    with pytest.raises(UserError, match="it should be COLUMN=HOW, where HOW is forward"):
        parse(text)
