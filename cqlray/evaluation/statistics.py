"""What a run's few seeds can honestly say: the statistics of Agarwal et al. 2021 (arXiv 2108.13264) with bootstrap intervals.

Scores are a matrix [members, columns]; members (trainings that differ in their seed) are the independent units. A column
is an episode (`two_stage` resamples) or an environment (`stratified` resamples). A statistic takes [..., members, columns]
to [...]; a matrix with a NaN has NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""[..., members, columns] -> [...]."""
Resampling = Callable[[Floats, np.random.Generator, int], Floats]
"""(values [members, columns], generator, count) -> [count, members, columns]."""

ELEMENTS_PER_CHUNK = 2**21  # of resampled scores held at once: 16 MiB


class Interval(NamedTuple):
    """A confidence interval, in the scores' own unit."""

    low: float
    high: float


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of all entries, whatever their shape.

    A quarter of the entries, rounded down, is left out at each end, as scipy.stats.trim_mean(scores, 0.25) does. It is
    less moved by one lucky seed than the mean, and sees more of the data than the median. A NaN makes it NaN.

    Raises:
        ValueError: there are no scores.
    """
    flat = np.asarray(scores, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError("there are no scores")
    return float(_middle_mean(flat))


def interquartile_mean(values: Floats) -> Floats:
    """The statistic that `iqm` is of one matrix: over all entries, members and columns alike."""
    return _middle_mean(_flattened(values))


def mean(values: Floats) -> Floats:
    """Mean of all entries."""
    return np.asarray(values.mean(axis=(-2, -1)))


def median(values: Floats) -> Floats:
    """Median of all entries: for [members, episodes] of one environment."""
    return np.asarray(np.median(_flattened(values), axis=-1))


def median_of_environments(values: Floats) -> Floats:
    """Median over environments of the members' mean: what papers on suites call the median."""
    return np.asarray(np.median(values.mean(axis=-2), axis=-1))


def optimality_gap(values: Floats, threshold: float = 100.0) -> Floats:
    """How far the entries fall short of a threshold on average; what lies above it counts as just reaching it.

    The default is for normalised scores, where 100 is the reference. Lower is better.
    """
    return np.asarray(threshold - np.minimum(values, threshold).mean(axis=(-2, -1)))


def estimate(scores: ArrayLike, statistic: Statistic) -> float:
    """The statistic of scores [members, columns] themselves.

    Raises:
        ValueError: scores are empty or not two-dimensional.
    """
    return float(statistic(score_matrix(scores)))


def two_stage(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, episodes]: members with replacement, then episodes within each drawn member.

    Members are the independent units: all episodes of one member share one training, with its seed's luck, so twice as
    many episodes do not make twice as much evidence about the algorithm. Resampling the pooled episodes would claim that
    they do, and give far too narrow an interval. That members are tested on the same episode seeds is not made use of.
    With one member only its episodes are resampled: the interval is then about that one policy, not about training.
    """
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    within = generator.integers(episodes, size=(count, members, episodes))
    return values[drawn, within]


def stratified(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, environments]: members with replacement within each environment, environments kept.

    Every environment was trained on afresh, so a row's entries are no more alike than those of different rows. The
    environments are taken as the ones that matter, not as a sample of others.
    """
    members, environments = values.shape
    drawn = generator.integers(members, size=(count, members, environments))
    return values[drawn, np.arange(environments)]


def interval(
    scores: ArrayLike,
    statistic: Statistic,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    level: float = 0.95,
    resample: Resampling = two_stage,
) -> Interval:
    """Bootstrap interval of a statistic of scores [members, columns], by the percentile method.

    A NaN among the scores makes both ends NaN.

    Args:
        scores: [members, episodes] (returns) or, with `stratified`, [members, environments].
        statistic: `interquartile_mean`, `mean`, `median`, `optimality_gap`, ...
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples between the two ends.
        resample: `two_stage` or `stratified`.

    Raises:
        ValueError: scores are empty or not two-dimensional.
    """
    values = score_matrix(scores)
    if np.isnan(values).any():
        return Interval(float("nan"), float("nan"))
    sizes = chunks(num_samples, values.size)
    resampled = np.concatenate([statistic(resample(values, generator, size)) for size in sizes])
    low, high = percentiles(resampled, level)
    return Interval(float(low), float(high))


def iqm_interval(scores: ArrayLike, generator: np.random.Generator, num_samples: int = 2_000, level: float = 0.95) -> Interval:
    """`interval` of the IQM of scores [members, episodes], members and then episodes resampled."""
    return interval(scores, interquartile_mean, generator, num_samples, level)


def score_matrix(scores: ArrayLike) -> Floats:
    """Scores as float64 [members, columns].

    Raises:
        ValueError: they are empty or not two-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"scores have shape {values.shape}; they should be [members, episodes], at least one of each")
    return values


def chunks(num_samples: int, elements: int) -> list[int]:
    """Sizes that add up to the number of resamples, each small enough for its resamples of so many elements to be held."""
    chunk = max(1, ELEMENTS_PER_CHUNK // elements)
    return [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]


def percentiles(resampled: Floats, level: float) -> Floats:
    """[2, ...]: the ends of the middle share `level` of the first axis."""
    tail = (1.0 - level) / 2.0
    return np.asarray(np.quantile(resampled, [tail, 1.0 - tail], axis=0))


def _flattened(values: Floats) -> Floats:
    """[..., members, columns] -> [..., members * columns]."""
    return values.reshape(*values.shape[:-2], -1)


def _middle_mean(values: Floats) -> Floats:
    """[..., n] -> [...]: mean of what is left of the last axis without its lowest and highest quarter."""
    size = values.shape[-1]
    cut = size // 4
    middle = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    # partition puts NaN among the highest, which would drop it unseen
    return np.where(np.isnan(values).any(axis=-1), np.nan, middle.mean(axis=-1))
