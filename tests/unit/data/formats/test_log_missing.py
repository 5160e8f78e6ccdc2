"""Missing values of a log: filled, marked, split and left out as a plain reference does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.card import card
from cqlray.data.checks.validation import validate
from cqlray.data.convert import native_shards, write_dataset
from cqlray.data.formats import ColumnNames, open_source
from cqlray.data.missing import ObservationFill
from cqlray.errors import UserError
from cqlray.results.report.dataset_card import card_lines
from cqlray.results.report.dataset_card_page import write_card
from tests.unit.data.formats.test_round_trips import read
from tests.unit.data.test_missing import NAMES, RULES, reference, treated

N = math.nan
Row = tuple[list[float], float, float, bool]  # observation, action, reward, terminated


def columns(rules: list[str], **changed: Any) -> ColumnNames:
    given = {"observation": tuple(NAMES), "action": ("u",), "reward": "r", "missing": tuple(rules)}
    return ColumnNames(**given | changed)


def frame_of(episodes: list[list[Row]]) -> pandas.DataFrame:
    rows = [
        [*row[0], *row[1:], number, step]
        for number, episode in enumerate(episodes)
        for step, row in enumerate(episode)
    ]
    names = [*NAMES, "u", "r", "terminated", "episode", "t"]
    return pandas.DataFrame(rows, columns=names)


def parts_of(fates: list[tuple[list[str], list[str]]]) -> list[tuple[list[int], bool]]:
    """The rows of each part, and whether it is cut; plain Python, one row at a time."""
    if any("drop" in [*seen, *others] for seen, others in fates):
        return []
    parts: list[tuple[list[int], bool]] = [([], False)]
    for row, (seen, others) in enumerate(fates):
        if "split" in seen:
            parts[-1:] = [(parts[-1][0], True), ([], False)]
        elif "split" in others:  # its observation is the final one of the part
            parts[-1:] = [([*parts[-1][0], row], True), ([], False)]
        else:
            parts[-1][0].append(row)
    return parts


def split_reference(rules: list[str], episode: list[Row]) -> list[tuple[list[Any], Any, bool]]:
    """Each part: its steps, (observation, action, reward, termination); its final observation; and
    whether it is cut.
    """
    seen, fates = reference(rules, [row[0] for row in episode])
    ignored = [i == len(episode) - 1 and not row[3] for i, row in enumerate(episode)]
    actions, _, of_actions = treated(rules, "u", [row[1] for row in episode], ignored)
    rewards, _, of_rewards = treated(rules, "r", [row[2] for row in episode], ignored)
    others = [list(pair) for pair in zip(of_actions, of_rewards, strict=True)]
    found = []
    for rows, is_cut in parts_of(list(zip(fates, others, strict=True))):
        steps = rows if rows and episode[rows[-1]][3] and not is_cut else rows[:-1]
        if steps or (rows and len(episode) == 1 and not is_cut):
            taken = [(seen[i], actions[i], rewards[i], episode[i][3]) for i in steps]
            found.append((taken, seen[rows[-1]], is_cut))
    return found


VALUE = st.sampled_from([1.0, 2.0, 3.0, 4.0, N])
EPISODE = st.lists(
    st.tuples(st.lists(VALUE, min_size=4, max_size=4), VALUE, VALUE), min_size=1, max_size=8
)


@settings(max_examples=50, deadline=None)
@given(RULES, st.lists(st.tuples(EPISODE, st.booleans()), min_size=1, max_size=4))
def test_a_log_is_treated_as_the_reference_does(rules: list[str], drawn: Any) -> None:
    rules = [
        text.replace("*=indicator", "lab*=indicator") if text.startswith("*=") else text
        for text in rules
    ]
    episodes: list[list[Row]] = [
        [(*row, ends and i == len(rows) - 1) for i, row in enumerate(rows)] for rows, ends in drawn
    ]
    for rows in episodes:  # an action that is missing in the last row makes it a closing row
        last = rows[-1]
        rows[-1] = (last[0], 1.0 if math.isnan(last[1]) else last[1], last[2], last[3])
    expected = [part for rows in episodes for part in split_reference(rules, rows)]
    pieces = list(open_source(frame_of(episodes), columns(rules)).pieces())
    got = [episode for piece in pieces for episode in piece.shard.episodes()]
    assert [len(episode) for episode in got] == [len(steps) for steps, _, _ in expected]
    for episode, (steps, final, is_cut) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(
            episode.observations, np.float32([*(s[0] for s in steps), final])
        )
        np.testing.assert_array_equal(episode.actions[:, 0], np.float32([s[1] for s in steps]))
        np.testing.assert_array_equal(episode.rewards, np.float32([s[2] for s in steps]))
        assert episode.terminations.tolist() == [s[3] for s in steps]
        assert episode.truncations.tolist() == [is_cut and s is steps[-1] for s in steps]


def log(**changed: Any) -> pandas.DataFrame:
    """Two episodes of six rows."""
    n = np.arange(12)
    named = {name: n + 0.5 * index for index, name in enumerate(NAMES)}
    ends = n == 11
    others = {"u": n / 8, "r": n + 1.0, "terminated": ends, "episode": n // 6, "t": n % 6}
    return pandas.DataFrame({**named, **others} | changed)


def with_gaps(column: str, *rows: int) -> pandas.DataFrame:
    gaps = log()
    gaps[column] = gaps[column].astype(float)
    gaps.loc[list(rows), column] = N
    return gaps


def test_what_is_done_is_counted_and_kept(tmp_path: Path) -> None:
    gaps = with_gaps("b", 2, 3, 8)
    gaps.loc[9, "a"] = N
    source = open_source(gaps, columns(["b=forward:1", "b=indicator:-1", "*=split"]))
    assert source.reading == [
        "column b: 2 missing in 2 episodes: filled with the value before (b=forward:1)",
        "column b: 1 missing in 1 episode: filled and marked in a column of its own"
        " (b=indicator:-1)",
        "column a: 1 missing in 1 episode: the episode split there, the part before it truncated"
        " (*=split)",
    ]
    assert source.columns["observation"] == [*NAMES, "b missing"]
    assert source.environment["observation_dim"] == 5
    shard = read(source)
    assert shard.lengths.tolist() == [5, 2, 2]
    assert not validate(source, 1).errors
    written = write_dataset(source, tmp_path / "native")
    assert written["columns"]["observation"] == [*NAMES, "b missing"]
    told = "\n".join(card_lines(card(written, lambda: native_shards(source)), written))
    for line in source.reading:
        assert " ".join(line.split()) in " ".join(told.split())
    write_card(card(written, lambda: native_shards(source)), written, tmp_path / "card.html")
    assert "2 missing in 2 episodes" in (tmp_path / "card.html").read_text()
    fill = ObservationFill(written["missing"])
    for row in range(6):
        given = gaps[NAMES].to_numpy()[row]
        np.testing.assert_array_equal(fill(given), shard.observations[row])


def test_without_a_choice_the_message_says_what_is_missing_and_what_to_type() -> None:
    gaps = with_gaps("b", 2, 3, 8)
    gaps.loc[1, "u"] = N
    report = validate(open_source(gaps, columns([])), 1)
    assert str(report.errors[0]) == (
        "DataFrame: the value is nan where it is missing: b 3 in 2 of 2 episodes, u 1 in 1 of 2"
        " episodes; --fix would leave out 2 of 2 episodes; instead, say by column what is done"
        " about them, such as --columns.missing 'b=forward:3' '*=split' (or =0, =indicator, =drop)"
    )
    assert not validate(open_source(gaps, columns(["b=forward:3", "*=split"])), 1).errors


def test_gaps_of_the_steps_split_episodes() -> None:
    source = open_source(log().drop([3, 10]), columns(["t=split"], step="t"))
    assert read(source).lengths.tolist() == [2, 1, 3, 1]
    assert source.reading == [
        "column t: 2 gaps in 2 episodes: the episode split there, the part before it truncated",
    ]
    assert read(source).truncations.tolist() == [False, True, False, False, False, True, False]


@pytest.mark.parametrize("rule", ["a=forward", "*=split", "*=drop"])
def test_without_gaps_nothing_changes(rule: str) -> None:
    one, other = (read(open_source(log(), columns(rules))) for rules in ([], [rule]))
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "lengths"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


@pytest.mark.parametrize(
    ("rule", "changed", "expected"),
    [
        ("x=0", {}, "'x=0' is for no column in use; these are a, b, lab=x, lab=y, u, r"),
        ("u=indicator", {}, "indicators are for observations alone, and 'u' is none"),
        ("t=0", {"step": "t"}, "gaps of the steps can be split alone"),
        ("a=0", {"next_observation": ("t",)}, r"columns\.missing goes without columns\.next_obs"),
    ],
)
def test_mistakes_get_one_line(rule: str, changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        open_source(log(), columns([rule], **changed))
