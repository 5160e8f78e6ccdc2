"""The interquartile mean and its bootstrap interval: what a run's few seeds can honestly say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

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


def iqm_interval(scores: ArrayLike, generator: np.random.Generator, num_samples: int = 2_000, level: float = 0.95) -> Interval:
    """Bootstrap interval of the IQM of scores [members, episodes], by the percentile method.

    Each resample draws members with replacement, then episodes within each drawn member. Members are the independent
    units: all episodes of one member share one training, with its seed's luck, so twice as many episodes do not make
    twice as much evidence about the algorithm. Resampling the pooled episodes would claim that they do, and give far too
    narrow an interval. Agarwal et al. 2021 (arXiv 2108.13264) argue for IQM and bootstrapped intervals over runs.
    That members are tested on the same episode seeds is not made use of.

    With one member only its episodes are resampled: the interval is then about that one policy, not about training.
    A NaN among the scores makes both ends NaN.

    Args:
        scores: [members, episodes], returns.
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples between the two ends.

    Raises:
        ValueError: scores are empty or not two-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"scores have shape {values.shape}; they should be [members, episodes], at least one of each")
    if np.isnan(values).any():
        return Interval(float("nan"), float("nan"))
    chunk = max(1, ELEMENTS_PER_CHUNK // values.size)
    resampled = np.concatenate(
        [_resampled_iqms(values, generator, min(chunk, num_samples - done)) for done in range(0, num_samples, chunk)]
    )
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def _resampled_iqms(values: Floats, generator: np.random.Generator, count: int) -> Floats:
    """IQMs [count] of two-stage resamples of values [members, episodes]."""
    members, episodes = values.shape
    drawn = generator.integers(members, size=(count, members, 1))
    within = generator.integers(episodes, size=(count, members, episodes))
    return _middle_mean(values[drawn, within].reshape(count, -1))


def _middle_mean(values: Floats) -> Floats:
    """[..., n] -> [...]: mean of what is left of the last axis without its lowest and highest quarter."""
    size = values.shape[-1]
    cut = size // 4
    if np.isnan(values).any():  # partition would put NaN among the highest, and drop it unseen
        return np.full(values.shape[:-1], np.nan)
    middle = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    return np.asarray(middle.mean(axis=-1))
