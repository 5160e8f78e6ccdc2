"""Performance profiles (Agarwal et al. 2021, arXiv 2108.13264): the share of scores above each
threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cqlray.results.statistics.resampling import (
    Floats,
    Resampling,
    crossed,
    percentiles,
    resamples,
    score_matrix,
)


@dataclass(frozen=True)
class Profile:
    """For each threshold, the share of scores above it with a pointwise band; all [thresholds]."""

    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    resample: Resampling = crossed,
) -> Profile:
    """The share of scores above each threshold, which shows the whole distribution where an IQM is
    a single number.

    The band is pointwise: at each threshold separately, 95% of the resamples lie within it. A
    NaN among the scores makes share and band NaN.

    Args:
        scores: [members, episodes] or, with `stratified`, [members, environments]; one column for a
            share of members.
        thresholds: [thresholds], in ascending order.
        generator, num_samples, resample: of the band, as for resampling.interval.

    Raises:
        ValueError: scores are empty or not two-dimensional, or the thresholds are not numbers in
            ascending order.
    """
    values, taus = score_matrix(scores), np.asarray(thresholds, dtype=np.float64)
    if taus.ndim != 1 or taus.size == 0 or np.isnan(taus).any() or (np.diff(taus) < 0).any():
        raise ValueError("thresholds should be a list of numbers that do not fall, at least one")
    if np.isnan(values).any():
        nothing = np.full(taus.shape, np.nan)
        return Profile(taus, nothing, nothing, nothing)
    # How many thresholds lie below each score is all that a profile needs to know about it. It is
    # found once, not for each resample.
    passed = np.searchsorted(taus, values, side="left").astype(np.float64)
    resampled = resamples(
        lambda count: _shares(resample(passed, generator, count), taus.size),
        num_samples,
        values.size + taus.size,
    )
    return Profile(taus, _shares(passed[None], taus.size)[0], *percentiles(resampled))


def _shares(passed: Floats, num_thresholds: int) -> Floats:
    """How many thresholds each score exceeds, [count, members, columns] -> the share of scores
    above each threshold, [count, thresholds].
    """
    count = len(passed)
    flat = passed.reshape(count, -1).astype(np.int64)
    bins = num_thresholds + 1
    places: NDArray[np.int64] = flat + bins * np.arange(count)[:, None]
    counts = np.bincount(places.ravel(), minlength=count * bins).reshape(count, bins)
    at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # scores above at least so many thresholds
    return np.asarray(at_least[:, 1:] / flat.shape[1])
