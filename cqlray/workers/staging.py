"""Make batches of data that does not fit on the device: a thread gathers those for the next block
of updates, which are then copied together.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from cqlray.algorithms.agent import Batch, Scalars
from cqlray.algorithms.population import BLOCK, NoiseStream
from cqlray.data.episode import Array
from cqlray.data.prefetch import Prefetcher

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations")


class Rows(Protocol):
    """Data in which transitions can be looked up, wherever it is."""

    num_transitions: int

    def gather(self, index: Array) -> dict[str, Array]:
        """Transitions at `index` [n] int64, a float32 array for each of COLUMNS."""
        ...


class StagedBatches:
    """One block's batches on the device, at fixed addresses, so that a CUDA graph can read them.

    The noise stream's positions choose the transitions just as they do in a table on the device, so
    the batches are the same. Once a block's transitions are there, its positions in the stream are
    overwritten with those of the transitions among the staged ones.
    """

    def __init__(self, noise: NoiseStream, rows: Rows, scalars: Scalars) -> None:
        members, block, batch = noise.positions.shape
        assert block == BLOCK
        self.noise, self.rows = noise, rows
        self.slots = members * block * batch
        positions = (
            torch.arange(self.slots, dtype=torch.float64, device=noise.device) + 0.5
        ) / self.slots
        self.staged_positions = positions.view(members, block, batch)
        self.staged: dict[str, torch.Tensor] = {}
        self.scale, self.shift = (
            scalars["reward_scale"].unsqueeze(1),
            scalars["reward_shift"].unsqueeze(1),
        )
        self.prefetcher = Prefetcher(self._draw, rows.gather)
        noise.on_block = self._stage

    def _draw(self, block: int) -> Array:
        positions = self.noise.positions_of(block)
        index: Array = (positions * self.rows.num_transitions).long().cpu().numpy().reshape(-1)
        return index

    def _stage(self, block: int) -> None:
        arrays = self.prefetcher.block(block)
        for name in COLUMNS:
            values = torch.from_numpy(np.ascontiguousarray(arrays[name], np.float32))
            if name not in self.staged:
                self.staged[name] = torch.empty_like(values, device=self.noise.device)
            self.staged[name].copy_(values)
        self.noise.positions.copy_(self.staged_positions)

    def gather(self, positions: torch.Tensor) -> Batch:
        """The batch of an update; `positions` [M, B] are the overwritten ones."""
        index = (positions * self.slots).long()
        observations, actions, rewards, next_observations, terminations = (
            self.staged[name][index] for name in COLUMNS
        )
        scaled = rewards * self.scale + self.shift
        return Batch(observations, actions, scaled, next_observations, terminations)
