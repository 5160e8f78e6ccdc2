"""How far estimates made without the environment lead to the same choice as tests in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cqlray.results.statistics.resampling import (
    UNKNOWN,
    Floats,
    Interval,
    percentile_interval,
    resamples,
)

LEAST_MEMBERS = 3  # whose order means anything


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of estimates with true returns."""

    rho: float
    """In [-1, 1]; NaN where it is not defined: fewer than two pairs, or one side all equal."""
    interval: Interval
    """95% bootstrap interval."""


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of [n] and [n], where equal numbers share their mean rank; NaN
    where it is not defined.
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
) -> RankCorrelation:
    """How similarly estimates and true returns rank the snapshots, with an interval by the
    percentile method.

    Snapshots of one member are alike, since they are from one training, so members are resampled
    first and then snapshots within each (with one member, only its snapshots). Resamples in which
    the correlation is not defined are left out.

    Args:
        estimates: [snapshots].
        returns: [snapshots], mean returns of the same snapshots' tests.
        members: [snapshots], the member that each is of.
        generator, num_samples: of the interval, as for resampling.interval.

    Raises:
        ValueError: the three differ in length, or a number is not finite.
    """
    one, other, whose = _columns(estimates, returns, members)
    if len(one) < 2 or np.isnan(rho := spearman(one, other)):
        return RankCorrelation(float("nan"), UNKNOWN)
    snapshots = [np.flatnonzero(whose == member) for member in np.unique(whose)]
    resampled = [_resampled(one, other, snapshots, generator) for _ in range(num_samples)]
    return _with_interval(rho, np.array(resampled))


def rank_correlation_among_members(
    estimates: ArrayLike,
    returns: ArrayLike,
    members: ArrayLike,
    updates: ArrayLike,
    generator: np.random.Generator,
    num_samples: int = 2_000,
) -> RankCorrelation:
    """How similarly estimates and true returns rank members after equal updates, which is what
    matters for choosing a member.

    The ranks of all snapshots together mostly follow training's progress: any number that rises
    with the updates agrees with returns that rise, too. This is the mean of the rank correlations
    at each update count that at least LEAST_MEMBERS members share, where one is defined. For the
    interval, members are resampled, each with all its snapshots.

    Args:
        estimates, returns, members, generator, num_samples: as for `rank_correlation`.
        updates: [snapshots], after how many updates; a member has one snapshot of each count.

    Raises:
        ValueError: the four differ in length, or an estimate or return is not finite.
    """
    first, second = _shared_counts(*_columns(estimates, returns, members, updates))
    rho = float(_mean_of_defined(_spearman_of_rows(first, second)))
    if np.isnan(rho):
        return RankCorrelation(float("nan"), UNKNOWN)

    def draw(count: int) -> Floats:
        drawn = generator.integers(first.shape[1], size=(count, first.shape[1]))
        rows = [
            grid[:, drawn].swapaxes(0, 1).reshape(-1, grid.shape[1]) for grid in (first, second)
        ]
        return _mean_of_defined(_spearman_of_rows(*rows).reshape(count, -1))

    return _with_interval(rho, resamples(draw, num_samples, first.size))


def _with_interval(rho: float, resampled: Floats) -> RankCorrelation:
    """Resamples in which the correlation is not defined (NaN) are left out."""
    defined = resampled[~np.isnan(resampled)]
    return RankCorrelation(rho, percentile_interval(defined) if len(defined) else UNKNOWN)


def mean_spearman_among_members(
    first: ArrayLike, second: ArrayLike, members: ArrayLike, updates: ArrayLike
) -> float:
    """The correlation of `rank_correlation_among_members`, without an interval, between any two
    numbers that each snapshot has.
    """
    return float(
        _mean_of_defined(
            _spearman_of_rows(*_shared_counts(*_columns(first, second, members, updates)))
        )
    )


def _columns(*values: ArrayLike) -> list[Floats]:
    """Estimates, returns and further columns about the same snapshots, each as float64 [n].

    Raises:
        ValueError: their lengths differ, or an estimate or return is not finite.
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
    """The values as [update counts, members]; NaN where there is no such snapshot."""
    rows, columns = (np.unique(labels, return_inverse=True) for labels in (updates, members))
    grid = np.full((len(rows[0]), len(columns[0])), np.nan)
    grid[rows[1], columns[1]] = values
    return grid


def _shared_counts(
    one: Floats, other: Floats, members: Floats, updates: Floats
) -> tuple[Floats, Floats]:
    """Both as [update counts, members], at the counts that LEAST_MEMBERS members or more share."""
    grids = _grid(one, members, updates), _grid(other, members, updates)
    shared = (~np.isnan(grids[0])).sum(axis=1) >= LEAST_MEMBERS
    return grids[0][shared], grids[1][shared]


def _spearman_of_rows(first: Floats, second: Floats) -> Floats:
    """Spearman's rank correlation of each row: [n, m] and [n, m] with NaN in the same places ->
    [n], NaN where it is not defined.
    """
    one, other = (rankdata(values, axis=1, nan_policy="omit") for values in (first, second))
    count = np.maximum(1, (~np.isnan(one)).sum(axis=1, keepdims=True))
    one, other = (ranks - np.nansum(ranks, axis=1, keepdims=True) / count for ranks in (one, other))
    scale = np.sqrt(np.nansum(one**2, axis=1) * np.nansum(other**2, axis=1))
    return np.where(
        scale > 0.0, np.nansum(one * other, axis=1) / np.where(scale > 0.0, scale, 1.0), np.nan
    )


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-1)
    return np.where(
        counts > 0, np.where(known, values, 0.0).sum(axis=-1) / np.maximum(1, counts), np.nan
    )


def _resampled(
    one: Floats, other: Floats, snapshots: Sequence[np.ndarray], generator: np.random.Generator
) -> float:
    """The correlation in one resample; `snapshots` are the indices of each member's snapshots."""
    members = len(snapshots)
    drawn = [snapshots[index] for index in generator.integers(members, size=members)]
    chosen = np.concatenate(
        [indices[generator.integers(len(indices), size=len(indices))] for indices in drawn]
    )
    return spearman(one[chosen], other[chosen])
