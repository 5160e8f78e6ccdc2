"""What a run's few seeds can honestly say: the statistics of Agarwal et al. 2021 (arXiv 2108.13264)
with bootstrap intervals.

Scores are a matrix [members, columns]; members (trainings that differ in their seed) are the
independent units. A column is an episode (`crossed` resamples) or an environment (`stratified`
resamples). A statistic takes [..., members, columns] to [...]; a matrix with a NaN has NaN. A
member's score in an environment is its mean over episodes: `of_members` makes a statistic of scores
one of [members, episodes].
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

    A quarter of the entries, rounded down, is left out at each end, as
    scipy.stats.trim_mean(scores, 0.25) does. It is less moved by one lucky seed than the mean, and
    sees more of the data than the median. A NaN makes it NaN.

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
    """Median of all entries: of one environment's scores."""
    return np.asarray(np.median(_flattened(values), axis=-1))


def median_of_environments(values: Floats) -> Floats:
    """Median over environments of the members' mean: what papers on suites call the median."""
    return np.asarray(np.median(values.mean(axis=-2), axis=-1))


def optimality_gap(values: Floats, threshold: float = 100.0) -> Floats:
    """How far the entries fall short of a threshold on average; what lies above it counts as just
    reaching it.

    The default is for normalised scores, where 100 is the reference. Lower is better.
    """
    return np.asarray(threshold - np.minimum(values, threshold).mean(axis=(-2, -1)))


def of_members(statistic: Statistic) -> Statistic:
    """A statistic of members' scores, taken of [..., members, episodes]: a score is the mean of a
    member's episodes.

    Were the middle half of all episodes taken instead, easy and hard first states would be left
    out, not lucky and unlucky trainings, and what is left would be no mean return to set beside
    another.
    """
    return lambda values: statistic(values.mean(axis=-1, keepdims=True))


def estimate(scores: ArrayLike, statistic: Statistic) -> float:
    """The statistic of scores [members, columns] themselves.

    Raises:
        ValueError: scores are empty or not two-dimensional.
    """
    return float(statistic(score_matrix(scores)))


def crossed(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, episodes]: members with replacement, and episodes with replacement,
    the same ones for each.

    Both are samples: other seeds would have been trained otherwise, and other episodes would have
    begun elsewhere. All members play the same episodes (a column has one seed), so an easy first
    state is easy for each of them and does not average out over members; episodes drawn for each
    member by itself would claim that it does, and give far too narrow an interval (Owen 2007, "The
    pigeonhole bootstrap", on resampling rows and columns). With one member only episodes are
    resampled: the interval is then about that one policy, not about training.
    """
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    shared = generator.integers(episodes, size=(count, 1, episodes))
    return values[drawn, shared]


def crossed_means(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Each member's mean over its episodes in resamples of `crossed`, [count, members, 1]: the same
    draws, and to the bit what `of_members` takes of them.

    Episodes are shared, so a resample needs each member's mean once, however often it is drawn.
    """
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    shared = generator.integers(episodes, size=(count, 1, episodes))
    means = np.take(values, shared[:, 0], axis=1).mean(axis=-1)  # [members, count]
    return np.take_along_axis(means.T[..., None], drawn, axis=1)


def stratified(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, environments]: members with replacement within each environment,
    environments kept.

    Every environment was trained on afresh, so a row's entries are no more alike than those of
    different rows. The environments are taken as the ones that matter, not as a sample of others.
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
    resample: Resampling = crossed,
) -> Interval:
    """Bootstrap interval of a statistic of scores [members, columns], by the percentile method.

    A NaN among the scores makes both ends NaN.

    Args:
        scores: [members, episodes] (returns) or, with `stratified`, [members, environments].
        statistic: `interquartile_mean`, `mean`, `median`, `optimality_gap`, ...
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples between the two ends.
        resample: `crossed`, `crossed_means` or `stratified`.

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


def iqm_of_members(scores: ArrayLike) -> float:
    """IQM over members [members, episodes] of their mean returns.

    Raises:
        ValueError: scores are empty or not two-dimensional.
    """
    return estimate(scores, of_members(interquartile_mean))


def iqm_interval(
    scores: ArrayLike, generator: np.random.Generator, num_samples: int = 2_000, level: float = 0.95
) -> Interval:
    """`interval` of `iqm_of_members`, members and episodes resampled."""
    return interval(scores, interquartile_mean, generator, num_samples, level, crossed_means)


def score_matrix(scores: ArrayLike) -> Floats:
    """Scores as float64 [members, columns].

    Raises:
        ValueError: they are empty or not two-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"scores have shape {values.shape}; they should be [members, episodes], at least one of"
            " each"
        )
    return values


def chunks(num_samples: int, elements: int) -> list[int]:
    """Sizes that add up to the number of resamples, each small enough for its resamples of so many
    elements to be held.
    """
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
    """[..., n] -> [...]: mean of what is left of the last axis without its lowest and highest
    quarter.
    """
    size = values.shape[-1]
    cut = size // 4
    middle = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    # partition puts NaN among the highest, which would drop it unseen
    return np.where(np.isnan(values).any(axis=-1), np.nan, middle.mean(axis=-1))
