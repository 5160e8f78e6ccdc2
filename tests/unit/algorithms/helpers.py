"""Tiny populations in float64, their data, and their counterparts in
tests/unit/algorithms/reference.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql, sac
from cqlray.algorithms.agent import Adam, AgentState, Batch, Scalars
from cqlray.algorithms.forward_backward import outputs
from cqlray.algorithms.networks import Stack
from cqlray.algorithms.population import NoiseStream, Population, TransitionTable
from cqlray.algorithms.sac import PolicyOutput
from cqlray.algorithms.tanh_gaussian import policy_distribution
from cqlray.config.schema import CQLConfig, SACConfig
from tests.unit.algorithms.reference import Reference

torch.set_num_threads(1)

CPU = torch.device("cpu")
OBSERVATION_DIM, ACTION_DIM = 3, 2
TINY = CQLConfig(
    hidden_units=5, batch_size=4, num_action_samples=2, policy_layers=1, critic_layers=2
)


def as_double(agent: AgentState) -> AgentState:
    """The same agent with float64 tensors of its own."""
    moments = {
        f"{name}_adam": Adam(adam.first.double(), adam.second.double())
        for name in ("policy", "critics", "temperature", "multiplier")
        for adam in [getattr(agent, f"{name}_adam")]
    }
    stacks = {
        name: Stack(stack.shape, stack.flat.double())
        for name in ("policy", "critics", "targets")
        for stack in [getattr(agent, name)]
    }
    return dataclasses.replace(
        agent,
        **stacks,
        **moments,
        log_temperature=agent.log_temperature.double(),
        log_multiplier=agent.log_multiplier.double(),
    )


def double_scalars(configs: Sequence[SACConfig], action_dim: int = ACTION_DIM) -> Scalars:
    """member_scalars, but with the configs' float64 values."""
    scalars = agents.member_scalars(configs, action_dim, CPU)
    return {
        name: torch.tensor(
            [float(-action_dim if getattr(c, name) is None else getattr(c, name)) for c in configs],
            dtype=torch.float64,
        )
        for name in scalars
    }


def policy_at(agent: AgentState, observations: torch.Tensor, scalars: Scalars) -> PolicyOutput:
    """The policy's distribution at observations [M, n, observation_dim]."""
    return PolicyOutput(
        *policy_distribution(outputs(agent.policy, observations), scalars["log_std_min"])
    )


def random_agent(configs: Sequence[SACConfig], seed: int = 0, spread: float = 0.6) -> AgentState:
    """A float64 agent whose every tensor is random: targets unlike critics, norms unlike the
    identity.
    """
    generator = torch.Generator().manual_seed(seed)
    agent = as_double(
        agents.initial_state(configs, range(len(configs)), OBSERVATION_DIM, ACTION_DIM, CPU)
    )
    for stack in (agent.policy, agent.critics, agent.targets):
        stack.flat.copy_(
            torch.randn(stack.flat.shape, generator=generator, dtype=torch.float64) * spread
        )
    agent.log_temperature.copy_(
        torch.tensor([c.initial_temperature for c in configs], dtype=torch.float64).log()
    )
    multipliers = [getattr(c, "initial_multiplier", 1.0) for c in configs]
    agent.log_multiplier.copy_(torch.tensor(multipliers, dtype=torch.float64).log())
    return agent


