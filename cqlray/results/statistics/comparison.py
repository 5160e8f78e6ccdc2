"""Groups of members side by side: normalised scores, probability of improvement, performance
profiles.

After Agarwal et al. 2021 (arXiv 2108.13264).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cqlray.results.statistics.resampling import (
    Floats,
    Interval,
    Resampling,
    chunks,
    crossed,
    percentiles,
    score_matrix,
)


def normalized_scores(scores: ArrayLike, random: ArrayLike, reference: ArrayLike) -> Floats:
    """Scores where `random` is 0 and `reference` 100; NaN where the two are the same.

    The map is affine and rising: it may be applied to an IQM and the ends of its interval as well
    as to the scores.

    Args:
        scores: of any shape; with several environments [members, environments].
        random, reference: one for all scores, or [environments].
    """
    zero, hundred = np.asarray(random, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    span = np.where(hundred == zero, np.nan, hundred - zero)
    return np.asarray(100.0 * (np.asarray(scores, dtype=np.float64) - zero) / span)


@dataclass(frozen=True)
class Improvement:
    """How likely a member of one group is to score higher than one of another."""

    probability: float
    """Share of the pairs of members, averaged over environments, in which the first group's scores
    higher; ties count half.
    """
    interval: Interval


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    level: float = 0.95,
) -> Improvement:
    """P(a member of the first group scores higher than one of the second): Mann and Whitney's U
    over the number of pairs.

    It says how often, not by how much. The interval is by the percentile method; members are
    resampled within each environment and group. A NaN makes all three numbers NaN.

    Args:
        first: [members, environments], or [members] of one environment: a score for each member
            (its mean return).
        second: likewise, with a number of members of its own.
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples between the two ends.

    Raises:
        ValueError: a group is empty, has other dimensions, or the groups' environments differ in
            number.
    """
    one, other = _columns(first), _columns(second)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"the groups' scores are of {one.shape[1]} and of {other.shape[1]} environments; they"
            " should be of the same"
        )
    if np.isnan(one).any() or np.isnan(other).any():
        return Improvement(float("nan"), Interval(float("nan"), float("nan")))
    above, below = one.T[:, :, None], other.T[:, None, :]
    wins = (above > below) + 0.5 * (above == below)  # [environments, first, second]
    resampled = np.concatenate(
        [
            _resampled_wins(wins, generator, size)
            for size in chunks(num_samples, one.size + other.size)
        ]
    )
    low, high = percentiles(resampled, level)
    return Improvement(float(wins.mean()), Interval(float(low), float(high)))


def _columns(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    return score_matrix(values[:, None] if values.ndim == 1 else values)


def _resampled_wins(wins: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Mean wins [count] when the members of both groups are resampled within each environment.

    A resample is how often each member was drawn: counts [count, environments, members] weigh the
    pairs.
    """
    environments, first, second = wins.shape
    one = generator.multinomial(first, np.full(first, 1.0 / first), size=(count, environments))
    other = generator.multinomial(second, np.full(second, 1.0 / second), size=(count, environments))
    against = np.matmul(one[:, :, None, :], wins)[:, :, 0, :]  # [count, environments, second]
    return np.asarray((against * other).sum(axis=(1, 2)) / wins.size)


@dataclass(frozen=True)
class Profile:
    """Performance profile: for each threshold the share of scores above it, with a pointwise band.

    All [thresholds].
    """

    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    level: float = 0.95,
    resample: Resampling = crossed,
) -> Profile:
    """The share of scores above each threshold: the whole distribution, where an IQM is one number
    of it.

    The band is pointwise: at each threshold by itself it holds `level` of the resamples. A NaN
    among the scores makes share and band NaN.

    Args:
        scores: [members, episodes] or, with `stratified`, [members, environments]; one column for a
            share of members.
        thresholds: [thresholds], not falling.
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples within the band.
        resample: `crossed` or `stratified`.

    Raises:
        ValueError: scores are empty or not two-dimensional, or the thresholds are not numbers that
            do not fall.
    """
    values, taus = score_matrix(scores), np.asarray(thresholds, dtype=np.float64)
    if taus.ndim != 1 or taus.size == 0 or np.isnan(taus).any() or (np.diff(taus) < 0).any():
        raise ValueError("thresholds should be a list of numbers that do not fall, at least one")
    if np.isnan(values).any():
        nothing = np.full(taus.shape, np.nan)
        return Profile(taus, nothing, nothing, nothing)
    # Thresholds below each score: all that a profile needs to know of it, and found once, not for
    # each resample.
    passed = np.searchsorted(taus, values, side="left").astype(np.float64)
    sizes = chunks(num_samples, values.size + taus.size)
    resampled = np.concatenate(
        [_shares(resample(passed, generator, size), taus.size) for size in sizes]
    )
    low, high = percentiles(resampled, level)
    return Profile(taus, _shares(passed[None], taus.size)[0], low, high)


def _shares(passed: Floats, num_thresholds: int) -> Floats:
    """[count, members, columns], how many thresholds each score lies above -> [count, thresholds],
    share above each.
    """
    count = len(passed)
    flat = passed.reshape(count, -1).astype(np.int64)
    bins = num_thresholds + 1
    places: NDArray[np.int64] = flat + bins * np.arange(count)[:, None]
    counts = np.bincount(places.ravel(), minlength=count * bins).reshape(count, bins)
    at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # scores above at least so many thresholds
    return np.asarray(at_least[:, 1:] / flat.shape[1])
