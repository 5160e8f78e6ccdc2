"""What a few seeds can honestly tell: the statistics of Agarwal et al. 2021 (arXiv 2108.13264) with
bootstrap intervals.

Scores are a matrix [members, columns]; members (trainings that differ in their seed) are the
independent units. A column is an episode (for `crossed` resamples) or an environment (for
`stratified` ones). A statistic maps [..., members, columns] to [...], and a matrix with a NaN to
NaN. A member's score in an environment is its mean over episodes: `of_members` turns a statistic of
scores into one of [members, episodes]. Scores that are empty or not two-dimensional are a
ValueError.
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

LEVEL = 0.95  # the share of the resamples between the two ends of an interval
ELEMENTS_PER_CHUNK = 2**21  # resampled scores in memory at once: 16 MiB


class Interval(NamedTuple):
    """A confidence interval, in the same unit as the scores."""

    low: float
    high: float


UNKNOWN = Interval(float("nan"), float("nan"))


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of all entries, whatever their shape.

    A quarter of the entries, rounded down, is left out at each end, as
    scipy.stats.trim_mean(scores, 0.25) does. One lucky seed moves it less than the mean, and it
    uses more of the data than the median. A NaN makes it NaN.

    Raises:
        ValueError: there are no scores.
    """
    flat = np.asarray(scores, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError("there are no scores")
    return float(_middle_mean(flat))


def interquartile_mean(values: Floats) -> Floats:
    """`iqm` as a statistic: over all entries of a matrix, members and columns alike."""
    return _middle_mean(_flattened(values))


def mean(values: Floats) -> Floats:
    """Mean of all entries."""
    return np.asarray(values.mean(axis=(-2, -1)))


def median(values: Floats) -> Floats:
    """Median of all entries, for scores in one environment."""
    return np.asarray(np.median(_flattened(values), axis=-1))


def median_of_environments(values: Floats) -> Floats:
    """Median over environments of the members' mean, which papers on suites call the median."""
    return np.asarray(np.median(values.mean(axis=-2), axis=-1))


def optimality_gap(values: Floats, threshold: float = 100.0) -> Floats:
    """How far the entries fall short of a threshold on average; entries above it count as equal to
    it.

    The default is for normalised scores, where 100 is the reference. Lower is better.
    """
    return np.asarray(threshold - np.minimum(values, threshold).mean(axis=(-2, -1)))


def of_members(statistic: Statistic) -> Statistic:
    """The statistic of members' scores, applied to [..., members, episodes]: a member's score is
    the mean over its episodes.

    The middle half of all episodes would leave out easy and hard first states instead of lucky and
    unlucky trainings, and would not be comparable with other mean returns.
    """
    return lambda values: statistic(values.mean(axis=-1, keepdims=True))


def estimate(scores: ArrayLike, statistic: Statistic) -> float:
    """The statistic of the scores [members, columns], not of resamples."""
    return float(statistic(score_matrix(scores)))


def crossed(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, episodes]: members with replacement, and episodes with replacement,
    the same episodes for every member.

    Both are samples: other seeds would have trained other policies, and other episodes would have
    begun in other states. All members play the same episodes (a column has one seed), so an easy
    first state is easy for all of them and does not average out over members. Episodes drawn
    separately for each member would pretend that it does, and give far too narrow an interval (Owen
    2007, "The pigeonhole bootstrap", on resampling rows and columns). With one member, only
    episodes are resampled; the interval is then about that one policy, not about training.
    """
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    shared = generator.integers(episodes, size=(count, 1, episodes))
    return values[drawn, shared]


def crossed_means(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Each member's mean over its episodes in the resamples of `crossed`, [count, members, 1]: the
    same draws, and the same bits as the means that `of_members` takes.

    As all members have the same episodes, a resample needs each member's mean only once, however
    often the member is drawn.
    """
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    shared = generator.integers(episodes, size=(count, 1, episodes))
    means = np.take(values, shared[:, 0], axis=1).mean(axis=-1)  # [members, count]
    return np.take_along_axis(means.T[..., None], drawn, axis=1)


def stratified(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Resamples of [members, environments]: members with replacement within each environment; all
    environments are kept.

    Each environment had its own trainings, so the entries of a row are no more alike than those of
    different rows. The environments are those that matter, not a sample from others.
    """
    members, environments = values.shape
    drawn = generator.integers(members, size=(count, members, environments))
    return values[drawn, np.arange(environments)]


def interval(
    scores: ArrayLike,
    statistic: Statistic,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    resample: Resampling = crossed,
) -> Interval:
    """95% bootstrap interval of a statistic of scores [members, columns], by the percentile method.

    A NaN among the scores makes both ends NaN.

    Args:
        scores: [members, episodes] (returns) or, with `stratified`, [members, environments].
        statistic: `interquartile_mean`, `mean`, `median`, `optimality_gap`, ...
        generator: the source of the resamples.
        num_samples: how many resamples to draw.
        resample: `crossed`, `crossed_means` or `stratified`.
    """
    values = score_matrix(scores)
    if np.isnan(values).any():
        return UNKNOWN
    return percentile_interval(
        resamples(
            lambda count: statistic(resample(values, generator, count)), num_samples, values.size
        )
    )


def iqm_of_members(scores: ArrayLike) -> float:
    """IQM of the members' mean returns; scores are [members, episodes]."""
    return estimate(scores, of_members(interquartile_mean))


def iqm_interval(
    scores: ArrayLike, generator: np.random.Generator, num_samples: int = 2_000
) -> Interval:
    """The `interval` of `iqm_of_members`, with members and episodes resampled."""
    return interval(scores, interquartile_mean, generator, num_samples, crossed_means)


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


def resamples(draw: Callable[[int], Floats], num_samples: int, elements: int) -> Floats:
    """[num_samples, ...]: what `draw(count)` gives for so many resamples, [count, ...]; called
    for as many at once as fit into memory, where a resample has `elements` numbers.
    """
    chunk = max(1, ELEMENTS_PER_CHUNK // elements)
    sizes = [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]
    return np.concatenate([draw(size) for size in sizes])


def percentiles(resampled: Floats) -> Floats:
    """[2, ...]: the two ends between which the middle 95% of the first axis lie."""
    tail = (1.0 - LEVEL) / 2.0
    return np.asarray(np.quantile(resampled, [tail, 1.0 - tail], axis=0))


def percentile_interval(resampled: Floats) -> Interval:
    """The ends of `percentiles` for resamples [n] of one number."""
    return Interval(*percentiles(resampled).tolist())


def _flattened(values: Floats) -> Floats:
    """[..., members, columns] -> [..., members * columns]."""
    return values.reshape(*values.shape[:-2], -1)


def _middle_mean(values: Floats) -> Floats:
    """[..., n] -> [...]: mean over the last axis without its lowest and its highest quarter."""
    size = values.shape[-1]
    cut = size // 4
    middle = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    # Partition puts NaN among the highest, where it would be dropped unnoticed.
    return np.where(np.isnan(values).any(axis=-1), np.nan, middle.mean(axis=-1))
