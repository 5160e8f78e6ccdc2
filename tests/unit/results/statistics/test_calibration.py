"""The verdict on the lower bound: right on critics made to overestimate, to underestimate, and to
be right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from cqlray.results.record import load_run
from cqlray.results.statistics.calibration import (
    BoundCheck,
    Excess,
    calibrations,
    check_bounds,
    member_excess,
)
from cqlray.results.statistics.resampling import Interval
from cqlray.results.statistics.summary import RunRecord
from tests.unit.results.run_directories import make_run, student

SWEEP = [{"conservative_weight": 5.0}, {"conservative_weight": 0.0}]
NAN = float("nan")


def constructed(
    member: int, bias: float, episodes: int = 20, updates: int = 100, keep: bool = True
) -> dict[str, Any]:
    """A test of a critic that is off by `bias` on average, over episodes that vary around it."""
    draw = np.random.default_rng([member, updates])
    values, noise = draw.normal(-60.0, 10.0, episodes), draw.normal(0.0, 4.0, episodes)
    seen, tails = 0.8 * values + noise - noise.mean(), 0.2 * values
    critic = values + bias
    row = student(
        member,
        updates,
        list(5.0 * seen),
        value=critic.mean(),
        discounted_return=seen.mean(),
        tail_value=tails.mean(),
    )
    return {**row, "excesses": (critic - seen - tails).tolist()} if keep else row


def checked(
    tmp_path: Path, rows: list[dict[str, Any]], settings: Any = ({},), seeds: int = 2
) -> list[BoundCheck]:
    return check_bounds(
        load_run(make_run(tmp_path / "run", settings, seeds, evaluations=rows)), 500, 0
    )


@pytest.mark.parametrize(
    ("bias", "held"), [(12.0, False), (-12.0, True), (0.5, None), (-0.5, None)]
)
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_critics_of_known_bias(tmp_path: Path, bias: float, held: bool | None, seeds: int) -> None:
    (check,) = checked(tmp_path, [constructed(m, bias) for m in range(seeds)], seeds=seeds)
    assert check.overall.held is held
    assert check.count(held) == seeds == len(check.members)
    low, high = check.overall.interval
    assert low < bias < high
    assert check.overall.mean == pytest.approx(bias)
    assert check.overall.episodes == 20 * seeds


def test_plain_words() -> None:
    assert Excess(-3.0, Interval(-4.0, -2.0), 20).verdict == "held"
    assert Excess(0.0, Interval(0.0, 0.0), 20).verdict == "held"  # a bound may be tight
    assert Excess(3.14159, Interval(2.0, 4.0), 20).verdict == "did not hold (overestimates by 3.14)"
    assert (
        Excess(123456.7, Interval(2.0, 4e5), 20).verdict
        == "did not hold (overestimates by 123,457)"
    )
    assert Excess(1.0, Interval(-1.0, 3.0), 20).verdict == "cannot be told from 20 episodes"
    assert Excess(1.0, Interval(NAN, NAN), 1).verdict == "cannot be told from 1 episode"


def test_each_weight_has_its_verdict(tmp_path: Path) -> None:
    rows = [
        constructed(0, -10.0),
        constructed(1, -15.0),
        constructed(2, 30.0),
        constructed(3, 20.0),
    ]
    plain, conservative = checked(tmp_path, rows, SWEEP)
    assert (plain.conservative_weight, conservative.conservative_weight) == (0.0, 5.0)
    assert (sorted(plain.members), sorted(conservative.members)) == ([2, 3], [0, 1])
    assert conservative.overall.verdict == "held"
    assert plain.overall.verdict == "did not hold (overestimates by 25)"
    assert plain.overall.mean == pytest.approx(25.0)


def test_the_last_test_counts(tmp_path: Path) -> None:
    rows = [
        constructed(0, 50.0, updates=100),
        constructed(0, -9.0, updates=300),
        constructed(0, 50.0, updates=200),
    ]
    (check,) = checked(tmp_path, rows, seeds=1)
    assert check.overall.held is True


def test_members_that_disagree_leave_it_open(tmp_path: Path) -> None:
    (check,) = checked(tmp_path, [constructed(0, -20.0), constructed(1, 20.0)])
    assert check.overall.held is None
    assert (check.count(True), check.count(False), check.count(None)) == (1, 1, 0)


def test_means_are_the_summarys(tmp_path: Path) -> None:
    """The mean excess is the one that calibrations gives, with the episodes kept or
    without.
    """
    for keep in (True, False):
        record = load_run(
            make_run(
                tmp_path / str(keep), evaluations=[constructed(m, 3.0, keep=keep) for m in range(2)]
            )
        )
        (ours,), (theirs,) = check_bounds(record, 200, 0), calibrations(record)
        assert ours.overall.mean == pytest.approx(theirs.last_excess)


def test_rows_without_episodes(tmp_path: Path) -> None:
    """Older runs kept means alone: five members can speak for a weight, one or two cannot."""
    for seeds, held in ((1, None), (2, None), (5, True)):
        rows = [constructed(m, -12.0, keep=False) for m in range(seeds)]
        (check,) = checked(tmp_path / str(seeds), rows, seeds=seeds)
        assert check.overall.held is held
        assert check.count(None) == seeds
        assert check.overall.mean == pytest.approx(-12.0)


def test_too_few_episodes(tmp_path: Path) -> None:
    (one,) = checked(tmp_path / "one", [constructed(0, -50.0, episodes=1)], seeds=1)
    assert one.overall.verdict == "cannot be told from 1 episode"
    (two,) = checked(tmp_path / "two", [constructed(m, -50.0, episodes=2) for m in range(2)])
    assert two.overall.verdict == "cannot be told from 4 episodes"


def test_members_with_different_numbers_of_episodes(tmp_path: Path) -> None:
    rows = [constructed(m, 9.0, episodes=10 + m) for m in range(5)]
    (check,) = checked(tmp_path, rows, seeds=5)
    assert check.overall.held is False
    assert check.overall.episodes == 60


def test_what_was_not_finite_is_not_passed_over(tmp_path: Path) -> None:
    lost = {**constructed(0, -12.0), "value": None}
    lost["excesses"] = [None, *lost["excesses"][1:]]
    for name, row in (
        ("kept", lost),
        ("means", {k: v for k, v in lost.items() if k != "excesses"}),
    ):
        (check,) = checked(tmp_path / name, [row, constructed(1, -12.0)])
        assert [check.members[m].held for m in (0, 1)] == [None, True]
        assert check.overall.held is None
        assert np.isnan(check.overall.mean)


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert checked(tmp_path / "none", []) == []
    bare = {
        k: v
        for k, v in student(0, 100, [1.0]).items()
        if k not in ("value", "discounted_return", "tail_value")
    }
    assert checked(tmp_path / "bare", [bare]) == []


def test_the_runs_seed_decides_the_draws(tmp_path: Path) -> None:
    record: RunRecord = load_run(
        make_run(tmp_path / "run", evaluations=[constructed(m, 1.0 + m) for m in range(2)])
    )
    assert check_bounds(record, 300, 1) == check_bounds(record, 300, 1)
    assert check_bounds(record, 300, 1) != check_bounds(record, 300, 2)


def test_members_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(size=12)
    theirs = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(member_excess(values).interval, theirs, rtol=1e-10)
    with pytest.raises(ValueError, match="at least one"):
        member_excess([])


@pytest.mark.filterwarnings("error")
def test_one_episode_has_no_interval() -> None:
    alone = member_excess([-3.0])
    assert (alone.mean, alone.episodes, alone.held) == (-3.0, 1, None)
    assert np.isnan(alone.interval).all()


@pytest.mark.parametrize("episodes", [2, 5, 20])
def test_a_critic_that_is_right_is_seldom_blamed(episodes: int) -> None:
    """5% of the verdicts on noise alone say something, half of them that the bound did not hold."""
    draw = np.random.default_rng(1)
    verdicts = [member_excess(row).held for row in draw.normal(size=(4_000, episodes))]
    shares = [np.mean([verdict is kind for verdict in verdicts]) for kind in (True, False)]
    np.testing.assert_allclose(shares, 0.025, atol=0.0075)  # three standard errors


@pytest.mark.parametrize(("limit", "told"), [(20, None), (200, False)])
def test_episodes_cut_short_tell_nothing(tmp_path: Path, limit: int, told: bool | None) -> None:
    """A critic that is 10 too high at first and 20 at the end looks too low where the end counts
    for much.
    """
    weight = 0.99**limit
    row = constructed(0, 10.0 - 20.0 * weight) | {"tail_weight": weight}
    (check,) = checked(tmp_path, [row], seeds=1)
    assert (check.overall.mean < 0) is (limit == 20)
    assert check.overall.held is told
    assert ("time limit" in check.overall.verdict) is (told is None)
