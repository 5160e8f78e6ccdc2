"""What a policy does differently: its actions beside those logged in the same states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cqlray.results.statistics.resampling import Floats

BINS = 24
MOST_STATES = 3  # that are named as those with the largest difference
TAIL = 0.005  # of the logged actions lies below the usual range, and as much above it
NEAR_BOUND = 0.01  # of the bounds' range: as good as on the bound
# What a warning takes.
COLLAPSED = 0.5  # of the policy's actions on one bound, and twice as many as the log's
NARROW = 0.1  # of the logged spread
OUTSIDE = 0.2  # of the policy's actions outside the logs' usual range
SHIFTED = 1.0  # logged standard deviations between the means


@dataclass(frozen=True)
class Dimension:
    """One dimension of the actions, over the same states."""

    name: str
    edges: Floats
    """[BINS + 1], over all that either does."""
    policy_counts: list[int]
    logged_counts: list[int]
    policy_mean: float
    logged_mean: float
    policy_std: float
    logged_std: float
    distance: float
    """Mean absolute distance."""
    outside_range: float
    """Share of the policy's actions beyond the log's lowest or highest."""
    outside_usual: float
    """Share beyond the middle 99% of the logged actions."""
    at_bound: float
    """The larger of the shares that lie on the lower and on the upper bound."""
    logged_at_bound: float
    """The share of the log's on that same bound."""

    @property
    def warnings(self) -> list[str]:
        """How the policy drifted from the log or collapsed, in words."""
        found = []
        if self.at_bound > max(COLLAPSED, 2.0 * self.logged_at_bound):
            found.append(
                f"{self.at_bound:.0%} of its actions lie on a bound, of the log's"
                f" {self.logged_at_bound:.0%}"
            )
        if self.logged_std > 0.0 and self.policy_std < NARROW * self.logged_std:
            found.append(
                f"it hardly varies (standard deviation {self.policy_std:.3g}, the log's"
                f" {self.logged_std:.3g})"
            )
        if self.outside_usual > OUTSIDE:
            found.append(
                f"{self.outside_usual:.0%} of its actions lie outside the log's usual range"
            )
        if abs(self.policy_mean - self.logged_mean) > SHIFTED * self.logged_std:
            found.append(f"its mean is {self.policy_mean:.3g}, the log's {self.logged_mean:.3g}")
        return found


@dataclass(frozen=True)
class State:
    """A logged state in which policy and log differ much."""

    observation: Floats
    policy: Floats
    logged: Floats


@dataclass(frozen=True)
class Comparison:
    """A policy's actions beside the log's."""

    states: int
    dimensions: list[Dimension]
    furthest: list[State]
    """The states with the largest distances, each dimension in shares of its bounds' range."""

    @property
    def warnings(self) -> list[str]:
        return [
            f"{dimension.name}: {words}"
            for dimension in self.dimensions
            for words in dimension.warnings
        ]


def compare_actions(
    observations: Floats,
    logged: Floats,
    act: Callable[[Floats], Floats],
    low: Floats,
    high: Floats,
    names: Sequence[str],
) -> Comparison:
    """Compare a policy with the log in the states [n, observation_dim], where `logged` [n, A] was
    done. `low` and `high` are the actions' bounds, [A].
    """
    chosen = np.asarray(act(observations), np.float64)
    logged = np.asarray(logged, np.float64)
    dimensions = [
        _dimension(names[i], chosen[:, i], logged[:, i], float(low[i]), float(high[i]))
        for i in range(logged.shape[1])
    ]
    apart = (np.abs(chosen - logged) / (np.asarray(high, np.float64) - low)).sum(axis=1)
    order = np.argsort(-apart, kind="stable")[:MOST_STATES]
    furthest = [State(np.asarray(observations[i]), chosen[i], logged[i]) for i in order]
    return Comparison(len(logged), dimensions, furthest)


def _dimension(name: str, policy: Floats, logged: Floats, low: float, high: float) -> Dimension:
    both = np.concatenate([policy, logged])
    edges = np.histogram_bin_edges(both, BINS)
    ends = np.quantile(logged, [TAIL, 1.0 - TAIL])
    near = NEAR_BOUND * (high - low)
    on_low, on_high = policy <= low + near, policy >= high - near
    logged_on = logged <= low + near if on_low.mean() >= on_high.mean() else logged >= high - near
    return Dimension(
        name=name,
        edges=edges,
        policy_counts=np.histogram(policy, edges)[0].tolist(),
        logged_counts=np.histogram(logged, edges)[0].tolist(),
        policy_mean=float(policy.mean()),
        logged_mean=float(logged.mean()),
        policy_std=float(policy.std()),
        logged_std=float(logged.std()),
        distance=float(np.abs(policy - logged).mean()),
        outside_range=_outside(policy, logged.min(), logged.max()),
        outside_usual=_outside(policy, *ends),
        at_bound=float(max(on_low.mean(), on_high.mean())),
        logged_at_bound=float(logged_on.mean()),
    )


def _outside(values: Floats, low: float, high: float) -> float:
    """Share of the values beyond both ends, by more than float32 rounds."""
    slack = 1e-6 * (abs(low) + abs(high))
    return float(((values < low - slack) | (values > high + slack)).mean())
