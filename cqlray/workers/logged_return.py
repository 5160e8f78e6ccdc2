"""What the policy that made the data earned itself: the mark that a student's estimate is held
against.

An episode's return is the discounted sum of its rewards. Where a time limit cut the episode off,
fitted Q evaluation of the logged actions themselves says what would have followed, since a
student's estimate counts that, too. The last logged action of such an episode has no successor, so
its reward and all that follows are replaced by Q there, which no target held at that very step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cqlray.algorithms.fqe import QFunctions
from cqlray.algorithms.policy import Array
from cqlray.data.columns import Columns, discounted_returns
from cqlray.storage.rows import BesideTheLog


@dataclass(frozen=True)
class LoggedReturns:
    """Of E episodes, discounted and in the environment's rewards."""

    returns: Array
    """[E] float64: the logged rewards, and Q's value of what a time limit cut off."""
    fitted: Array
    """[E] float64: fitted Q evaluation of the logged actions, from the first step on. It differs
    from `returns` by what fitted Q evaluation gets wrong on the log itself.
    """
    tail_weight: float
    """Mean discount of what a time limit cut off; 0 for episodes that ended by themselves."""


def has_successor(data: Columns) -> Array:
    """[N] bool: transitions that a Q of the logged actions is fitted on. All but those whose next
    action nobody logged: the last of truncated episodes.
    """
    known: Array = ~data.ends | data.terminations
    return known


def next_logged(actions: Array) -> Array:
    """[N, A]: the action logged after each transition; at an episode's end it is unused."""
    return np.concatenate([actions[1:], actions[-1:]])


def logged_returns(
    data: Columns,
    observations: torch.Tensor,
    actions: torch.Tensor,
    fits: Sequence[QFunctions],
    discount: float,
) -> LoggedReturns:
    """`fits` are of the logged actions; `observations` [R, observation_dim] normalised, `actions`
    [N, A] in [-1, 1].
    """
    last = np.flatnonzero(data.ends)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last + 1 - first

    def value(steps: Array) -> Array:
        of_fits = [f.values(observations[data.rows[steps]], actions[steps][None]) for f in fits]
        return torch.stack(of_fits).double().mean(0)[0].numpy()

    cut = ~data.terminations[last]
    to_last = discount ** (lengths - 1.0)
    returns = discounted_returns(data.rewards, data.ends, discount)[first].astype(np.float64)
    beyond = value(last) - data.rewards[last]
    returns += np.where(cut, to_last * beyond, 0.0)
    weight = float(np.where(cut, to_last * discount, 0.0).mean())
    return LoggedReturns(returns, value(first), weight)


def standard_error(values: Array) -> float | None:
    """Of the mean of values [E]; None for one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def beside_the_log(values: Array, logged: LoggedReturns) -> BesideTheLog:
    """The part of a row that holds a policy against the log, by its values [FITS, E] at the first
    states of the same episodes.
    """
    gains = values - logged.returns
    return {
        "fqe_return_error": standard_error(values.mean(0)),
        "log_return": float(logged.returns.mean()),
        "log_return_error": standard_error(logged.returns),
        "log_return_fitted": float(logged.fitted.mean()),
        "log_tail_weight": logged.tail_weight,
        "log_episodes": len(logged.returns),
        "gain_fits": gains.mean(1).tolist(),
        "gain_error": standard_error(gains.mean(0)),
    }
