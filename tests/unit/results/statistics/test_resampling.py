"""Statistics and their intervals: against numbers by hand, scipy's, rliable's, and what must hold
whatever the scores.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cqlray.results.statistics import resampling as statistics
from cqlray.results.statistics.resampling import (
    Statistic,
    crossed,
    crossed_means,
    estimate,
    interquartile_mean,
    interval,
    iqm,
    iqm_interval,
    iqm_of_members,
    mean,
    median,
    median_of_environments,
    of_members,
    optimality_gap,
    stratified,
)

RLIABLE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "reference" / "rliable_figures.json").read_text()
)
RLIABLES_NAMES: dict[str, Statistic] = {
    "iqm": interquartile_mean,
    "mean": mean,
    "median": median_of_environments,
    "optimality_gap": partial(optimality_gap, threshold=1.0),
}
STATISTICS: list[Statistic] = [
    interquartile_mean,
    mean,
    median,
    median_of_environments,
    optimality_gap,
]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_iqm_by_hand() -> None:
    assert iqm([1.0, 100.0, 3.0, 2.0, 4.0, -50.0, 5.0, 6.0]) == (2 + 3 + 4 + 5) / 4
    assert iqm([[1.0, 9.0], [2.0, 4.0]]) == 3.0  # the middle half of all entries, not of each row
    assert iqm([7.0]) == 7.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0  # a quarter of three, rounded down, is none


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_iqm_is_scipys_trimmed_mean(scores: np.ndarray) -> None:
    np.testing.assert_allclose(
        iqm(scores), scipy.stats.trim_mean(scores, 0.25), rtol=1e-9, atol=1e-9
    )


def test_nan_is_not_trimmed_away() -> None:
    scores = np.arange(16.0).reshape(2, 8)
    scores[1, 3] = np.nan
    assert np.isnan(iqm(scores))
    assert np.isnan(iqm_interval(scores, generator())).all()


def test_order_of_members_and_episodes_plays_no_part() -> None:
    scores = generator().normal(size=(5, 8))
    shuffled = generator(1).permuted(scores[::-1], axis=1)
    assert iqm(shuffled) == pytest.approx(iqm(scores), rel=1e-12)
    assert iqm_of_members(shuffled) == pytest.approx(iqm_of_members(scores), rel=1e-12)


def test_iqm_of_members_by_hand() -> None:
    """An unlucky training is left out, a hard episode is not."""
    scores = [[1.0, 3.0], [-100.0, -300.0], [5.0, 7.0], [4.0, 4.0]]
    assert iqm_of_members(scores) == (2.0 + 4.0) / 2
    assert iqm_of_members([[1.0, 2.0, 3.0, -100.0]]) == -23.5  # of one member: its mean
    assert estimate(scores, of_members(median)) == 3.0
    assert (
        estimate(scores, of_members(partial(optimality_gap, threshold=5.0)))
        == (3.0 + 205.0 + 0.0 + 1.0) / 4
    )


def test_one_member_agrees_with_scipys_bootstrap() -> None:
    scores = generator().gamma(2.0, size=(1, 30))
    ours = iqm_interval(scores, generator(1), num_samples=20_000)
    theirs = scipy.stats.bootstrap(
        (scores[0],), np.mean, n_resamples=20_000, method="percentile", rng=generator(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.04 * width
    assert abs(ours.high - theirs.high) < 0.04 * width


def test_members_are_the_units() -> None:
    """Episodes that repeat their member's score add no evidence: the interval is that of the
    members' scores alone.
    """
    scores = generator().normal(size=(8, 1))
    alone = iqm_interval(scores, generator(1), num_samples=20_000)
    repeated = iqm_interval(np.repeat(scores, 50, axis=1), generator(2), num_samples=20_000)
    width = alone.high - alone.low
    assert abs(repeated.low - alone.low) < 0.1 * width
    assert abs(repeated.high - alone.high) < 0.1 * width


def test_episodes_count_within_a_member() -> None:
    """Equal members whose episodes vary still have an interval, however many they are: episodes are
    resampled.
    """
    scores = np.tile(np.arange(10.0), (400, 1))
    interval = iqm_interval(scores, generator())
    assert interval.low < 4.5 - 1.0
    assert interval.high > 4.5 + 1.0


@pytest.mark.parametrize("members", [4, 16])
@pytest.mark.parametrize(
    ("of_member", "of_episode", "noise"), [(5.0, 100.0, 5.0), (30.0, 100.0, 30.0), (50.0, 5.0, 5.0)]
)
def test_intervals_cover_the_truth(
    members: int, of_member: float, of_episode: float, noise: float
) -> None:
    """95% intervals of trainings and first states that differ hold the expected return about so
    often.

    Episodes resampled for each member by itself would hold it 60% and 42% of the time where first
    states differ most.
    """
    held = []
    for trial in range(200):
        draw = generator(trial)
        scores = of_member * draw.normal(size=(members, 1)) + of_episode * draw.normal(size=20)
        scores = scores + noise * draw.normal(size=(members, 20))
        low, high = interval(scores, mean, draw, 400)
        held.append(low <= 0.0 <= high)
    # Few members' spread is understated: four of them have 3/4 of its variance in a resample.
    assert np.mean(held) > (0.78 if members == 4 and of_member > of_episode else 0.88)


@pytest.mark.parametrize("members", [1, 4, 16])
def test_interval_holds_the_iqm(members: int) -> None:
    scores = generator().normal(size=(members, 20))
    low, high = iqm_interval(scores, generator(1))
    assert low < iqm_of_members(scores) < high


def test_fewer_members_make_it_wider() -> None:
    four = np.array([[-1.5], [-0.5], [0.5], [1.5]]) + 0.1 * generator().normal(size=(4, 20))
    scores = np.tile(four, (8, 1))
    many, few = iqm_interval(scores, generator(2)), iqm_interval(four, generator(2))
    assert few.high - few.low > 1.8 * (many.high - many.low)


def test_same_generator_same_interval() -> None:
    scores = generator().normal(size=(4, 6))
    assert iqm_interval(scores, generator(3)) == iqm_interval(scores, generator(3))
    assert iqm_interval(scores, generator(3)) != iqm_interval(scores, generator(4))


def test_memory_is_bounded_and_every_sample_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ELEMENTS_PER_CHUNK", 100)  # 4 resamples of 24 scores at once
    scores = generator().normal(size=(4, 6))
    one = iqm_interval(scores, generator(1), num_samples=1)
    assert one.low == one.high
    small = iqm_interval(scores, generator(1), num_samples=4_001)
    monkeypatch.undo()
    large = iqm_interval(scores, generator(2), num_samples=4_001)
    np.testing.assert_allclose(small, large, atol=0.2)


@pytest.mark.parametrize("scores", [[], [[]], [1.0, 2.0]])
def test_wrong_shapes_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        iqm_interval(scores, generator())
    with pytest.raises(ValueError, match="no scores"):
        iqm([])


def test_statistics_by_hand() -> None:
    scores = [[0.0, 50.0, 200.0], [20.0, 90.0, 100.0]]
    assert estimate(scores, mean) == 460.0 / 6
    assert estimate(scores, median) == 70.0
    assert estimate(scores, median_of_environments) == 70.0  # of 10, 70 and 150
    assert estimate(scores, interquartile_mean) == (20.0 + 50.0 + 90.0 + 100.0) / 4
    assert estimate(scores, optimality_gap) == pytest.approx(
        (100.0 + 50.0 + 0.0 + 80.0 + 10.0 + 0.0) / 6
    )
    assert estimate(scores, partial(optimality_gap, threshold=0.0)) == 0.0
    assert estimate([[1.0, 2.0], [3.0, 90.0]], median) == 2.5
    assert estimate([[1.0, 2.0], [3.0, 90.0]], median_of_environments) == 24.0  # of 2 and 46


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_batch_of_matrices_is_each_by_itself(statistic: Statistic) -> None:
    batch = generator().normal(60.0, 50.0, size=(7, 5, 6))
    batch[3, 2, 1] = np.nan
    together = statistic(batch)
    assert together.shape == (7,)
    np.testing.assert_array_equal(np.isnan(together), np.arange(7) == 3)
    np.testing.assert_allclose(together, [estimate(one, statistic) for one in batch], rtol=1e-12)


@pytest.mark.parametrize("resample", [crossed, stratified])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_intervals_follow_shift_and_scale(
    statistic: Statistic, resample: statistics.Resampling
) -> None:
    """The same draws of scores that were stretched and moved give the interval stretched and
    moved.
    """
    scores = generator().normal(size=(4, 6))
    low, high = interval(scores, statistic, generator(1), 300, resample=resample)
    if statistic is optimality_gap:  # its threshold goes along
        moved = interval(
            3.0 * scores + 5.0,
            partial(optimality_gap, threshold=305.0),
            generator(1),
            300,
            resample=resample,
        )
        np.testing.assert_allclose(moved, [3.0 * low, 3.0 * high], rtol=1e-9)
    else:
        moved = interval(3.0 * scores + 5.0, statistic, generator(1), 300, resample=resample)
        np.testing.assert_allclose(moved, [3.0 * low + 5.0, 3.0 * high + 5.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mean, np.mean),
        (median, np.median),
        (
            partial(optimality_gap, threshold=2.0),
            lambda x, axis: 2.0 - np.minimum(x, 2.0).mean(axis=axis),
        ),
    ],
)
@pytest.mark.parametrize("shape", [(1, 25), (25, 1)])
def test_one_row_or_column_agrees_with_scipys_bootstrap(
    ours: Statistic, theirs: Any, shape: tuple[int, int]
) -> None:
    scores = generator(5).gamma(2.0, size=25)
    own = interval(scores.reshape(shape), ours, generator(1), num_samples=20_000)
    reference = scipy.stats.bootstrap(
        (scores,), theirs, n_resamples=20_000, method="percentile", rng=generator(2)
    )
    ends = reference.confidence_interval
    np.testing.assert_allclose(own, ends, atol=0.04 * (ends.high - ends.low))


@pytest.mark.parametrize("name", RLIABLE)
@pytest.mark.parametrize("metric", RLIABLES_NAMES)
def test_rliables_estimates_and_intervals(name: str, metric: str) -> None:
    """Within 4% of the interval's width: what 20,000 resamples leave open on each side, four times
    over.
    """
    figures, statistic = RLIABLE[name], RLIABLES_NAMES[metric]
    point, low, high = figures["estimates"][metric]
    assert estimate(figures["first"], statistic) == pytest.approx(point, rel=1e-12)
    own = interval(
        figures["first"], statistic, generator(), num_samples=20_000, resample=stratified
    )
    np.testing.assert_allclose(own, [low, high], atol=0.04 * (high - low))


def test_strata_are_not_mixed() -> None:
    """Members who all score the same in each environment leave nothing open, however the
    environments differ.
    """
    scores = np.tile([1.0, 50.0, 90.0], (5, 1))
    assert interval(scores, mean, generator(), 200, resample=stratified) == (47.0, 47.0)
    low, high = interval(scores, mean, generator(), 200)
    assert low < 46.0
    assert high > 48.0


def test_members_share_the_episodes_of_a_resample() -> None:
    scores = np.arange(12.0).reshape(3, 4)
    for sample in crossed(scores, generator(), 50):
        assert (sample % 4 == sample[0] % 4).all()


def test_resamples_hold_what_was_there() -> None:
    scores = np.arange(12.0).reshape(3, 4)  # the entry in member m and column c is 4 m + c
    episodes = crossed(scores, generator(), 50)
    assert episodes.shape == (50, 3, 4)
    # a row is of one member
    assert all(len(set(row // 4)) == 1 for sample in episodes for row in sample)
    environments = stratified(scores, generator(), 50)
    assert (environments % 4 == np.arange(4)).all()
    assert any(len(set(row // 4)) > 1 for sample in environments for row in sample)


def test_intervals_refuse_and_pass_on_what_iqms_does() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        estimate([], mean)
    for resample in (crossed, stratified):
        assert np.isnan(
            interval([[1.0, np.nan], [2.0, 3.0]], median, generator(), resample=resample)
        ).all()
        with pytest.raises(ValueError, match="scores have shape"):
            interval(np.ones((0, 3)), median, generator(), resample=resample)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (5, 1), (8, 10), (3, 130), (300, 20)])
def test_means_taken_once_for_each_member_are_the_same_to_the_bit(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).normal(-500.0, 80.0, shape)
    one, other = (np.random.default_rng(5) for _ in range(2))
    whole = crossed(scores, one, 200).mean(axis=-1, keepdims=True)
    np.testing.assert_array_equal(crossed_means(scores, other, 200), whole)
