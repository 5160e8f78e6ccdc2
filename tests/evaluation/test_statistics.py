"""The IQM and its interval: against numbers by hand, scipy's, and what must hold whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cqlray.evaluation import statistics
from cqlray.evaluation.statistics import iqm, iqm_interval


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_iqm_by_hand() -> None:
    assert iqm([1.0, 100.0, 3.0, 2.0, 4.0, -50.0, 5.0, 6.0]) == (2 + 3 + 4 + 5) / 4
    assert iqm([[1.0, 9.0], [2.0, 4.0]]) == 3.0  # the middle half of all entries, not of each row
    assert iqm([7.0]) == 7.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0  # a quarter of three, rounded down, is none


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_iqm_is_scipys_trimmed_mean(scores: np.ndarray) -> None:
    np.testing.assert_allclose(iqm(scores), scipy.stats.trim_mean(scores, 0.25), rtol=1e-9, atol=1e-9)


def test_nan_is_not_trimmed_away() -> None:
    scores = np.arange(16.0).reshape(2, 8)
    scores[1, 3] = np.nan
    assert np.isnan(iqm(scores))
    assert np.isnan(iqm_interval(scores, generator())).all()


def test_order_of_members_and_episodes_plays_no_part() -> None:
    scores = generator().normal(size=(5, 8))
    shuffled = generator(1).permuted(scores[::-1], axis=1)
    assert iqm(shuffled) == pytest.approx(iqm(scores), rel=1e-12)


def test_one_member_agrees_with_scipys_bootstrap() -> None:
    scores = generator().gamma(2.0, size=(1, 30))
    ours = iqm_interval(scores, generator(1), num_samples=20_000)
    trimmed = lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis)  # noqa: E731
    theirs = scipy.stats.bootstrap(
        (scores[0],), trimmed, n_resamples=20_000, vectorized=True, method="percentile", rng=generator(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.04 * width
    assert abs(ours.high - theirs.high) < 0.04 * width


def test_members_are_the_units() -> None:
    """Episodes that repeat their member's score add no evidence: the interval is that of the members' scores alone."""
    scores = generator().normal(size=(8, 1))
    alone = iqm_interval(scores, generator(1), num_samples=20_000)
    repeated = iqm_interval(np.repeat(scores, 50, axis=1), generator(2), num_samples=20_000)
    width = alone.high - alone.low
    assert abs(repeated.low - alone.low) < 0.1 * width
    assert abs(repeated.high - alone.high) < 0.1 * width


def test_episodes_count_within_a_member() -> None:
    """Equal members whose episodes vary still have an interval: the second stage resamples episodes."""
    scores = np.tile(np.arange(10.0), (4, 1))
    interval = iqm_interval(scores, generator())
    assert interval.low < iqm(scores) - 0.5
    assert interval.high > iqm(scores) + 0.5


@pytest.mark.parametrize("members", [1, 4, 16])
def test_interval_holds_the_iqm(members: int) -> None:
    scores = generator().normal(size=(members, 20))
    low, high = iqm_interval(scores, generator(1))
    assert low < iqm(scores) < high


def test_fewer_members_and_higher_levels_make_it_wider() -> None:
    four = np.array([[-1.5], [-0.5], [0.5], [1.5]]) + 0.1 * generator().normal(size=(4, 20))
    scores = np.tile(four, (8, 1))
    many, few = iqm_interval(scores, generator(2)), iqm_interval(four, generator(2))
    assert few.high - few.low > 1.8 * (many.high - many.low)
    surer = iqm_interval(scores, generator(2), level=0.99)
    assert surer.low < many.low < many.high < surer.high


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
    np.testing.assert_allclose(small, large, atol=0.1)


@pytest.mark.parametrize("scores", [[], [[]], [1.0, 2.0]])
def test_wrong_shapes_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        iqm_interval(scores, generator())
    with pytest.raises(ValueError, match="no scores"):
        iqm([])
