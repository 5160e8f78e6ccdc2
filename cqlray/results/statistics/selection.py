"""How far estimates made without the environment choose as its tests would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cqlray.results.statistics.resampling import Floats, Interval, chunks, percentiles

UNKNOWN = Interval(float("nan"), float("nan"))
LEAST_MEMBERS = 3  # of which an order says something


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of estimates with true returns."""

    rho: float
    """In [-1, 1]; NaN where it is not defined: fewer than two pairs, or one side all the same."""
    interval: Interval
    """95% bootstrap interval."""


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation [n], [n], equals sharing their mean rank; NaN where it is not
    defined.
    """
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
    """How alike estimates and true returns order the snapshots, with an interval by the percentile
    method.

    Snapshots of one member are alike, for they share one training: members are resampled first,
    then snapshots within each. With one member its snapshots alone. Resamples in which the
    correlation is not defined are left out.

    Args:
        estimates: [snapshots].
        returns: [snapshots], mean returns of the same snapshots' tests.
        members: [snapshots], whose snapshot it is.
        generator, num_samples, level: of the interval, as for resampling.interval.

    Raises:
        ValueError: the three differ in length, or a number is not finite.
    """
    one, other, whose = _columns(estimates, returns, members)
    if len(one) < 2 or np.isnan(rho := spearman(one, other)):
        return RankCorrelation(float("nan"), UNKNOWN)
    own = [np.flatnonzero(whose == member) for member in np.unique(whose)]
    return _with_interval(
        rho, np.array([_resampled(one, other, own, generator) for _ in range(num_samples)]), level
    )


def rank_correlation_among_members(
    estimates: ArrayLike,
    returns: ArrayLike,
    members: ArrayLike,
    updates: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
    level: float = 0.95,
) -> RankCorrelation:
    """How alike estimates and true returns order members after equal updates, which is what a
    choice of a member asks.

    Over all snapshots together the order is mostly that of training's progress: what rises with the
    updates, whatever it is, agrees with returns that rise too. Here it is the mean of the rank
    correlations at each update count that LEAST_MEMBERS members share, where it is defined. For the
    interval members are resampled, each with all its snapshots.

    Args:
        estimates: [snapshots].
        returns: [snapshots], mean returns of the same snapshots' tests.
        members: [snapshots], whose snapshot it is.
        updates: [snapshots], after how many updates; a member has one snapshot of each count.
        generator, num_samples, level: of the interval, as for resampling.interval.

    Raises:
        ValueError: the four differ in length, or an estimate or return is not finite.
    """
    first, second = _shared_counts(*_columns(estimates, returns, members, updates))
    rho = float(_mean_of_defined(_spearman_of_rows(first, second)))
    if np.isnan(rho):
        return RankCorrelation(float("nan"), UNKNOWN)
    resampled = []
    for size in chunks(num_samples, first.size):
        drawn = generator.integers(first.shape[1], size=(size, first.shape[1]))
        rows = [
            grid[:, drawn].swapaxes(0, 1).reshape(-1, grid.shape[1]) for grid in (first, second)
        ]
        resampled.append(_mean_of_defined(_spearman_of_rows(*rows).reshape(size, -1)))
    return _with_interval(rho, np.concatenate(resampled), level)


def _with_interval(rho: float, resampled: Floats, level: float) -> RankCorrelation:
    """Resamples in which the correlation is not defined, NaN, are left out."""
    defined = resampled[~np.isnan(resampled)]
    low, high = percentiles(defined, level) if len(defined) else UNKNOWN
    return RankCorrelation(rho, Interval(float(low), float(high)))


def mean_spearman_among_members(
    first: ArrayLike, second: ArrayLike, members: ArrayLike, updates: ArrayLike
) -> float:
    """The correlation of `rank_correlation_among_members` without an interval, of any two numbers
    of each snapshot.
    """
    return float(
        _mean_of_defined(
            _spearman_of_rows(*_shared_counts(*_columns(first, second, members, updates)))
        )
    )


def _columns(*values: ArrayLike) -> list[Floats]:
    """Estimates, returns and what else there is of the same snapshots, each [n].

    Raises:
        ValueError: see who calls this.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in values]
    shapes = [column.shape for column in columns]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"estimates, returns and what is of the same snapshots have shapes {shapes}; not"
            " all [n]"
        )
    if not np.isfinite(columns[:2]).all():
        raise ValueError("estimates and returns must be finite")
    return columns


def _grid(values: Floats, members: Floats, updates: Floats) -> Floats:
    """[update counts, members]; NaN where there is no such snapshot."""
    rows, columns = (np.unique(labels, return_inverse=True) for labels in (updates, members))
    grid = np.full((len(rows[0]), len(columns[0])), np.nan)
    grid[rows[1], columns[1]] = values
    return grid


def _shared_counts(
    one: Floats, other: Floats, members: Floats, updates: Floats
) -> tuple[Floats, Floats]:
    """[update counts, members] twice: the counts that LEAST_MEMBERS members share."""
    grids = _grid(one, members, updates), _grid(other, members, updates)
    shared = (~np.isnan(grids[0])).sum(axis=1) >= LEAST_MEMBERS
    return grids[0][shared], grids[1][shared]


def _spearman_of_rows(first: Floats, second: Floats) -> Floats:
    """Spearman's rank correlation of each row: [n, m], [n, m], NaN in the same places -> [n], NaN
    where it is not defined.
    """
    one, other = (rankdata(values, axis=1, nan_policy="omit") for values in (first, second))
    count = np.maximum(1, (~np.isnan(one)).sum(axis=1, keepdims=True))
    one, other = (ranks - np.nansum(ranks, axis=1, keepdims=True) / count for ranks in (one, other))
    scale = np.sqrt(np.nansum(one**2, axis=1) * np.nansum(other**2, axis=1))
    return np.where(
        scale > 0.0, np.nansum(one * other, axis=1) / np.where(scale > 0.0, scale, 1.0), np.nan
    )


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-1)
    return np.where(
        counts > 0, np.where(known, values, 0.0).sum(axis=-1) / np.maximum(1, counts), np.nan
    )


def _resampled(
    one: Floats, other: Floats, own: Sequence[np.ndarray], generator: np.random.Generator
) -> float:
    drawn = [own[index] for index in generator.integers(len(own), size=len(own))]
    chosen = np.concatenate(
        [snapshots[generator.integers(len(snapshots), size=len(snapshots))] for snapshots in drawn]
    )
    return spearman(one[chosen], other[chosen])
