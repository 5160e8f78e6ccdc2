"""Episodes and shards: the data as it is made, in Gymnasium's and Minari's words.

An episode of T steps has T+1 observations. Its last step ends it: by termination, where the
environment ends it and a bootstrapped target stops, or by truncation, such as a time limit, where
the target does not stop. A shard is several whole episodes in one set of arrays, one after another,
as one call of a rollout worker made them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
# A shard's arrays, in the order in which its digest takes them.
ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations", "lengths", "seeds")


def steps_of_rows(lengths: Array) -> Array:
    """[N + E] int64: the step in its episode of each row of observations, 0 to T; `lengths` [E] are
    the episodes' numbers of steps.
    """
    rows = lengths + 1
    steps: Array = np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)
    return steps


@dataclass(frozen=True)
class Episode:
    """One episode of T steps. Actions are in the environment's bounds."""

    observations: Array  # [T + 1, observation_dim] float32
    actions: Array  # [T, action_dim] float32
    rewards: Array  # [T] float32
    terminations: Array  # [T] bool
    truncations: Array  # [T] bool
    seed: int = 0

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Shard:
    """Whole episodes of one tier, one after another; E episodes with N steps in all."""

    observations: Array  # [N + E, observation_dim] float32
    actions: Array  # [N, action_dim] float32
    rewards: Array  # [N] float32
    terminations: Array  # [N] bool
    truncations: Array  # [N] bool
    lengths: Array  # [E] int64, steps of each episode
    seeds: Array  # [E] int64, what each episode's reset was seeded with
    tier: str

    @staticmethod
    def of(episodes: Sequence[Episode], tier: str) -> Shard:
        """Join episodes, at least one."""

        def joined(name: str) -> Array:
            return np.concatenate([getattr(e, name) for e in episodes])

        return Shard(
            observations=joined("observations"),
            actions=joined("actions"),
            rewards=joined("rewards"),
            terminations=joined("terminations"),
            truncations=joined("truncations"),
            lengths=np.array([len(e) for e in episodes], np.int64),
            seeds=np.array([e.seed for e in episodes], np.int64),
            tier=tier,
        )

    @staticmethod
    def joined(shards: Sequence[Shard]) -> Shard:
        """Join shards of one tier, at least one."""
        if len(shards) == 1:
            return shards[0]
        arrays = {
            name: np.concatenate([getattr(shard, name) for shard in shards]) for name in ARRAYS
        }
        return Shard(tier=shards[0].tier, **arrays)

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_transitions(self) -> int:
        return len(self.rewards)

    @property
    def starts(self) -> Array:
        """[E] int64: the first step of each episode."""
        starts: Array = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def last_steps(self) -> Array:
        """[E] int64: the last step of each episode; of episodes without a step there is none."""
        last: Array = (self.starts + self.lengths - 1)[self.lengths > 0]
        return last

    @property
    def step_rows(self) -> Array:
        """[N] int64: the row of each step's observation; its next observation is one row
        further.
        """
        rows = np.arange(int(self.lengths.sum()), dtype=np.int64)
        rows += np.repeat(np.arange(self.num_episodes), self.lengths)
        return rows

    def returns(self) -> Array:
        """[E] float64: the sum of rewards of each episode."""
        sums: Array = np.add.reduceat(self.rewards, self.starts, dtype=np.float64)
        return sums

    def episodes(self) -> Iterator[Episode]:
        """The episodes, as views."""
        for index, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            steps = slice(start, start + length)
            yield Episode(
                observations=self.observations[start + index : start + index + length + 1],
                actions=self.actions[steps],
                rewards=self.rewards[steps],
                terminations=self.terminations[steps],
                truncations=self.truncations[steps],
                seed=int(self.seeds[index]),
            )

    def select(self, chosen: Array) -> Shard:
        """The episodes where `chosen`, [E] bool, is true."""
        steps, rows = np.repeat(chosen, self.lengths), np.repeat(chosen, self.lengths + 1)
        return Shard(
            observations=self.observations[rows],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminations=self.terminations[steps],
            truncations=self.truncations[steps],
            lengths=self.lengths[chosen],
            seeds=self.seeds[chosen],
            tier=self.tier,
        )

    def closed(self) -> Shard:
        """The same episodes; where a last step has no flag, it is truncated."""
        last, truncations = self.last_steps, self.truncations.copy()
        truncations[last] |= ~self.terminations[last]
        return dataclasses.replace(self, truncations=truncations)

    def digest(self) -> str:
        """SHA-256 of the content, the same whoever made or wrote it."""
        hasher = hashlib.sha256(self.tier.encode())
        for name in ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            hasher.update(f"{name}{array.dtype.str}{array.shape}".encode())
            hasher.update(array.reshape(-1).view(np.uint8).data)
        return hasher.hexdigest()
