"""Groups of members side by side: against numbers by hand, scipy's and rliable's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cqlray.results.statistics import resampling as statistics
from cqlray.results.statistics.comparison import (
    normalized_scores,
    performance_profile,
    probability_of_improvement,
)
from cqlray.results.statistics.reference_scores import normalized
from cqlray.results.statistics.resampling import iqm, stratified

RLIABLE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "reference" / "rliable_figures.json").read_text()
)
WHOLE = st.integers(-3, 3).map(float)  # few values: many ties


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_normalized_by_hand() -> None:
    scores = normalized_scores(
        [[-1000.0, 5.0], [-150.0, 7.0]], random=[-1000.0, 5.0], reference=[-150.0, 9.0]
    )
    np.testing.assert_allclose(scores, [[0.0, 0.0], [100.0, 50.0]])
    assert normalized_scores(-575.0, -1000.0, -150.0) == 50.0 == normalized(-575.0, -1000.0, -150.0)
    np.testing.assert_array_equal(
        normalized_scores([1.0, 2.0], [3.0, 0.0], [3.0, 1.0]), [np.nan, 200.0]
    )
    assert normalized_scores([], 0.0, 1.0).shape == (0,)


def test_normalising_may_come_after_the_iqm() -> None:
    scores = generator().normal(size=(4, 9))
    assert iqm(normalized_scores(scores, -3.0, 2.0)) == pytest.approx(
        float(normalized_scores(iqm(scores), -3.0, 2.0))
    )


def test_improvement_by_hand() -> None:
    # Pairs of the first environment: 1>0, 1=1, 3>0, 3>1 -> 3.5 of 4; of the second: none of 4.
    found = probability_of_improvement(
        [[1.0, 0.0], [3.0, 0.0]], [[0.0, 9.0], [1.0, 9.0]], generator()
    )
    assert found.probability == (3.5 / 4 + 0.0) / 2
    assert found.interval.low <= found.probability <= found.interval.high
    sure = probability_of_improvement([1.0, 2.0], [0.0, 0.5, 0.7], generator())
    assert (sure.probability, *sure.interval) == (1.0, 1.0, 1.0)
    same = probability_of_improvement([4.0, 4.0], [4.0], generator())
    assert (same.probability, *same.interval) == (0.5, 0.5, 0.5)


@given(
    hnp.arrays(float, st.integers(1, 9), elements=WHOLE),
    hnp.arrays(float, st.integers(1, 9), elements=WHOLE),
)
def test_improvement_is_mann_and_whitneys_u(first: np.ndarray, second: np.ndarray) -> None:
    found = probability_of_improvement(first, second, generator(), num_samples=20)
    u = scipy.stats.mannwhitneyu(first, second).statistic
    assert found.probability == pytest.approx(u / (len(first) * len(second)), abs=1e-12)
    turned = probability_of_improvement(second, first, generator(), num_samples=20)
    assert found.probability + turned.probability == pytest.approx(1.0)


@pytest.mark.parametrize("name", RLIABLE)
def test_rliables_improvement(name: str) -> None:
    point, low, high = RLIABLE[name]["improvement"]
    found = probability_of_improvement(
        RLIABLE[name]["first"], RLIABLE[name]["second"], generator(), num_samples=20_000
    )
    assert found.probability == pytest.approx(point, rel=1e-12)
    np.testing.assert_allclose(found.interval, [low, high], atol=0.06 * (high - low))


def test_improvement_agrees_with_scipys_bootstrap() -> None:
    first, second = generator().normal(size=12), generator(1).normal(0.4, size=8)

    def share(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return (x[..., :, None] > y[..., None, :]).mean(axis=(-2, -1))

    ours = probability_of_improvement(first, second, generator(2), num_samples=20_000).interval
    theirs = scipy.stats.bootstrap(
        (first, second),
        share,
        n_resamples=20_000,
        vectorized=True,
        method="percentile",
        rng=generator(3),
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.04 * (theirs.high - theirs.low))


def test_improvement_refuses_and_passes_on() -> None:
    unknown = probability_of_improvement([1.0, np.nan], [0.0], generator())
    assert np.isnan([unknown.probability, *unknown.interval]).all()
    with pytest.raises(ValueError, match="scores have shape"):
        probability_of_improvement([], [1.0], generator())
    with pytest.raises(ValueError, match="of 2 and of 1 environments"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]], generator())


def test_profile_by_hand() -> None:
    profile = performance_profile(
        [[0.0, 1.0], [1.0, 3.0]], [-1.0, 0.0, 0.5, 1.0, 3.0, 9.0], generator()
    )
    np.testing.assert_array_equal(profile.share, [1.0, 0.75, 0.75, 0.25, 0.0, 0.0])  # above, not at
    assert (profile.low[0], profile.high[-1]) == (1.0, 0.0)


@given(hnp.arrays(float, (3, 4), elements=WHOLE), st.sets(st.integers(-4, 4), min_size=1))
def test_profile_falls_within_its_band(scores: np.ndarray, thresholds: set[int]) -> None:
    profile = performance_profile(scores, sorted(thresholds), generator(), num_samples=50)
    np.testing.assert_array_equal(
        profile.share, [(scores > tau).mean() for tau in sorted(thresholds)]
    )
    for line in (profile.share, profile.low, profile.high):
        assert (np.diff(line) <= 0).all()
        assert ((line >= 0) & (line <= 1)).all()
    assert (profile.low <= profile.high).all()


@pytest.mark.parametrize("name", RLIABLE)
def test_rliables_profile(name: str) -> None:
    share, low, high = RLIABLE[name]["profile"]
    found = performance_profile(
        RLIABLE[name]["first"],
        RLIABLE[name]["thresholds"],
        generator(),
        20_000,
        resample=stratified,
    )
    np.testing.assert_allclose(found.share, share, rtol=1e-12)
    step = 1.0 / np.size(
        RLIABLE[name]["first"]
    )  # shares are whole numbers of scores: an end may fall to either side of one
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=step + 1e-9)


def test_profile_band_is_the_shares_bootstrap() -> None:
    """At one threshold the profile is a mean, of 0 and 1: two-stage bands are those of `interval`,
    draw by draw.
    """
    scores = generator().normal(size=(5, 8))
    profile = performance_profile(scores, [0.2], generator(3), num_samples=500)
    ends = statistics.interval(scores > 0.2, statistics.mean, generator(3), num_samples=500)
    np.testing.assert_allclose([profile.low[0], profile.high[0]], ends, atol=1e-12)


def test_memory_is_bounded_and_every_sample_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, thresholds = generator().normal(size=(4, 6)), [-0.5, 0.5]
    large = performance_profile(scores, thresholds, generator(1), num_samples=4_001)
    monkeypatch.setattr(statistics, "ELEMENTS_PER_CHUNK", 100)
    small = performance_profile(scores, thresholds, generator(2), num_samples=4_001)
    np.testing.assert_allclose([small.low, small.high], [large.low, large.high], atol=1.01 / 24)
    first, second = scores[:, :1], scores[:, 1:2] + 0.3
    often = probability_of_improvement(first, second, generator(1), num_samples=4_001)
    monkeypatch.undo()
    at_once = probability_of_improvement(first, second, generator(2), num_samples=4_001)
    np.testing.assert_allclose(often.interval, at_once.interval, atol=1.01 / 16)


def test_profile_refuses_and_passes_on() -> None:
    unknown = performance_profile([[1.0, np.nan]], [0.0, 1.0], generator())
    assert np.isnan([unknown.share, unknown.low, unknown.high]).all()
    with pytest.raises(ValueError, match="scores have shape"):
        performance_profile([], [0.0], generator())
    for thresholds in ([], [np.nan], [2.0, 1.0], [[1.0]]):
        with pytest.raises(ValueError, match="thresholds should"):
            performance_profile([[1.0]], thresholds, generator())
