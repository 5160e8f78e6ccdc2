"""How many values are missing from a log: in which columns, in how many episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from cqlray.data.episode import Array, Shard
from cqlray.data.source import listed


class Gaps:
    """NaN by column, summed over pieces.

    Args:
        columns: those of the log; empty for other data, of which nothing is counted.
    """

    def __init__(self, columns: dict[str, str | list[str]]) -> None:
        self.columns = columns
        self.values: Array = np.zeros(0, np.int64)
        self.episodes: Array = np.zeros(0, np.int64)
        self.affected = 0

    def add(self, shard: Shard) -> None:
        """Count a shard's."""
        if not self.columns or not shard.num_episodes:
            return
        rows = np.repeat(np.arange(shard.num_episodes), shard.lengths + 1)
        steps = np.repeat(np.arange(shard.num_episodes), shard.lengths)
        parts = (
            (shard.observations, rows),
            (shard.actions, steps),
            (shard.rewards[:, None], steps),
        )
        by_episode = [
            np.stack(
                [np.bincount(of[gaps], minlength=shard.num_episodes) for gaps in np.isnan(values).T]
            )
            for values, of in parts
        ]
        counts = np.concatenate(by_episode)
        if not len(self.values):
            self.values = self.episodes = np.zeros(len(counts), np.int64)
        if len(counts) == len(self.values):  # else validation names the piece
            self.values = self.values + counts.sum(axis=1)
            self.episodes = self.episodes + (counts > 0).sum(axis=1)
            self.affected += int((counts > 0).any(axis=0).sum())

    def details(self, episodes: int) -> dict[str, Any] | None:
        """What the message says; None where nothing is missing."""
        missing = np.flatnonzero(self.values)
        if not len(missing):
            return None
        names = self._names()
        found = [
            f"{names[int(i)]} {self.values[i]:,} in {self.episodes[i]:,} of {episodes:,} episodes"
            for i in missing
        ]
        return {
            "found": listed(found),
            "affected": f"{self.affected:,} of {episodes:,}",
            "example": names[int(missing[0])],
        }

    def _names(self) -> list[str]:
        """The column of each number; a vector's with its index."""
        flat = [*self.columns["observation"], *self.columns["action"], str(self.columns["reward"])]
        if len(flat) == len(self.values):
            return flat
        return [f"number {index} of a row" for index in range(len(self.values))]
