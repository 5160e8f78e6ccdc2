"""The numpy policy that CPU workers act with, against the torch networks that were trained."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.algorithms import agent as agents
from cqlray.algorithms import sac, tanh_gaussian
from cqlray.algorithms.agent import AgentState, Scalars
from cqlray.algorithms.policy import (
    Arrays,
    DeterministicActor,
    Policy,
    StochasticActor,
    UniformActor,
    select_members,
)
from cqlray.algorithms.snapshot import snapshot_arrays
from cqlray.config.schema import CQLConfig
from tests.unit.algorithms import helpers
from tests.unit.algorithms.helpers import ACTION_DIM, CPU, OBSERVATION_DIM, TINY

Array = np.ndarray[Any, np.dtype[Any]]
CLAMPS = (-5.0, -0.2, 0.3)  # of three members; the last two are reached
MEAN = np.array([1.0, -20.0, 0.3], np.float32)
STD = np.array([2.0, 5.0, 0.01], np.float32)
CASES = [
    {},
    {"layer_norm": True, "num_critics": 3},
    {"policy_layers": 3, "critic_layers": 1, "num_critics": 1},
    # "10.weight" sorts before "9.weight"
    {"hidden_units": 8, "policy_layers": 11, "critic_layers": 12},
]


def trained(**changes: Any) -> tuple[AgentState, Scalars, Arrays, CQLConfig]:
    """Three members with random networks, norms away from the identity, and their snapshot."""
    config = dataclasses.replace(TINY, **changes)
    configs = [dataclasses.replace(config, log_std_min=clamp) for clamp in CLAMPS]
    agent = agents.initial_state(configs, [1, 2, 3], OBSERVATION_DIM, ACTION_DIM, CPU)
    generator = torch.Generator().manual_seed(0)
    for stack in (agent.policy, agent.critics):
        stack.flat.add_(torch.randn(stack.flat.shape, generator=generator) * 0.3)
    scalars = agents.member_scalars(configs, ACTION_DIM, CPU)
    return agent, scalars, snapshot_arrays(agent, scalars, MEAN, STD), config


def observations_of(rows: int, seed: int = 0) -> Array:
    """Raw observations [3, rows, observation_dim], float32, in the normaliser's range."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(3, rows, OBSERVATION_DIM)) * STD + MEAN).astype(np.float32)


def normalized(observations: Array) -> torch.Tensor:
    return torch.from_numpy(((observations.astype(np.float64) - MEAN) / STD).astype(np.float32))


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_numpy_policy_is_the_torch_policy(changes: dict[str, Any]) -> None:
    agent, scalars, arrays, config = trained(**changes)
    policy, observations = Policy(arrays), observations_of(20)
    assert (policy.num_members, policy.action_dim) == (3, ACTION_DIM)
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(3, 20, ACTION_DIM)).astype(np.float32)
    actions = generator.uniform(-1.0, 1.0, (3, 20, ACTION_DIM)).astype(np.float32)
    output = helpers.policy_at(agent, normalized(observations), scalars)
    sampled, _ = tanh_gaussian.sample_tanh_gaussian(
        output.mean, output.log_std, torch.from_numpy(noise)
    )
    inputs = torch.cat([normalized(observations), torch.from_numpy(actions)], -1)
    values = sac.critic_values(agent.critics, inputs, config.num_critics).amin(1)
    np.testing.assert_allclose(
        policy.act(observations), torch.tanh(output.mean).numpy(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        policy.sample(observations, noise), sampled.numpy(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        policy.value(observations, actions), values.numpy(), rtol=1e-4, atol=1e-4
    )
    for result in (
        policy.act(observations),
        policy.sample(observations, noise),
        policy.value(observations, actions),
    ):
        assert result.dtype == np.float32
    if not changes:
        clamped = output.log_std == torch.tensor(CLAMPS).view(3, 1, 1)
        assert clamped[1:].any() and not clamped.all(), "the clamp must play a part here"


@pytest.mark.parametrize("changes", CASES[:2], ids=str)
def test_members_are_selected_in_the_given_order(changes: dict[str, Any]) -> None:
    _, _, arrays, _ = trained(**changes)
    whole, observations = Policy(arrays), observations_of(6)
    noise = np.random.default_rng(2).normal(size=(3, 6, ACTION_DIM)).astype(np.float32)
    actions = np.tanh(noise)
    for indices in ([2, 0], [1], [0, 1, 2], [1, 1]):
        some = Policy(select_members(arrays, indices))
        assert some.num_members == len(indices)
        np.testing.assert_allclose(
            some.act(observations[indices]), whole.act(observations)[indices], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            some.sample(observations[indices], noise[indices]),
            whole.sample(observations, noise)[indices],
            rtol=1e-5,
            atol=1e-6,
        )
        np.testing.assert_allclose(
            some.value(observations[indices], actions[indices]),
            whole.value(observations, actions)[indices],
            rtol=1e-5,
            atol=1e-6,
        )
    for name, array in select_members(arrays, [2, 0]).items():
        if not name.startswith(("critics.", "observation_")):
            np.testing.assert_array_equal(array, arrays[name][[2, 0]], err_msg=name)
    np.testing.assert_array_equal(
        whole.member(1).act(observations[1:2]),
        Policy(select_members(arrays, [1])).act(observations[1:2]),
    )


def test_a_snapshot_holds_what_the_members_were_trained_with() -> None:
    _, scalars, arrays, _ = trained()
    for name in ("log_std_min", "discount", "reward_scale", "reward_shift"):
        np.testing.assert_array_equal(arrays[name], scalars[name].numpy())


@pytest.mark.parametrize("members", [1, 3])
def test_a_snapshot_does_not_move_with_the_agent(members: int) -> None:
    configs = [TINY] * members
    agent = agents.initial_state(configs, range(members), OBSERVATION_DIM, ACTION_DIM, CPU)
    arrays = snapshot_arrays(agent, agents.member_scalars(configs, ACTION_DIM, CPU), MEAN, STD)
    before = {name: array.copy() for name, array in arrays.items()}
    agent.critics.flat.add_(1.0)
    agent.policy.flat.add_(1.0)
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_deterministic_actor_gives_each_member_its_own_rows() -> None:
    _, _, arrays, _ = trained()
    policy, observations = Policy(arrays), observations_of(4)
    acted = DeterministicActor(policy).act(observations.reshape(12, OBSERVATION_DIM))
    np.testing.assert_array_equal(acted, policy.act(observations).reshape(12, ACTION_DIM))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True), st.integers(1, 4))
