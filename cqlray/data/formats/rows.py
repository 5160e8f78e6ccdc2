"""Rows of a file as whole episodes: an episode's last row may hold its final observation alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cqlray.data.episode import Array, Shard


@dataclass(frozen=True)
class Rows:
    """Rows as a recorder wrote them, whole episodes one after another; n rows, E episodes."""

    observations: Array  # [n, observation_dim]
    actions: Array  # [n, action_dim]
    rewards: Array  # [n]
    terminations: Array  # [n] bool
    truncations: Array  # [n] bool
    lasts: Array  # [E] int: the last row of each episode
    dropped: Array  # [E] bool: that row is no step, its observation is the final one
    final: Array  # [E, observation_dim]: the final observation where the last row is a step

    def shard(self, tier: str) -> tuple[Shard, Array]:
        """The episodes, some perhaps without a step; and which rows are steps, [n] bool."""
        is_step = np.ones(len(self.rewards), bool)
        is_step[self.lasts[self.dropped]] = False
        lengths = np.diff(self.lasts, prepend=-1) - self.dropped
        # Flags of a dropped row move to the step before it, if there is one.
        carried = self.lasts[self.dropped & (lengths > 0)]
        terminations, truncations = self.terminations.copy(), self.truncations.copy()
        terminations[carried - 1] |= terminations[carried]
        truncations[carried - 1] |= truncations[carried]
        stays = ~self.dropped
        shard = Shard(
            observations=np.insert(
                self.observations, self.lasts[stays] + 1, self.final[stays], axis=0
            ),
            actions=self.actions[is_step],
            rewards=self.rewards[is_step],
            terminations=terminations[is_step],
            truncations=truncations[is_step],
            lengths=lengths.astype(np.int64),
            seeds=np.zeros(len(lengths), np.int64),
            tier=tier,
        )
        return shard, is_step