def random_noise(config: SACConfig, members: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (cql if isinstance(config, CQLConfig) else sac).noise_shapes(config, ACTION_DIM)
    noise = {}
    for name, shape in shapes.items():
        size = (members, *shape)
        if name == "uniform":
            noise[name] = torch.rand(size, generator=generator, dtype=torch.float64) * 2.0 - 1.0
        else:
            noise[name] = torch.randn(size, generator=generator, dtype=torch.float64)
    return noise


def random_table(
    transitions: int = 40, members: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64
) -> TransitionTable:
    """Episodes of five steps; every other one ends by termination; some actions lie on their
    bounds.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    episodes = transitions // 5
    actions = torch.tanh(normal(transitions, ACTION_DIM) * 1.5)
    actions[::9, 0] = 1.0
    actions[4::9, 1] = -1.0
    terminations = torch.zeros(transitions, dtype=dtype)
    terminations[4::10] = 1.0
    return TransitionTable(
        observations=normal(transitions + episodes, OBSERVATION_DIM),
        rows=torch.arange(transitions) + torch.arange(episodes).repeat_interleave(5),
        actions=actions,
        rewards=normal(transitions),
        terminations=terminations,
        data_returns=normal(members, transitions) * 2.0,
        returns_of=torch.arange(members),
    )


def batch_of(config: SACConfig, members: int, seed: int = 0) -> Batch:
    """A random batch, rewards as trained on; data returns too."""
    scalars = {
        "reward_scale": torch.ones(members, dtype=torch.float64),
        "reward_shift": torch.zeros(members, dtype=torch.float64),
    }
    positions = torch.rand(
        (members, config.batch_size),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    return random_table(members=members, seed=seed).gather(scalars)(positions)


def reference_batch(
    table: TransitionTable, positions: np.ndarray[Any, Any], member: int
) -> dict[str, Any]:
    """What a member's positions stand for, looked up row by row."""
    steps = [int(np.floor(position * len(table.rows))) for position in positions]
    arrays = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    arrays = {
        name: None if tensor is None else tensor.numpy().astype(np.float64)
        for name, tensor in arrays.items()
    }
    rows = [int(arrays["rows"][step]) for step in steps]
    return {
        "observations": np.stack([arrays["observations"][row] for row in rows]),
        "next_observations": np.stack([arrays["observations"][row + 1] for row in rows]),
        "actions": np.stack([arrays["actions"][step] for step in steps]),
        "rewards": np.array([arrays["rewards"][step] for step in steps]),
        "terminations": np.array([arrays["terminations"][step] for step in steps]),
        "data_returns": np.array([arrays["data_returns"][member, step] for step in steps]),
    }


def reference_members(agent: AgentState, configs: Sequence[SACConfig]) -> list[Reference]:
    """Each member of an agent, as the numpy reference holds it."""
    critics = agent.critics.flat.view(len(configs), configs[0].num_critics, -1)
    targets = agent.targets.flat.view(len(configs), configs[0].num_critics, -1)
    return [
        Reference(
            config=config,
            policy_sizes=agent.policy.shape.sizes,
            critic_sizes=agent.critics.shape.sizes,
            policy=agent.policy.flat[m].numpy().astype(np.float64),
            critics=critics[m].numpy().astype(np.float64),
            targets=targets[m].numpy().astype(np.float64),
            log_temperature=float(agent.log_temperature[m]),
            log_multiplier=float(agent.log_multiplier[m]),
        )
        for m, config in enumerate(configs)
    ]


def copy_tensors(agent: AgentState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.tensors().items()}


def by_member(tensors: dict[str, torch.Tensor], members: int) -> dict[str, torch.Tensor]:
    return {name: tensor.reshape(members, -1) for name, tensor in tensors.items()}


def fresh_population(
    configs: Sequence[CQLConfig], seeds: Sequence[int]
) -> tuple[Population, Scalars]:
    """A float32 population as a learner makes it; one member's everything comes from its own config
    and seed.
    """
    scalars = agents.member_scalars(configs, ACTION_DIM, CPU)
    settings = cql.PopulationConfig.of(list(configs))
    population = Population(
        agents.initial_state(configs, seeds, OBSERVATION_DIM, ACTION_DIM, CPU),
        lambda agent, batch, noise: cql.update(agent, batch, noise, scalars, settings),
        NoiseStream(seeds, cql.noise_shapes(configs[0], ACTION_DIM), configs[0].batch_size, CPU),
    )
    return population, scalars
