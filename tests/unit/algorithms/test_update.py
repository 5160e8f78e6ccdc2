"""Whole updates against tests/unit/algorithms/reference.py, which was written from the equations:
every option, and random mixtures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql, forward_backward, sac
from cqlray.algorithms.agent import AgentState
from cqlray.config.schema import CQLConfig, SACConfig
from tests.unit.algorithms import helpers
from tests.unit.algorithms.helpers import ACTION_DIM, CPU, OBSERVATION_DIM, TINY
from tests.unit.algorithms.reference import Reference

# Two members that share no number, with rates that make three updates visible.
FIRST = dataclasses.replace(
    TINY,
    discount=0.9,
    target_update_rate=0.1,
    policy_learning_rate=3e-2,
    critic_learning_rate=2e-2,
    temperature_learning_rate=1e-2,
    initial_temperature=0.3,
    target_entropy=None,
    reward_scale=1.0,
    reward_shift=0.0,
    conservative_weight=2.0,
    target_gap=1.0,
    initial_multiplier=1.5,
    multiplier_learning_rate=2e-2,
)
SECOND = dataclasses.replace(
    FIRST,
    discount=0.5,
    target_update_rate=0.6,
    policy_learning_rate=1e-2,
    critic_learning_rate=5e-2,
    temperature_learning_rate=4e-2,
    initial_temperature=1.7,
    target_entropy=0.5,
    reward_scale=0.25,
    reward_shift=-1.5,
    conservative_weight=0.7,
    target_gap=8.0,
    initial_multiplier=0.4,
    multiplier_learning_rate=7e-2,
)
BOTH, ONE = "both members", "the second member alone"

CASES: dict[
    str, tuple[dict[str, Any], dict[str, Any]]
] = {  # changes of both members, changes of the second alone
    "plain": ({}, {}),
    "entropy backup": ({"entropy_backup": True}, {}),
    "max target backup": ({"max_target_backup": True}, {}),
    "lagrange": ({"lagrange": True}, {}),
    "lagrange at its cap": ({"lagrange": True}, {"initial_multiplier": 3e6}),
    "lagrange with clip": (
        {"lagrange": True, "difference_clip_max": 2.0},
        {"difference_clip_min": 1.0},
    ),
    "calibrated": ({"calibrated": True}, {}),
    "calibrated lagrange": ({"calibrated": True, "lagrange": True}, {}),
    "difference clip": ({"difference_clip_min": 2.0, "difference_clip_max": 3.0}, {}),
    "difference clip of one": ({}, {"difference_clip_min": 1.0, "difference_clip_max": 4.0}),
    "conservative temperature": (
        {"conservative_temperature": 0.3},
        {"conservative_temperature": 4.0},
    ),
    "cloning, then not": ({"bc_warmup_updates": 2}, {"bc_warmup_updates": 1}),
    "cloning of one": ({}, {"bc_warmup_updates": 10}),
    "one critic": ({"num_critics": 1}, {}),
    "three critics": ({"num_critics": 3}, {}),
    "layer norm": ({"layer_norm": True}, {}),
    "gradient clip": ({"gradient_clip": 0.1}, {"gradient_clip": 2.0}),
    "gradient clip of one": ({}, {"gradient_clip": 0.05}),
    "weight 0 is SAC": ({"conservative_weight": 0.0}, {}),
    "weight 0 of one": ({}, {"conservative_weight": 0.0}),
    "log std at its clamp": ({"log_std_min": 0.2}, {"log_std_min": -0.3}),
    "five samples": ({"num_action_samples": 5}, {}),
    "deeper": ({"policy_layers": 3, "critic_layers": 1}, {}),
    "no discount": ({"discount": 0.0}, {}),
    "targets copied": ({"target_update_rate": 1.0}, {}),
    "all of the critics' loss": (
        {
            "lagrange": True,
            "calibrated": True,
            "num_critics": 3,
            "conservative_temperature": 0.5,
            "difference_clip_max": 6.0,
        },
        {
            "conservative_temperature": 2.0,
            "difference_clip_max": 2.0,
            "difference_clip_min": 1.0,
        },
    ),
    "all together": (
        {
            "entropy_backup": True,
            "lagrange": True,
            "calibrated": True,
            "layer_norm": True,
            "num_critics": 3,
            "gradient_clip": 1.0,
            "bc_warmup_updates": 1,
            "conservative_temperature": 0.5,
            "difference_clip_max": 6.0,
            "log_std_min": -0.5,
        },
        {"difference_clip_max": math.inf, "bc_warmup_updates": 2},
    ),
}


def assert_agrees(agent: AgentState, reference: list[Reference], atol: float) -> None:
    members = len(reference)
    ours = {
        name: tensor.numpy() for name, tensor in helpers.by_member(agent.tensors(), members).items()
    }
    for m, theirs in enumerate(reference):
        expected: dict[str, Any] = {
            "policy": theirs.policy,
            "critics": theirs.critics,
            "targets": theirs.targets,
            "log_temperature": theirs.log_temperature,
            "log_multiplier": theirs.log_multiplier,
        }
        for name, moments in theirs.moments.items():
            expected[f"{name}_adam.first"] = moments.first
            expected[f"{name}_adam.second"] = moments.second
        assert expected.keys() == ours.keys()
        for name, value in expected.items():
            flat = np.broadcast_to(np.ravel(value), ours[name][m].shape)
            np.testing.assert_allclose(
                ours[name][m], flat, rtol=1e-6, atol=atol, err_msg=f"{name} of member {m}"
            )


def check(
    configs: list[CQLConfig] | list[SACConfig], seed: int, num_updates: tuple[int, ...] = (1, 3)
) -> AgentState:
    """Run both, compare after each of `num_updates`."""
    conservative = isinstance(configs[0], CQLConfig)
    members = len(configs)
    agent = helpers.random_agent(configs, seed)
    scalars = helpers.double_scalars(configs)
    table = helpers.random_table(members=members, seed=seed)
    gather = table.gather(scalars)
    reference = helpers.reference_members(agent, configs)
    for update in range(max(num_updates)):
        noise = helpers.random_noise(configs[0], members, 100 * seed + update)
        generator = torch.Generator().manual_seed(1000 * seed + update)
        positions = torch.rand(
            (members, configs[0].batch_size), generator=generator, dtype=torch.float64
        )
        if conservative:
            cql.update(
                agent, gather(positions), noise, scalars, cql.PopulationConfig.of(list(configs))
            )  # type: ignore[arg-type]
        else:
            sac.update(agent, gather(positions), noise, scalars, configs[0])
        for m, one in enumerate(reference):
            own_noise = {name: values[m].numpy() for name, values in noise.items()}
            one.update(
                helpers.reference_batch(table, positions[m].numpy(), m), own_noise, conservative
            )
        if update + 1 in num_updates:
            assert_agrees(agent, reference, atol=1e-8)
    assert agent.step == max(num_updates)
    return agent


@pytest.fixture(params=["all at once", "in tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the rows go through the networks on a CPU; the tiles are of one state, or of seven rows
    and then one.
    """
    if request.param == "in tiles":
        monkeypatch.setattr(forward_backward, "TILED_FROM", 0)
        monkeypatch.setattr(
            forward_backward, "TILE_SIZE", TINY.hidden_units * (1 + 3 * TINY.num_action_samples)
        )
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_cql_update_is_the_equations(case: str, way: str) -> None:
    both, second = CASES[case]
    configs = [dataclasses.replace(FIRST, **both), dataclasses.replace(SECOND, **both | second)]
    check(configs, seed=1)


