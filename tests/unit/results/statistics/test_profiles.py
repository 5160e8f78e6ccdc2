"""Performance profiles: against numbers by hand and rliable's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cqlray.results.statistics import resampling as statistics
from cqlray.results.statistics.profiles import performance_profile
from cqlray.results.statistics.resampling import stratified
from tests.unit.results.statistics.test_improvement import RLIABLE, WHOLE, generator


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
    # shares are whole numbers of scores: an end may fall to either side of one
    step = 1.0 / np.size(RLIABLE[name]["first"])
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


def test_profile_refuses_and_passes_on() -> None:
    unknown = performance_profile([[1.0, np.nan]], [0.0, 1.0], generator())
    assert np.isnan([unknown.share, unknown.low, unknown.high]).all()
    with pytest.raises(ValueError, match="scores have shape"):
        performance_profile([], [0.0], generator())
    for thresholds in ([], [np.nan], [2.0, 1.0], [[1.0]]):
        with pytest.raises(ValueError, match="thresholds should"):
            performance_profile([[1.0]], thresholds, generator())
