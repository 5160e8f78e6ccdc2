"""Running an update many times: noise and batches are drawn in blocks, metrics stay on the device,
members that diverge are frozen.

Random numbers: for block b, the updates b * BLOCK up to (b + 1) * BLOCK, a member draws from a
generator seeded by its seed and b. So the number of updates is all that has to be known of a stream
to continue it, a resumed run draws what an undisturbed one would have drawn, and a member's draws
do not depend on the members beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cqlray.algorithms.agent import AgentState, Batch, Scalars
from cqlray.algorithms.graphs import GraphedWork

BLOCK = 32

Update = Callable[[AgentState, Batch, dict[str, Tensor]], dict[str, Tensor]]
Gather = Callable[[Tensor], Batch]


class NoiseStream:
    """Each member's noise and batch positions, a block of updates at a time."""

    def __init__(
        self,
        seeds: Sequence[int],
        shapes: dict[str, tuple[int, ...]],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.seeds = list(seeds)
        self.device = device
        self.block = -1
        self.on_block: Callable[[int], None] | None = None  # called when a block has been drawn
        self.noise = {
            name: torch.empty((len(seeds), BLOCK, *shape), device=device)
            for name, shape in shapes.items()
        }
        self.positions = torch.empty(
            (len(seeds), BLOCK, batch_size), dtype=torch.float64, device=device
        )

    def at(self, update: int) -> tuple[dict[str, Tensor], Tensor]:
        """Noise [M, ...] by name, and batch positions [M, B] in [0, 1), of one update."""
        self.prepare(update)
        row = update % BLOCK
        return {name: values[:, row] for name, values in self.noise.items()}, self.positions[:, row]

    def at_step(self, step: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same as `at` for the update whose number `step` is on the device; its block must be
        prepared.
        """
        row = step.remainder(BLOCK).long().reshape(1)
        noise = {
            name: values.index_select(1, row).squeeze(1) for name, values in self.noise.items()
        }
        return noise, self.positions.index_select(1, row).squeeze(1)

    def prepare(self, update: int) -> None:
        """Draw the block of this update, unless it was the last one drawn."""
        block = update // BLOCK
        if block == self.block:
            return
        for member, generator in enumerate(self._generators(block)):
            self.positions[member].uniform_(generator=generator)
            for name, values in self.noise.items():
                if name == "uniform":
                    values[member].uniform_(-1.0, 1.0, generator=generator)
                else:
                    values[member].normal_(generator=generator)
        self.block = block
        if self.on_block is not None:
            self.on_block(block)

    def positions_of(self, block: int) -> Tensor:
        """[M, BLOCK, B]: the batch positions of a block before its turn. Another thread may call
        this.
        """
        positions = torch.empty_like(self.positions)
        for member, generator in enumerate(self._generators(block)):
            positions[member].uniform_(generator=generator)
        return positions

    def _generators(self, block: int) -> Iterator[torch.Generator]:
        """Each member's generator, where it begins the block."""
        generator = torch.Generator(self.device)
        for seed in self.seeds:
            state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
            yield generator.manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class TransitionTable:
    """A fixed dataset on the device: N transitions over R observations, of which an episode has one
    more than transitions.
    """

    observations: Tensor  # [R, observation_dim], normalised
    # [N] int64: the row of a transition's observation; the next observation is in the row after it
    rows: Tensor
    actions: Tensor  # [N, A] in [-1, 1]
    rewards: Tensor  # [N], the environment's
    terminations: Tensor  # [N] float
    # For Cal-QL: K lots of discounted returns [K, N], and the place of each member's among them [M]
    data_returns: Tensor | None = None
    returns_of: Tensor | None = None

    def gather(self, scalars: Scalars) -> Gather:
        """A function from positions [M, B] in [0, 1) to batches, with rewards scaled for each
        member.
        """
        scale, shift = scalars["reward_scale"].unsqueeze(1), scalars["reward_shift"].unsqueeze(1)

        def batch(positions: Tensor) -> Batch:
            index = (positions * len(self.rows)).long()
            rows = self.rows[index]
            returns = None
            if self.data_returns is not None and self.returns_of is not None:
                returns = self.data_returns[self.returns_of.unsqueeze(1), index]
            return Batch(
                observations=self.observations[rows],
                actions=self.actions[index],
                rewards=self.rewards[index] * scale + shift,
                next_observations=self.observations[rows + 1],
                terminations=self.terminations[index],
                data_returns=returns,
            )

        return batch


class Population:
    """An agent and its noise: `advance` makes updates, and does not wait for the device between
    them.

    On a GPU one CUDA graph makes an update, its batch and its metrics' sums. Everything that
    changes between updates is on the device, including the number of updates, so that the graph is
    recorded only once for each `gather`.
    """

    def __init__(self, agent: AgentState, update: Update, noise: NoiseStream) -> None:
        self.agent = agent
        self.update = update
        self.noise = noise
        self.metric_names: list[str] = []
        self.metric_sums: Tensor | None = None  # [metrics, M]
        self.graphed: tuple[Gather, GraphedWork] | None = None
        self.frozen: dict[int, int] = {}  # member's position -> updates at its last good state

    def advance(self, num_updates: int, gather: Gather) -> dict[str, list[float]]:
        """Make updates; returns the mean of each metric over them, by member.

        Members with numbers that are no longer finite are frozen as they were before the call.
        """
        before = {name: tensor.clone() for name, tensor in self.agent.tensors().items()}
        started_at = self.agent.updates
        if self.metric_sums is not None:
            self.metric_sums.zero_()
        one_update: Callable[[], None] = partial(self._eager, gather)
        if self.agent.step.device.type == "cuda":
            one_update = self._on_gpu(gather)
        for _ in range(num_updates):
            self.noise.prepare(self.agent.updates)
            one_update()
            self.agent.updates += 1
        assert self.metric_sums is not None, "num_updates must be positive"
        self._restore_bad_members(before, started_at)
        values = (self.metric_sums / num_updates).tolist()
        return dict(zip(self.metric_names, values, strict=True))

    def _eager(self, gather: Gather) -> None:
        self._update(gather, *self.noise.at(self.agent.updates))

    def on_device(self, gather: Gather) -> None:
        """One update that takes no number from the host, so that a CUDA graph can repeat it."""
        self._update(gather, *self.noise.at_step(self.agent.step))

    def _on_gpu(self, gather: Gather) -> GraphedWork:
        if self.graphed is None or self.graphed[0] is not gather:
            self.graphed = gather, GraphedWork(lambda: self.on_device(gather))
        return self.graphed[1]

    def _update(self, gather: Gather, noise: dict[str, Tensor], positions: Tensor) -> None:
        metrics = self.update(self.agent, gather(positions), noise)
        stacked = torch.stack(list(metrics.values()))
        if self.metric_sums is None:
            self.metric_names, self.metric_sums = list(metrics), torch.zeros_like(stacked)
        self.metric_sums.add_(stacked)

    def _restore_bad_members(self, before: dict[str, Tensor], updates: int) -> None:
        """Restore every member that is not finite or was frozen earlier to its state before the
        call.
        """
        members = self.agent.num_members
        after = {name: tensor.view(members, -1) for name, tensor in self.agent.tensors().items()}
        finite = (
            torch.stack([tensor.isfinite().all(1) for tensor in after.values()]).all(0).tolist()
        )
        for member in [m for m in range(members) if m in self.frozen or not finite[m]]:
            self.frozen.setdefault(member, updates)
            for name, tensor in after.items():
                tensor[member] = before[name].view(members, -1)[member]
