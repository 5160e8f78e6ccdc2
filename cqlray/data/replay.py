"""The teacher's replay buffer: the newest transitions, up to a capacity."""

from __future__ import annotations

import numpy as np

from cqlray.data.episode import Array, Shard


class ReplayPool:
    """A ring of transitions; the arrays never move, so tensors may share their memory."""

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.cursor = 0
        self.observations = np.zeros((capacity, observation_dim), np.float32)
        self.next_observations = np.zeros((capacity, observation_dim), np.float32)
        self.actions = np.zeros((capacity, action_dim), np.float32)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminations = np.zeros(capacity, np.float32)

    def add(self, shard: Shard, actions: Array) -> None:
        """Append the shard's transitions; `actions` are its actions in [-1, 1]."""
        kept = slice(max(0, shard.num_transitions - self.capacity), None)
        rows = shard.step_rows[kept]
        index = (self.cursor + np.arange(shard.num_transitions)[kept]) % self.capacity
        self.observations[index] = shard.observations[rows]
        self.next_observations[index] = shard.observations[rows + 1]
        self.actions[index] = actions[kept]
        self.rewards[index] = shard.rewards[kept]
        self.terminations[index] = shard.terminations[kept]
        self.cursor = (self.cursor + shard.num_transitions) % self.capacity
        self.size = min(self.capacity, self.size + shard.num_transitions)