_SAC_FIELDS = [f.name for f in dataclasses.fields(SACConfig)]


def as_sac(config: CQLConfig) -> SACConfig:
    return SACConfig(**{name: getattr(config, name) for name in _SAC_FIELDS})


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy_backup": True},
        {"entropy_backup": False},
        {"num_critics": 1},
        {"num_critics": 3, "layer_norm": True},
        {"gradient_clip": 0.3},
        {"log_std_min": 0.0},
    ],
    ids=str,
)
def test_sac_update_is_the_equations(changes: dict[str, Any], way: str) -> None:
    check([dataclasses.replace(as_sac(c), **changes) for c in (FIRST, SECOND)], seed=2)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


MEMBER = st.fixed_dictionaries(
    {
        "discount": numbers(0.0, 0.99),
        "target_update_rate": numbers(0.01, 1.0),
        "policy_learning_rate": st.sampled_from([0.0, 1e-2]),
        "critic_learning_rate": st.sampled_from([0.0, 3e-2]),
        "initial_temperature": numbers(0.01, 2.0),
        "target_entropy": st.one_of(st.none(), numbers(-3.0, 1.0)),
        "reward_scale": numbers(0.1, 3.0),
        "reward_shift": numbers(-2.0, 2.0),
        "gradient_clip": st.sampled_from([math.inf, 0.1, 5.0]),
        "log_std_min": numbers(-1.5, 0.5),
        "conservative_weight": st.sampled_from([0.0, 0.5, 5.0]),
        "conservative_temperature": numbers(0.2, 3.0),
        "target_gap": numbers(-1.0, 10.0),
        "initial_multiplier": numbers(0.1, 3.0),
        "difference_clip_min": st.sampled_from([-math.inf, 1.0]),
        "difference_clip_max": st.sampled_from([math.inf, 4.0]),
        "bc_warmup_updates": st.integers(0, 3),
    }
)
STRUCTURE = st.fixed_dictionaries(
    {
        "policy_layers": st.integers(1, 2),
        "critic_layers": st.integers(1, 2),
        "num_critics": st.integers(1, 3),
        "layer_norm": st.booleans(),
        "entropy_backup": st.booleans(),
        "num_action_samples": st.integers(1, 3),
        "lagrange": st.booleans(),
        "max_target_backup": st.booleans(),
        "calibrated": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(STRUCTURE, st.lists(MEMBER, min_size=1, max_size=3), st.integers(0, 1000))
def test_any_mixture_of_options_is_the_equations(
    structure: dict[str, Any], members: list[dict[str, Any]], seed: int
) -> None:
    check([dataclasses.replace(FIRST, **structure, **member) for member in members], seed, (2,))


def test_float32_as_a_learner_runs_it() -> None:
    """initial_state, member_scalars and float32 data, against the same start in float64."""
    configs = [dataclasses.replace(c, lagrange=True, hidden_units=8) for c in (FIRST, SECOND)]
    population, scalars = helpers.fresh_population(configs, [3, 4])
    agent = population.agent
    assert agent.policy.flat.dtype == torch.float32
    reference = helpers.reference_members(agent, configs)
    for one, config in zip(reference, configs, strict=True):
        assert one.log_temperature == pytest.approx(math.log(config.initial_temperature), abs=1e-6)
        assert one.log_multiplier == pytest.approx(math.log(config.initial_multiplier), abs=1e-6)
        np.testing.assert_array_equal(one.critics, one.targets)
    table = helpers.random_table(dtype=torch.float32)
    for update in range(3):
        noise, positions = population.noise.at(update)
        for m, one in enumerate(reference):
            own = {name: values[m].numpy().astype(np.float64) for name, values in noise.items()}
            one.update(helpers.reference_batch(table, positions[m].numpy(), m), own, True)
    population.advance(3, table.gather(scalars))
    assert_agrees(agent, reference, atol=2e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_initial_networks(layer_norm: bool) -> None:
    config = dataclasses.replace(
        TINY, hidden_units=32, num_critics=3, layer_norm=layer_norm, critic_layers=3
    )
    agent = agents.initial_state([config] * 2, [0, 1], OBSERVATION_DIM, ACTION_DIM, CPU)
    assert agent.critics.shape.sizes == (OBSERVATION_DIM + ACTION_DIM, 32, 32, 32, 1)
    assert agent.policy.shape.sizes == (OBSERVATION_DIM, 32, 2 * ACTION_DIM)
    assert agent.critics.flat.shape == (6, agent.critics.shape.num_parameters())
    assert len({tuple(row.tolist()) for row in agent.critics.flat}) == 6, (
        "every critic starts elsewhere"
    )
    torch.testing.assert_close(agent.targets.flat, agent.critics.flat, rtol=0, atol=0)
    assert agent.targets.flat.data_ptr() != agent.critics.flat.data_ptr()
    for stack in (agent.policy, agent.critics):
        for name, leaf in stack.views.items():
            view = leaf.detach()
            layer = int(name.split(".")[0])
            bound = 1.0 / math.sqrt(stack.shape.sizes[layer])
            if name.endswith("norm_scale"):
                assert bool((view == 1.0).all())
            elif name.endswith("norm_shift"):
                assert bool((view == 0.0).all())
            else:
                assert view.abs().max() <= bound
                if view.numel() > 100:
                    assert view.std() == pytest.approx(bound / math.sqrt(3.0), rel=0.2)
