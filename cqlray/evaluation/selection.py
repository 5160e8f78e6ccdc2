"""How far estimates made without the environment choose as its tests would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cqlray.evaluation.statistics import Floats, Interval, percentiles

UNKNOWN = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of estimates with true returns."""

    rho: float
    """In [-1, 1]; NaN where it is not defined: fewer than two pairs, or one side all the same."""
    interval: Interval
    """95% bootstrap interval."""


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation [n], [n], equals sharing their mean rank; NaN where it is not defined."""
    one, other = rankdata(first), rankdata(second)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / scale) if scale > 0.0 else float("nan")


def rank_correlation(
    estimates: ArrayLike,
    returns: ArrayLike,
    members: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    level: float = 0.95,
) -> RankCorrelation:
    """How alike estimates and true returns order the snapshots, with an interval by the percentile method.

    Snapshots of one member are alike, for they share one training: members are resampled first, then snapshots within each.
    With one member its snapshots alone. Resamples in which the correlation is not defined are left out.

    Args:
        estimates: [snapshots].
        returns: [snapshots], mean returns of the same snapshots' tests.
        members: [snapshots], whose snapshot it is.
        generator: source of the resamples.
        num_samples: resamples.
        level: share of the resamples between the two ends.

    Raises:
        ValueError: the three differ in length, or a number is not finite.
    """
    one, other, whose = (np.asarray(values, dtype=np.float64) for values in (estimates, returns, members))
    if not one.shape == other.shape == whose.shape or one.ndim != 1:
        raise ValueError(f"estimates, returns and members have shapes {one.shape}, {other.shape}, {whose.shape}; not all [n]")
    if not np.isfinite([one, other]).all():
        raise ValueError("estimates and returns must be finite")
    if len(one) < 2 or np.isnan(rho := spearman(one, other)):
        return RankCorrelation(float("nan"), UNKNOWN)
    own = [np.flatnonzero(whose == member) for member in np.unique(whose)]
    resampled = np.array([_resampled(one, other, own, generator) for _ in range(num_samples)])
    defined = resampled[~np.isnan(resampled)]
    low, high = percentiles(defined, level) if len(defined) else UNKNOWN
    return RankCorrelation(rho, Interval(float(low), float(high)))


def _resampled(one: Floats, other: Floats, own: Sequence[np.ndarray], generator: np.random.Generator) -> float:
    drawn = [own[index] for index in generator.integers(len(own), size=len(own))]
    chosen = np.concatenate([snapshots[generator.integers(len(snapshots), size=len(snapshots))] for snapshots in drawn])
    return spearman(one[chosen], other[chosen])
