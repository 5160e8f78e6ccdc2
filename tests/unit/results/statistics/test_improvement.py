"""Probability of improvement: against numbers by hand, scipy's and rliable's."""

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
from cqlray.results.statistics.improvement import probability_of_improvement

RLIABLE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "reference" / "rliable_figures.json").read_text()
)
WHOLE = st.integers(-3, 3).map(float)  # few values: many ties


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


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


def test_memory_is_bounded_and_every_sample_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = generator().normal(size=(4, 6))
    first, second = scores[:, :1], scores[:, 1:2] + 0.3
    at_once = probability_of_improvement(first, second, generator(2), num_samples=4_001)
    monkeypatch.setattr(statistics, "ELEMENTS_PER_CHUNK", 100)
    often = probability_of_improvement(first, second, generator(1), num_samples=4_001)
    np.testing.assert_allclose(often.interval, at_once.interval, atol=1.01 / 16)
