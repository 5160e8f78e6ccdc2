"""A dataset's transitions in memory, one array for each of Gymnasium's words, as a learner trains
on them.

Columns are allocated once and filled shard by shard, and what is computed from them is computed in
blocks: all of it takes little more memory than the columns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cqlray.data.episode import Array, Shard
from cqlray.data.moments import blocks
from cqlray.errors import UserError

FEW_EPISODES = 16


@dataclass(frozen=True)
class Columns:
    """The transitions of several shards, one after another: N of them, over R rows of
    observations, each episode's final one included.
    """

    observations: Array  # [R, observation_dim] float32
    # [N] int64: the row of a transition's observation; its next observation is one row further
    rows: Array
    actions: Array  # [N, A] float32, in the environment's bounds
    rewards: Array  # [N] float32
    terminations: Array  # [N] bool
    ends: Array  # [N] bool: the last step of its episode


def join_shards(shards: Sequence[Shard]) -> Columns:
    """The transitions of all shards, in their order; there must be one shard at least."""
    return fill_columns(
        shards,
        transitions=sum(shard.num_transitions for shard in shards),
        episodes=sum(shard.num_episodes for shard in shards),
        observation_dim=shards[0].observations.shape[1],
        action_dim=shards[0].actions.shape[1],
    )


def fill_columns(
    shards: Iterable[Shard], transitions: int, episodes: int, observation_dim: int, action_dim: int
) -> Columns:
    """As `join_shards`, for shards that arrive one by one and whose sizes dataset.json says; the
    arrays are writable.

    Raises:
        UserError: the shards do not hold so many transitions and episodes, or not of these
            dimensions.
    """
    data = _unfilled_columns(transitions, episodes, observation_dim, action_dim)
    step = episode = 0
    for shard in shards:
        check_dimensions(shard, observation_dim, action_dim)
        after = step + shard.num_transitions
        if after <= transitions and episode + shard.num_episodes <= episodes:
            _fill(data, shard, step, episode)
        step, episode = after, episode + shard.num_episodes
        del shard  # before the next one is made
    if (step, episode) != (transitions, episodes):
        raise UserError(
            f"dataset.json says {transitions} transitions in {episodes} episodes, the shards hold"
            f" {step} in {episode}; it was changed or damaged"
        )
    return data


def _unfilled_columns(
    transitions: int, episodes: int, observation_dim: int, action_dim: int
) -> Columns:
    try:
        return Columns(
            observations=np.empty((transitions + episodes, observation_dim), np.float32),
            rows=np.empty(transitions, np.int64),
            actions=np.empty((transitions, action_dim), np.float32),
            rewards=np.empty(transitions, np.float32),
            terminations=np.empty(transitions, bool),
            ends=np.zeros(transitions, bool),
        )
    except (MemoryError, ValueError):  # ValueError: more bytes than can be counted
        raise UserError(
            f"{transitions} transitions in {episodes} episodes do not fit in this machine's memory"
        ) from None


def _fill(data: Columns, shard: Shard, step: int, episode: int) -> None:
    """Copy a shard into the columns, after `step` transitions in `episode` episodes."""
    first, steps = step + episode, slice(step, step + shard.num_transitions)
    data.observations[first : first + len(shard.observations)] = shard.observations
    np.add(shard.step_rows, first, out=data.rows[steps])
    data.actions[steps] = shard.actions
    data.rewards[steps] = shard.rewards
    data.terminations[steps] = shard.terminations
    data.ends[step + np.cumsum(shard.lengths) - 1] = True


def check_dimensions(shard: Shard, observation_dim: int, action_dim: int) -> None:
    """Raises UserError unless the shard has observations and actions of these dimensions."""
    found = shard.observations.shape[1], shard.actions.shape[1]
    if found != (observation_dim, action_dim):
        raise UserError(
            f"a shard's observations and actions have {found[0]} and {found[1]} dimensions, other"
            f" shards' have {observation_dim} and {action_dim}"
        )


def discounted_returns(rewards: Array, ends: Array, discount: float) -> Array:
    """[N] float32: the discounted sum of rewards from each step to the end of its episode.

    It is computed backwards in float64, for all episodes at once; where only a few reach further
    back, one by one, which is then faster.
    """
    returns, last = rewards.astype(np.float64), np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    returns[last] += 0.0  # what follows an end; -0.0 becomes 0.0
    order = np.argsort(-lengths, kind="stable")  # the longest episodes first
    last, lengths = last[order], lengths[order]
    steps = int(lengths[FEW_EPISODES]) if len(lengths) > FEW_EPISODES else 1
    for back in range(1, steps):
        at = last[: np.searchsorted(-lengths, -back)] - back
        returns[at] += discount * returns[at + 1]
    for end, length in zip(last[:FEW_EPISODES], lengths[:FEW_EPISODES], strict=True):
        rest = slice(end + 1 - length, end + 2 - steps)  # the last of it is done
        backwards = accumulate(
            returns[rest][::-1].tolist(), lambda g, reward: reward + discount * g
        )
        returns[rest] = list(backwards)[::-1]
    return returns.astype(np.float32)


def normalize_in_place(observations: Array, mean: Array, std: Array) -> None:
    """(observations - mean) / std over [R, observation_dim] float32, to the bit as numpy gives it,
    without a copy.
    """
    # In blocks, so that the second pass finds them in the cache.
    for _, rows in blocks(observations):
        np.subtract(rows, mean, out=rows)
        np.divide(rows, std, out=rows)


def scale_in_place(actions: Array, to_unit: Callable[[Array], Array]) -> None:
    """to_unit(actions) over [N, A] float32, block by block into the same array."""
    for _, rows in blocks(actions):
        rows[:] = to_unit(rows)
