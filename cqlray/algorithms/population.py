"""How an update is run many times: noise and batches drawn ahead, metrics left on the device, bad members frozen.

Random numbers: member m draws the noise of updates [b * BLOCK, (b + 1) * BLOCK) from a generator seeded by (its seed,
b). So the number of updates made is the whole position of its stream, a resumed run draws what an undisturbed one drew,
and no member's draws depend on which others are beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cqlray.algorithms.agent import AgentState, Batch, Scalars

BLOCK = 32

Update = Callable[[AgentState, Batch, dict[str, Tensor]], dict[str, Tensor]]
Gather = Callable[[Tensor], Batch]


class NoiseStream:
    """Each member's noise and batch positions, a block of updates at a time."""

    def __init__(self, seeds: Sequence[int], shapes: dict[str, tuple[int, ...]], batch_size: int, device: torch.device) -> None:
        self.seeds = list(seeds)
        self.device = device
        self.block = -1
        self.noise = {name: torch.empty((len(seeds), BLOCK, *shape), device=device) for name, shape in shapes.items()}
        self.positions = torch.empty((len(seeds), BLOCK, batch_size), dtype=torch.float64, device=device)

    def at(self, update: int) -> tuple[dict[str, Tensor], Tensor]:
        """Noise [M, ...] by name, and batch positions [M, B] in [0, 1), of one update."""
        block, row = divmod(update, BLOCK)
        if block != self.block:
            self._draw(block)
        return {name: values[:, row] for name, values in self.noise.items()}, self.positions[:, row]

    def _draw(self, block: int) -> None:
        generator = torch.Generator(self.device)
        for member, seed in enumerate(self.seeds):
            state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
            generator.manual_seed(int(state >> np.uint64(1)))
            self.positions[member].uniform_(generator=generator)
            for name, values in self.noise.items():
                if name == "uniform":
                    values[member].uniform_(-1.0, 1.0, generator=generator)
                else:
                    values[member].normal_(generator=generator)
        self.block = block


@dataclass(frozen=True)
class TransitionTable:
    """A fixed dataset on the device; N transitions over R observation rows, an episode's final observation included."""

    observations: Tensor  # [R, observation_dim], as trained on
    rows: Tensor  # [N] int64: the row of a transition's observation; the next observation stands one row further
    actions: Tensor  # [N, A] in [-1, 1]
    rewards: Tensor  # [N], the environment's
    terminations: Tensor  # [N] float
    data_returns: Tensor | None = None  # [M, N], each member's discounted return from here, for Cal-QL

    def gather(self, scalars: Scalars) -> Gather:
        """A function from positions [M, B] in [0, 1) to batches, rewards scaled as each member's numbers say."""
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
    """An agent, its noise and its data: `advance` makes updates without a synchronisation among them."""

    def __init__(self, agent: AgentState, update: Update, noise: NoiseStream) -> None:
        self.agent = agent
        self.update = update
        self.noise = noise
        self.frozen: dict[int, int] = {}  # member's place -> updates at its last good state

    def advance(self, num_updates: int, gather: Gather) -> dict[str, list[float]]:
        """Make updates; the mean of each metric over them, by member. Members that turn non-finite are frozen."""
        before = {name: tensor.clone() for name, tensor in self.agent.tensors().items()}
        started_at = self.agent.updates
        total: Tensor | None = None
        names: list[str] = []
        for _ in range(num_updates):
            noise, positions = self.noise.at(self.agent.updates)
            metrics = self.update(self.agent, gather(positions), noise)
            stacked = torch.stack(list(metrics.values()))
            total = stacked if total is None else total.add_(stacked)
            names = list(metrics)
        assert total is not None, "num_updates must be positive"
        self._restore_bad_members(before, started_at)
        values = (total / num_updates).tolist()
        return dict(zip(names, values, strict=True))

    def _restore_bad_members(self, before: dict[str, Tensor], updates: int) -> None:
        """Put back every member that is not finite, or that was frozen earlier, as it stood before the call."""
        members = self.agent.num_members
        after = {name: tensor.view(members, -1) for name, tensor in self.agent.tensors().items()}
        finite = torch.stack([tensor.isfinite().all(1) for tensor in after.values()]).all(0).tolist()
        for member in [m for m in range(members) if m in self.frozen or not finite[m]]:
            self.frozen.setdefault(member, updates)
            for name, tensor in after.items():
                tensor[member] = before[name].view(members, -1)[member]
