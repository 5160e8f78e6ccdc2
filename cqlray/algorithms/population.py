"""How an update is run many times: noise and batches drawn ahead, metrics left on the device, bad
members frozen.

Random numbers: member m draws the noise of updates
[b
* BLOCK, (b + 1) * BLOCK) from a generator seeded by (its seed, b). So the number of updates made is
  the whole position of its stream, a resumed run draws what an undisturbed one drew, and no
  member's draws depend on which others are beside it.
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
        """What `at` gives, of the update that `step` counts on the device; its block must have been
        prepared.
        """
        row = step.remainder(BLOCK).long().reshape(1)
        noise = {
            name: values.index_select(1, row).squeeze(1) for name, values in self.noise.items()
        }
        return noise, self.positions.index_select(1, row).squeeze(1)

    def prepare(self, update: int) -> None:
        """Draw the block that holds this update, unless it is the one drawn last."""
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
        """[M, BLOCK, B]: the batch positions of a block, ahead of its turn; may be called from
        another thread.
        """
        positions = torch.empty_like(self.positions)
        for member, generator in enumerate(self._generators(block)):
            positions[member].uniform_(generator=generator)
        return positions

    def _generators(self, block: int) -> Iterator[torch.Generator]:
        """Each member's generator, at the start of the block."""
        generator = torch.Generator(self.device)
        for seed in self.seeds:
            state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
            yield generator.manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class TransitionTable:
    """A fixed dataset on the device; N transitions over R observation rows, an episode's final
    observation included.
    """

    observations: Tensor  # [R, observation_dim], as trained on
    # [N] int64: the row of a transition's observation; the next observation stands one row further
    rows: Tensor
    actions: Tensor  # [N, A] in [-1, 1]
    rewards: Tensor  # [N], the environment's
    terminations: Tensor  # [N] float
    data_returns: Tensor | None = (
        None  # [M, N], each member's discounted return from here, for Cal-QL
    )

    def gather(self, scalars: Scalars) -> Gather:
        """A function from positions [M, B] in
        [0, 1) to batches, rewards scaled as each member's numbers say.
        """
        scale, shift = scalars["reward_scale"].unsqueeze(1), scalars["reward_shift"].unsqueeze(1)

        def batch(positions: Tensor) -> Batch:
            index = (positions * len(self.rows)).long()
            rows = self.rows[index]
            returns = None if self.data_returns is None else self.data_returns.gather(1, index)
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
    """An agent, its noise and its data: `advance` makes updates without a synchronisation among
    them.

    On a GPU an update, its batch and its share of the metrics are one CUDA graph. All that changes
    from one update to the next then lives on the device: the graph is recorded once for each
    `gather` and knows no number of updates.
    """

    def __init__(self, agent: AgentState, update: Update, noise: NoiseStream) -> None:
        self.agent = agent
        self.update = update
        self.noise = noise
        self.metric_names: list[str] = []
        self.metric_sums: Tensor | None = None  # [metrics, M]
        self.graphed: tuple[Gather, GraphedWork] | None = None
        self.frozen: dict[int, int] = {}  # member's place -> updates at its last good state

    def advance(self, num_updates: int, gather: Gather) -> dict[str, list[float]]:
        """Make updates; the mean of each metric over them, by member.

        Members that turn non-finite are frozen.
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
        """One update that takes nothing from here: which one it is stands on the device."""
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
        """Put back every member that is not finite, or that was frozen earlier, as it stood before
        the call.
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
