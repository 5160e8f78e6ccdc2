"""Rewards by expressions: as Python computes them, and nothing else is executed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.checks.validation import validate
from cqlray.data.convert import write_dataset
from cqlray.data.formats import ColumnNames, open_source
from cqlray.data.formats.log_reward import parse
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import read

FUNCTIONS = {
    "min": min,
    "max": max,
    "abs": abs,
    "where": lambda condition, yes, no: yes if condition else no,
    "clip": lambda value, low, high: min(max(value, low), high),
}


def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def made(form: str, *parts: Any) -> st.SearchStrategy[str]:
        return st.builds(form.format, *parts)

    return st.one_of(
        made("({} {} {})", inner, st.sampled_from("+-*"), inner),
        made("({} {} {} <= {})", inner, st.sampled_from(["<", "==", "!=", ">="]), inner, inner),
        made("{}({}, {})", st.sampled_from(["min", "max"]), inner, inner),
        made("{}({}, {}, {})", st.sampled_from(["where", "clip"]), inner, inner, inner),
        made(
            "({})",
            st.builds("{} > 0 {} not {}".format, inner, st.sampled_from(["and", "or"]), inner),
        ),
        made("(-abs({}))", inner),
    )


EXPRESSIONS = st.recursive(st.sampled_from(["a", "b", "2", "0.5"]), deeper, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=4))
def test_expressions_have_python_s_values(text: str, rows: list[tuple[int, int]]) -> None:
    text = f"a * 0 + {text}"
    columns = dict(zip("ab", np.array(rows, np.float32).T, strict=True))
    expected = [
        float(eval(text, {"__builtins__": {}}, {**FUNCTIONS, "a": float(a), "b": float(b)}))
        for a, b in rows
    ]
    np.testing.assert_array_equal(parse(text)(columns), expected)


def frame(**changed: Any) -> pandas.DataFrame:
    columns = {
        "glucose": [100.0, 120, 180, 90],
        "insulin dose": [0.0, 1, 3, 0],
        "episode": [0] * 4,
        "done": [False, False, False, True],
    }
    return pandas.DataFrame(columns | changed)


def names(reward: str) -> ColumnNames:
    return ColumnNames(("glucose",), ("insulin dose",), reward, terminated="done")


REWARD = "-abs(glucose - 120)/100 - 0.1*(`insulin dose` > 2)"


def test_a_log_s_reward(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "log.csv", index=False)
    for data in (frame(), str(tmp_path / "log.csv")):
        source = open_source(data, names(REWARD))
        np.testing.assert_array_equal(read(source).rewards, np.float32([-0.2, 0, -0.7, -0.3]))
    written = write_dataset(source, tmp_path / "native")
    assert written["columns"]["reward"] == REWARD


def test_what_is_not_finite_is_found() -> None:
    for reward in ("log(glucose - 120)", "exp(glucose * 100)", "1/(glucose - 120)"):
        assert "not_finite" in validate(open_source(frame(), names(reward)), 1).codes
    gaps = open_source(frame(glucose=[100.0, math.nan, 180, 90]), names("where(glucose > 5, 1, 0)"))
    np.testing.assert_array_equal(read(gaps).rewards, np.float32([1, np.nan, 1, 1]))


def test_a_column_of_that_name_comes_first() -> None:
    log = frame(**{"a-b": [1.0, 2, 3, 4]})
    assert read(open_source(log, names("a-b"))).rewards.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("-glucos", "no column 'glucos'; did you mean glucose"),
        ("-`insulin`", "no column 'insulin'; did you mean insulin dose"),
        ("glucose.real + 1", r"'glucose\.real' is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("open(glucose)", "there is no function 'open'"),
        ("(lambda: glucose)()", "is not allowed"),
        ("[glucose for x in glucose] + 1", "is not allowed"),
        ("glucose + 'a'", "'a' is no number"),
        ("glucose + True", "'True' is no number"),
        ("glucose + 1j", "'1j' is no number"),
        ("abs(glucose, 2)", "abs takes 1 arguments, not 2"),
        ("glucose +", "it cannot be read"),
        ("1 + 2", "it names no column"),
        ("-" * 60 + "glucose", "nested deeper than 40 levels"),
        ("+".join(["glucose"] * 170), "more than 300 parts"),
        ("glucose" + "+1" * 1000, "longer than 2000 characters"),
        ("(" * 900 + "glucose" + ")" * 900, "it cannot be read"),
    ],
)
def test_mistakes_get_one_line(reward: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        open_source(frame(), names(reward))
    assert "\n" not in str(caught.value)
