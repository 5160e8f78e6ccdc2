"""Fitted Q evaluation (Le et al. 2019, arXiv 1903.08738, algorithm 3): estimates a fixed policy's
return from data alone.

Q_m of policy m is regressed on r + gamma (1 - d) Q'_m(s', pi_m(s')). The policies are fixed and
deterministic, so their actions after each transition are computed once. The paper solves K
regressions one after another, each with targets from the last; here the targets Q' follow the
networks by Polyak averaging, as in DDPG (Lillicrap et al. 2016, arXiv 1509.02971, algorithm 1).

All policies' networks start from the same parameters and see the same batches. What is random about
a fit is then the same for all policies and cancels when they are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cqlray.algorithms.agent import Adam, polyak
from cqlray.algorithms.forward_backward import outputs, regress
from cqlray.algorithms.networks import Shape, Stack
from cqlray.algorithms.population import NoiseStream, TransitionTable

# Transitions whose values are computed at a time.
ROWS_AT_A_TIME = 2**12


@dataclass(frozen=True)
class FQEConfig:
    """How a Q is fitted; the same for all policies."""

    hidden_units: int = 64
    hidden_layers: int = 2
    batch_size: int = 128
    num_updates: int = 4000
    learning_rate: float = 1e-3  # for the first half of the updates; see `_rate_left`
    target_update_rate: float = 0.05


@dataclass(frozen=True)
class Units:
    """Q = mean + std * (network's output), since networks learn best what lies around 0 and 1; and
    the bounds of any possible Q.
    """

    mean: float
    std: float
    lowest: float
    highest: float


class QFunctions:
    """The Q functions of M policies, and their fit to one table of transitions."""

    def __init__(
        self,
        table: TransitionTable,
        next_actions: Tensor,
        discount: float,
        units: Units,
        config: FQEConfig,
        seed: int,
    ) -> None:
        """`next_actions` [M, N, A]: each policy's action at each transition's next observation, in
        [-1, 1].
        """
        self.table, self.next_actions = table, next_actions
        self.discount, self.units, self.config = discount, units, config
        policies, device = len(next_actions), next_actions.device
        inputs = table.observations.shape[1] + table.actions.shape[1]
        shape = Shape((inputs, *[config.hidden_units] * config.hidden_layers, 1))
        initial = shape.initial(torch.Generator().manual_seed(seed)).to(
            device, table.observations.dtype
        )
        self.networks = Stack(shape, initial.repeat(policies, 1))
        self.targets = Stack(shape, initial.repeat(policies, 1))
        self.adam = Adam.zeros(self.networks.flat)
        self.noise = NoiseStream([seed], {}, config.batch_size, device)
        self.updates = 0

    def fit(self) -> None:
        """Make all updates."""
        while self.updates < self.config.num_updates:
            _, positions = self.noise.at(self.updates)
            self._update((positions[0] * len(self.table.rows)).long())

    def _update(self, index: Tensor) -> None:
        """One step of Adam on the mean squared error (losses.td_loss) over the transitions `index`
        [B], then one of the targets.
        """
        target = (
            self._backup(self.table, self.next_actions, index) - self.units.mean
        ) / self.units.std
        states, actions = (
            self.table.observations[self.table.rows[index]],
            self._actions(self.table, index),
        )
        _, gradient = regress(self.networks, self._inputs(states, actions), target)
        left, ones = self._rate_left(), torch.ones_like(target[:, 0])
        self.updates += 1
        step = torch.tensor(self.updates, dtype=torch.float64, device=ones.device)
        self.adam.step(
            self.networks.flat, gradient, ones * (left * self.config.learning_rate), step
        )
        polyak(self.targets, self.networks, ones * self.config.target_update_rate)

    def _rate_left(self) -> float:
        """The learning rate's factor: 1 for the first half of the updates, then along a cosine to 0
        (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5), so that the batches' noise averages
        out.
        """
        share = self.updates / self.config.num_updates
        return 0.5 * (1.0 + math.cos(math.pi * max(0.0, 2.0 * share - 1.0)))

    @torch.no_grad()
    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_m(s, a), [M, n] in the rewards' units: observations [n, observation_dim], normalised;
        actions [M, n, A].
        """
        blocks = [
            slice(start, start + ROWS_AT_A_TIME)
            for start in range(0, len(observations), ROWS_AT_A_TIME)
        ]
        values = torch.cat(
            [self._outputs(self.networks, observations[b], actions[:, b]) for b in blocks], dim=1
        )
        return self.units.mean + self.units.std * values

    @torch.no_grad()
    def bellman_errors(self, table: TransitionTable, next_actions: Tensor) -> Tensor:
        """Root mean squared difference between Q and what it is regressed on, over a table's
        transitions: [M], in the rewards' units.
        """
        total = torch.zeros(len(next_actions), dtype=torch.float64, device=next_actions.device)
        for index in torch.split(
            torch.arange(len(table.rows), device=total.device), ROWS_AT_A_TIME
        ):
            values = self.values(table.observations[table.rows[index]], self._actions(table, index))
            total += (values - self._backup(table, next_actions, index)).square().sum(1)
        return (total / len(table.rows)).sqrt()

    @torch.no_grad()
    def _backup(self, table: TransitionTable, next_actions: Tensor, index: Tensor) -> Tensor:
        """r + gamma (1 - d) Q'(s', pi(s')) of the transitions `index` [n] of a table: [M, n] in
        rewards' units.

        d is the termination alone: a truncated episode was cut, and what would have come after is
        in Q'. No policy can earn more than the best reward for ever, nor less than the worst, so a
        Q' beyond that is held there.
        """
        next_outputs = self._outputs(
            self.targets, table.observations[table.rows[index] + 1], next_actions[:, index]
        )
        next_values = (self.units.mean + self.units.std * next_outputs).clamp(
            self.units.lowest, self.units.highest
        )
        return (
            table.rewards[index] + self.discount * (1.0 - table.terminations[index]) * next_values
        )

    def _actions(self, table: TransitionTable, index: Tensor) -> Tensor:
        """The data's actions, the same for all policies: [M, n, A]."""
        return table.actions[index].expand(len(self.next_actions), -1, -1)

    def _outputs(self, stack: Stack, observations: Tensor, actions: Tensor) -> Tensor:
        """[n, observation_dim], [M, n, A] -> [M, n]."""
        return outputs(stack, self._inputs(observations, actions)).squeeze(-1)

    def _inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[n, observation_dim], [M, n, A] -> [M, n, observation_dim + A]."""
        return torch.cat([observations.expand(len(actions), *observations.shape), actions], dim=-1)
