"""How many values are missing from a log: in which columns, in how many episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from cqlray.data.episode import Array, Shard
from cqlray.data.source import listed, number_names


class Gaps:
    """NaN by column, summed over pieces.

    Args:
        columns: those of the log; empty for other data, of which nothing is counted.
    """

    def __init__(self, columns: dict[str, str | list[str]]) -> None:
        self.columns = columns
        self.names: list[str] = []  # of each number of a row
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
            widths = {"observation": shard.observations.shape[1], "action": shard.actions.shape[1]}
            for option, width in widths.items():
                self.names += number_names(self.columns, option, width)
            self.names.append(str(self.columns.get("reward", "reward")))
        if len(counts) == len(self.values):  # else validation names the piece
            self.values = self.values + counts.sum(axis=1)
            self.episodes = self.episodes + (counts > 0).sum(axis=1)
            self.affected += int((counts > 0).any(axis=0).sum())

    def details(self, episodes: int) -> dict[str, Any] | None:
        """What the message says; None where nothing is missing."""
        missing = np.flatnonzero(self.values)
        if not len(missing):
            return None
        found = [
            f"{self.names[int(i)]} {self.values[i]:,} in {self.episodes[i]:,} of {episodes:,}"
            " episodes"
            for i in missing
        ]
        return {
            "found": listed(found),
            "affected": f"{self.affected:,} of {episodes:,}",
            "example": self._column(self.names[int(missing[0])]),
        }

    def _column(self, name: str) -> str:
        """The column that a number is in: rules are for columns."""
        columns = [*self.columns["observation"], *self.columns["action"]]
        vector = name.rpartition("[")[0]
        return vector if vector in columns and name not in columns else name