def test_an_episodes_draws_do_not_depend_on_its_neighbours(seeds: list[int], steps: int) -> None:
    _, _, arrays, _ = trained()
    policy = Policy(arrays).member(1)
    uniform, stochastic = UniformActor(ACTION_DIM, seeds), StochasticActor(policy, seeds)
    alone = [(UniformActor(ACTION_DIM, [seed]), StochasticActor(policy, [seed])) for seed in seeds]
    for step in range(steps):
        observations = np.resize(observations_of(8, step)[0], (len(seeds), OBSERVATION_DIM))
        drawn, sampled = uniform.act(observations), stochastic.act(observations)
        assert drawn.shape == sampled.shape == (len(seeds), ACTION_DIM)
        assert drawn.dtype == sampled.dtype == np.float32
        for row, (own_uniform, own_stochastic) in enumerate(alone):
            own = observations[row : row + 1]
            np.testing.assert_array_equal(drawn[row], own_uniform.act(own)[0])
            np.testing.assert_allclose(
                sampled[row], own_stochastic.act(own)[0], rtol=1e-5, atol=1e-6
            )


def test_stochastic_actor_draws_from_the_policys_distribution() -> None:
    _, _, arrays, _ = trained()
    policy = Policy(arrays).member(0)
    observation = observations_of(1)[0]
    pre_tanh = np.arctanh(
        StochasticActor(policy, range(4000)).act(np.repeat(observation, 4000, 0)).astype(np.float64)
    )
    agent, scalars, _, _ = trained()
    output = helpers.policy_at(agent, normalized(observations_of(1)), scalars)
    mean, std = output.mean[0, 0].numpy(), output.log_std[0, 0].exp().numpy()
    np.testing.assert_allclose(pre_tanh.mean(0), mean, atol=4 * std.max() / np.sqrt(4000))
    np.testing.assert_allclose(pre_tanh.std(0), std, rtol=0.06)


def test_uniform_actor_covers_the_bounds() -> None:
    actor = UniformActor(ACTION_DIM, range(50))
    drawn = np.concatenate([actor.act(np.zeros((50, OBSERVATION_DIM))) for _ in range(40)])
    assert (
        (drawn.min(0) < -0.95).all() and (drawn.max(0) > 0.95).all() and np.abs(drawn).max() <= 1.0
    )
    np.testing.assert_allclose(drawn.std(0), 1.0 / np.sqrt(3.0), rtol=0.05)
    assert len({tuple(row) for row in drawn.tolist()}) == 2000, "no two draws are equal"


def test_acting_needs_no_torch() -> None:
    code = "import sys, cqlray.algorithms.policy; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
