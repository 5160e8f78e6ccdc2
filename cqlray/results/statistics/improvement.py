"""Probability of improvement (Agarwal et al. 2021, arXiv 2108.13264): how often a member of one
group scores higher than a member of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cqlray.results.statistics.resampling import (
    UNKNOWN,
    Floats,
    Interval,
    percentile_interval,
    resamples,
    score_matrix,
)


@dataclass(frozen=True)
class Improvement:
    """How likely a member of one group is to score higher than one of another."""

    probability: float
    """The share of pairs of members, averaged over environments, in which the first group's member
    scores higher; ties count half.
    """
    interval: Interval


def probability_of_improvement(
    first: ArrayLike, second: ArrayLike, generator: np.random.Generator, num_samples: int = 2_000
) -> Improvement:
    """P(a member of the first group scores higher than one of the second): Mann and Whitney's U
    divided by the number of pairs.

    It tells how often, not by how much. The interval is by the percentile method; members are
    resampled within each environment and group. A NaN makes all three numbers NaN.

    Args:
        first, second: [members, environments], or [members] in one environment: each member's score
            (its mean return). The groups may differ in size.
        generator, num_samples: of the interval, as for resampling.interval.

    Raises:
        ValueError: a group is empty or has other dimensions, or the numbers of environments differ.
    """
    one, other = _columns(first), _columns(second)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"the groups' scores are of {one.shape[1]} and of {other.shape[1]} environments; they"
            " should be of the same"
        )
    if np.isnan(one).any() or np.isnan(other).any():
        return Improvement(float("nan"), UNKNOWN)
    above, below = one.T[:, :, None], other.T[:, None, :]
    wins = (above > below) + 0.5 * (above == below)  # [environments, first, second]
    resampled = resamples(
        lambda count: _resampled_wins(wins, generator, count), num_samples, one.size + other.size
    )
    return Improvement(float(wins.mean()), percentile_interval(resampled))


def _columns(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    return score_matrix(values[:, None] if values.ndim == 1 else values)


def _resampled_wins(wins: Floats, generator: np.random.Generator, count: int) -> Floats:
    """Mean wins [count] when the members of both groups are resampled within each environment.

    A resample is represented by how often each member was drawn, [count, environments, members],
    which weights the pairs.
    """
    environments, first, second = wins.shape
    one = generator.multinomial(first, np.full(first, 1.0 / first), size=(count, environments))
    other = generator.multinomial(second, np.full(second, 1.0 / second), size=(count, environments))
    against = np.matmul(one[:, :, None, :], wins)[:, :, 0, :]  # [count, environments, second]
    return np.asarray((against * other).sum(axis=(1, 2)) / wins.size)
