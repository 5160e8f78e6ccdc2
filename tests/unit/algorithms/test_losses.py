"""Each equation against numbers known from elsewhere: closed forms, quadrature, and the bugs of
published CQL code.
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
from torch import Tensor

from cqlray.algorithms import cql, losses, sac, tanh_gaussian
from cqlray.algorithms.agent import AgentState
from cqlray.config.schema import CQLConfig
from tests.unit.algorithms import helpers
from tests.unit.algorithms.helpers import ACTION_DIM, TINY

DOUBLE = torch.float64
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# -- the policy's distribution ---------------------------------------------------------------------


@FEW
@given(st.floats(-1.2, 1.2), st.floats(-1.5, -0.1))
def test_density_integrates_to_one(mean: float, log_std: float) -> None:
    # Over a in [-1, 1] by the trapezoid rule, on nodes that crowd at the bounds.
    nodes = torch.tanh(torch.linspace(-6.0, 6.0, 20_001, dtype=DOUBLE))
    density = tanh_gaussian.tanh_gaussian_log_density(
        tensor([mean]), tensor([log_std]), nodes.unsqueeze(1)
    ).exp()
    assert float(torch.trapezoid(density, nodes)) == pytest.approx(1.0, abs=1e-5)


def test_density_of_two_dimensions_integrates_to_one() -> None:
    nodes = torch.tanh(torch.linspace(-6.0, 6.0, 801, dtype=DOUBLE))
    grid = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), dim=-1)
    density = tanh_gaussian.tanh_gaussian_log_density(
        tensor([0.3, -0.8]), tensor([-0.5, -0.2]), grid
    ).exp()
    assert float(torch.trapezoid(torch.trapezoid(density, nodes), nodes)) == pytest.approx(
        1.0, abs=1e-4
    )


def test_samples_have_the_density_that_is_claimed() -> None:
    mean, log_std, noise = normal(6, 2), normal(6, 2, seed=1) * 0.5, normal(6, 2, seed=2)
    actions, log_density = tanh_gaussian.sample_tanh_gaussian(mean, log_std, noise)
    torch.testing.assert_close(actions, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(
        log_density, tanh_gaussian.tanh_gaussian_log_density(mean, log_std, actions)
    )
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
    )
    torch.testing.assert_close(log_density, theirs.log_prob(actions).sum(-1), rtol=1e-6, atol=1e-6)


def test_histogram_of_samples_follows_the_density() -> None:
    """Against a correction that applies tanh twice, and against a wrong scale: the samples
    themselves are counted.
    """
    noise = normal(400_000, 1)
    actions, log_density = tanh_gaussian.sample_tanh_gaussian(tensor([0.4]), tensor([-0.3]), noise)
    counts, edges = np.histogram(actions.numpy(), bins=20, range=(-1.0, 1.0))
    inside = np.digitize(actions.numpy()[:, 0], edges) - 1
    # The width of a bin is the sum over its samples of 1 / density, divided by the number of
    # samples.
    widths = np.bincount(inside, weights=np.exp(-log_density.numpy()), minlength=20) / len(noise)
    assert counts.min() > 2000
    np.testing.assert_allclose(widths[1:-1], 0.1, rtol=0.03)


@pytest.mark.parametrize("u", [-20.0, -8.0, 0.0, 8.0, 20.0])
def test_density_is_stable_far_out(u: float) -> None:
    pre_tanh = torch.tensor([u], dtype=torch.float32, requires_grad=True)
    _, log_density = tanh_gaussian.sample_tanh_gaussian(pre_tanh, torch.zeros(1), torch.zeros(1))
    exact = -0.5 * math.log(2.0 * math.pi) - (
        math.log(4.0) - 2.0 * abs(u) - 2.0 * math.log1p(math.exp(-2.0 * abs(u)))
    )
    assert float(log_density.detach()) == pytest.approx(exact, rel=1e-5, abs=1e-5)
    (gradient,) = torch.autograd.grad(log_density.sum(), pre_tanh)
    assert float(gradient) == pytest.approx(2.0 * math.tanh(u), abs=1e-5)


def test_density_of_actions_on_their_bounds_is_finite() -> None:
    mean = torch.zeros(4, 2, requires_grad=True)
    log_std = torch.full((4, 2), -1.0, requires_grad=True)
    actions = torch.tensor([[1.0, -1.0], [1.0, 0.0], [-1.0, -1.0], [0.999999, 1.0]])
    log_density = tanh_gaussian.tanh_gaussian_log_density(mean, log_std, actions)
    gradients = torch.autograd.grad(log_density.sum(), [mean, log_std])
    assert bool(log_density.isfinite().all()) and all(bool(g.isfinite().all()) for g in gradients)
    assert float(gradients[0].detach()[0, 0]) > 0 > float(gradients[0].detach()[0, 1]), (
        "towards the bound"
    )


def test_log_std_is_clamped_on_both_sides() -> None:
    output = tensor([[[0.1, -9.0]], [[0.2, 9.0]], [[0.3, -0.7]]])
    mean, log_std = tanh_gaussian.policy_distribution(output, tensor([-5.0, -5.0, -0.5]))
    assert mean.flatten().tolist() == [0.1, 0.2, 0.3]
    assert log_std.flatten().tolist() == [-5.0, 2.0, -0.5]


def test_uniform_noise_is_uniform_in_every_dimension() -> None:
    config = dataclasses.replace(TINY, batch_size=64, num_action_samples=10)
    population, _ = helpers.fresh_population([config], [7])
    drawn = [population.noise.at(update) for update in (0, 1, 2, 40)]
    uniform = torch.cat([noise["uniform"].reshape(-1, ACTION_DIM) for noise, _ in drawn])
    assert bool((uniform.amin(0) < -0.95).all()) and bool((uniform.amax(0) > 0.95).all())
    assert uniform.abs().max() <= 1.0
    assert uniform.std(0).tolist() == pytest.approx([1.0 / math.sqrt(3.0)] * ACTION_DIM, rel=0.05)
    assert uniform.mean(0).tolist() == pytest.approx([0.0] * ACTION_DIM, abs=0.05)
    assert abs(float(torch.corrcoef(uniform.T)[0, 1])) < 0.06
    for name in ("policy", "next", "current_samples", "next_samples"):
        values = torch.cat([noise[name].reshape(-1) for noise, _ in drawn])
        assert (float(values.mean()), float(values.std())) == pytest.approx((0.0, 1.0), abs=0.15), (
            name
        )
    positions = torch.cat([p.reshape(-1) for _, p in drawn])
    assert (
        positions.min() >= 0.0
        and positions.max() < 1.0
        and float(positions.mean()) == pytest.approx(0.5, abs=0.1)
    )


# -- critics ---------------------------------------------------------------------------------------


def test_bellman_target_stops_at_terminations_alone() -> None:
    target = losses.bellman_target(
        rewards=tensor([[1.0, 1.0], [1.0, 1.0]]),
        terminations=tensor([[0.0, 1.0], [1.0, 0.0]]),
        discount=tensor([0.5, 0.9]),
        next_values=tensor([[10.0, 10.0], [10.0, 10.0]]),
    )
    assert target.tolist() == [[6.0, 1.0], [1.0, 10.0]]


def test_bellman_target_ignores_what_follows_a_termination() -> None:
    """The data's truncations do not even reach the update: a batch has no field for them."""
    names = helpers.batch_of(TINY, 1)._fields
    assert "terminations" in names and not any("trunc" in name or "done" in name for name in names)
    config = dataclasses.replace(TINY, hidden_units=32)
    agent = helpers.random_agent([config])
    scalars, noise = helpers.double_scalars([config]), helpers.random_noise(config, 1, 0)
    batch = helpers.batch_of(config, 1)

    def target(terminations: Tensor, shift: float) -> Tensor:
        changed = batch._replace(
            terminations=terminations, next_observations=batch.next_observations + shift
        )
        after = helpers.policy_at(agent, changed.next_observations, scalars)
        return sac.target_values(agent, changed, after, noise, scalars, config)

    ones, zeros = torch.ones_like(batch.terminations), torch.zeros_like(batch.terminations)
    torch.testing.assert_close(target(ones, 0.0), batch.rewards)
    torch.testing.assert_close(target(ones, 1.0), batch.rewards)
    assert not torch.isclose(target(zeros, 0.0), target(zeros, 1.0)).any()


def test_soft_value_takes_the_minimum_and_subtracts_the_entropy_term() -> None:
    q_values = tensor([[[1.0, 5.0], [3.0, 2.0]]])
    assert losses.soft_value(q_values, None, tensor([0.5])).tolist() == [[1.0, 2.0]]
    assert losses.soft_value(q_values, tensor([[2.0, -4.0]]), tensor([0.5])).tolist() == [
        [0.0, 4.0]
    ]


def test_max_backup_is_the_maximum_of_minima() -> None:
    q_values = tensor([[[[5.0, 2.0]], [[1.0, 3.0]]]])  # two critics, two actions, one state
    one = torch.tensor([0.5])
    value = losses.max_backup_value(q_values, None, one)
    assert value.tolist() == [[2.0]], "minima are 1 and 2; the minimum of maxima would be 3"
    log_density = torch.tensor([[[-8.0, 3.0]]])
    assert losses.max_backup_value(q_values, log_density, one).tolist() == [[0.5]], (
        "the entropy of the action that was chosen"
    )


def test_td_loss_is_a_mean_over_the_batch_for_each_critic() -> None:
    td = losses.td_loss(tensor([[[1.0, 2.0], [4.0, 0.0]]]), tensor([[0.0, 1.0]]))
    assert td.tolist() == [[1.0, 8.5]]


@FEW
@given(st.floats(-50.0, 50.0), st.integers(1, 4), st.integers(1, 12), st.floats(0.2, 3.0))
def test_constant_q_with_uniform_actions(
    value: float, action_dim: int, samples: int, temperature: float
) -> None:
    """c + d log 2 + log 3n at temperature 1: not log 3, not log n, not a mean, not minus d log
    2.
    """
    log_mu = torch.full((1, 4, 3 * samples), -action_dim * math.log(2.0), dtype=DOUBLE)
    q_samples = torch.full((1, 2, 4, 3 * samples), value, dtype=DOUBLE)
    gap = losses.conservative_gap(
        q_samples, log_mu, torch.zeros(1, 2, 4, dtype=DOUBLE), tensor([temperature])
    )
    expected = value + action_dim * math.log(2.0) + temperature * math.log(3 * samples)
    torch.testing.assert_close(gap, torch.full((1, 2, 4), expected, dtype=DOUBLE))
    data = losses.conservative_gap(
        q_samples, log_mu, torch.full((1, 2, 4), 7.0, dtype=DOUBLE), tensor([temperature])
    )
    torch.testing.assert_close(data, gap - 7.0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.9), (0.3, 0.9), (0.0, 0.25), (0.1, 0.25)])
@pytest.mark.parametrize("stiffness", [60.0, 120.0])
def test_logsumexp_is_the_integral_for_wide_and_narrow_policies(
    mean: float, std: float, stiffness: float
) -> None:
    """Q = -k |a|^2 / 2 in two dimensions: log mean exp(Q - log mu) is the log of a known integral,
    whatever mu.
    """
    samples = 40_000
    noise = normal(2, samples, 1, 2, seed=5)
    uniform = (
        torch.rand((samples, 1, 2), generator=torch.Generator().manual_seed(6), dtype=DOUBLE) * 2.0
        - 1.0
    )
    first, first_density = tanh_gaussian.sample_tanh_gaussian(
        tensor([mean, mean]), tensor([math.log(std)] * 2), noise[0]
    )
    second, second_density = tanh_gaussian.sample_tanh_gaussian(
        tensor([0.0, 0.0]), tensor([math.log(std)] * 2), noise[1]
    )
    uniform_density = torch.full_like(first_density, -2.0 * math.log(2.0))
    actions = torch.cat([uniform, first, second])
    q_samples = -0.5 * stiffness * actions.square().sum(-1)
    log_mu = torch.cat([uniform_density, first_density, second_density])
    gap = losses.conservative_gap(
        q_samples.T[None, None],
        log_mu.T[None],
        torch.zeros((1, 1, 1), dtype=DOUBLE),
        torch.ones(1, dtype=DOUBLE),
    )
    integral = 2.0 * math.pi / stiffness * math.erf(math.sqrt(stiffness / 2.0)) ** 2
    assert float(gap) - math.log(3 * samples) == pytest.approx(math.log(integral), abs=0.03)


def flat_critics(agent: AgentState, value: float) -> None:
    """Make every critic the constant `value`."""
    for name, view in agent.critics.views.items():
        view.detach().fill_(value if name == f"{len(agent.critics.shape.sizes) - 2}.bias" else 0.0)


def test_constant_critics_give_the_gap_of_the_densities() -> None:
    """The same through cql.critic_gradients: all 3K densities enter one logsumexp, each with its
    own sign and source.
    """
    configs = [TINY, TINY]
    agent, scalars = helpers.random_agent(configs, spread=0.4), helpers.double_scalars(configs)
    flat_critics(agent, 3.0)
    batch, noise = helpers.batch_of(TINY, 2), helpers.random_noise(TINY, 2, 0)
    _, *policies = sac.evaluate_policy(agent, batch, scalars)
    _, metrics, _ = cql.critic_gradients(
        agent, batch, *policies, noise, scalars, cql.PopulationConfig.of(configs)
    )
    for m in range(2):
        gaps = []
        for b in range(TINY.batch_size):
            weights = [2.0**ACTION_DIM] * TINY.num_action_samples
            for name, observations in (
                ("current_samples", batch.observations),
                ("next_samples", batch.next_observations),
            ):
                output = helpers.policy_at(agent, observations, scalars)
                mean, std = output.mean[m, b].numpy(), output.log_std[m, b].exp().numpy()
                for z in noise[name][m, :, b].numpy():
                    u = mean + std * z
                    density = (
                        np.exp(-0.5 * z**2) / (std * math.sqrt(2.0 * math.pi)) * np.cosh(u) ** 2
                    )
                    weights.append(1.0 / float(np.prod(density)))
            assert len(weights) == 3 * TINY.num_action_samples
            gaps.append(math.log(sum(weights)))
        assert float(metrics["conservative_gap"][m]) == pytest.approx(
            sum(gaps) / len(gaps), rel=1e-9
        )


def test_importance_weights_favour_rare_actions() -> None:
    """Of two actions with equal values the one of lower density weighs more in the gradient."""
    q_samples = torch.zeros((1, 1, 1, 2), dtype=DOUBLE, requires_grad=True)
    log_mu = tensor([[[math.log(0.1), math.log(0.4)]]])
    gap = losses.conservative_gap(
        q_samples, log_mu, torch.zeros((1, 1, 1), dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    )
    (gradient,) = torch.autograd.grad(gap.sum(), q_samples)
    assert gradient.flatten().tolist() == pytest.approx([0.8, 0.2])


def test_gap_is_clipped_for_each_state_before_the_mean() -> None:
    gap = tensor([[[-9.0, 1.0, 9.0, 3.0]], [[-9.0, 1.0, 9.0, 3.0]]])
    clip = (tensor([-1.0, -math.inf]), tensor([2.0, math.inf]))
    assert losses.mean_gap(gap, clip).flatten().tolist() == [1.0, 1.0]
    assert losses.mean_gap(gap[:, :, :3], clip).flatten().tolist() == pytest.approx(
        [2.0 / 3.0, 1.0 / 3.0]
    )
    assert losses.conservative_loss(gap, tensor([2.0, 0.0]), clip).flatten().tolist() == [2.0, 0.0]


def test_calibration_bounds_policy_actions_and_leaves_uniform_ones() -> None:
    q_samples = tensor([[[[1.0, 1.0, 1.0, 9.0]]]])
    assert losses.calibrated_values(q_samples, tensor([[5.0]]), 2).flatten().tolist() == [
        1.0,
        1.0,
        5.0,
        9.0,
    ]


# -- the multiplier --------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [-2.0, 2.0])
@pytest.mark.parametrize("weight", [0.5, 5.0])
def test_multiplier_moves_towards_its_target_gap(margin: float, weight: float) -> None:
    """Up while the gap is above its target, down below it, by Adam's rate; at weight 0 it stays."""
    plain = dataclasses.replace(
        TINY, lagrange=True, conservative_weight=weight, multiplier_learning_rate=0.01
    )
    agent, noise, batch = (
        helpers.random_agent([plain]),
        helpers.random_noise(plain, 1, 0),
        helpers.batch_of(plain, 1),
    )
    scalars = helpers.double_scalars([plain])
    _, *policies = sac.evaluate_policy(agent, batch, scalars)
    _, metrics, _ = cql.critic_gradients(
        agent, batch, *policies, noise, scalars, cql.PopulationConfig.of([plain])
    )
    gap = float(metrics["conservative_gap"])
    config = dataclasses.replace(plain, target_gap=gap - margin)
    scalars = helpers.double_scalars([config])
    before = float(agent.log_multiplier)
    cql.update(agent, batch, noise, scalars, cql.PopulationConfig.of([config]))
    assert float(agent.log_multiplier) - before == pytest.approx(
        math.copysign(0.01, margin), rel=1e-5
    )


def test_multiplier_scales_the_penalty_and_is_capped() -> None:
    log_multiplier = tensor([math.log(3.0), 50.0])
    assert losses.multiplier(log_multiplier).tolist() == pytest.approx([3.0, 1e6])
    loss = losses.lagrange_loss(
        tensor([[4.0, 1.0], [2.0, 2.0]]), tensor([0.5, 1.0]), log_multiplier, tensor([2.0, 1.0])
    )
    assert loss.flatten().tolist() == pytest.approx([3.0, -1.5, 1e6, 1e6])


# -- who reaches whom ------------------------------------------------------------------------------

# a number of the update -> the gradients that it changes in the first update, and no others
EFFECTS = {
    "conservative_weight": {"critics"},
    "conservative_temperature": {"critics"},
    "discount": {"critics"},
    "target_entropy": {"temperature"},
    "initial_temperature": {"policy"},
    "bc_warmup_updates": {"policy"},
    "policy_learning_rate": set(),
    "critic_learning_rate": set(),
    "temperature_learning_rate": set(),
    "target_update_rate": set(),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_one_number_changes_the_gradients_that_it_should(name: str) -> None:
    """Adam's first moment after one update is a tenth of the gradient; those that must not change
    are equal to the bit.
    """
    values: dict[str, Any] = {
        "bc_warmup_updates": 5,
        "target_entropy": 1.0,
        "conservative_weight": 50.0,
    }

    def moments(config: CQLConfig) -> dict[str, Tensor]:
        agent, noise, batch = (
            helpers.random_agent([config]),
            helpers.random_noise(config, 1, 0),
            helpers.batch_of(config, 1),
        )
        cql.update(
            agent, batch, noise, helpers.double_scalars([config]), cql.PopulationConfig.of([config])
        )
        return {n: getattr(agent, f"{n}_adam").first for n in ("critics", "policy", "temperature")}

    before, after = (
        moments(TINY),
        moments(dataclasses.replace(TINY, **{name: values.get(name, 0.3)})),
    )
    assert {n for n in before if not torch.equal(before[n], after[n])} == EFFECTS[name]


def test_a_rate_moves_its_own_network_alone() -> None:
    still: dict[str, Any] = {
        f"{n}_learning_rate": 0.0 for n in ("policy", "critic", "temperature", "multiplier")
    }
    moves: dict[str, set[str]] = {
        "policy_learning_rate": {"policy"},
        "critic_learning_rate": {"critics", "targets"},
        "temperature_learning_rate": {"log_temperature"},
        "multiplier_learning_rate": {"log_multiplier"},
    }
    for rate, expected in moves.items():
        config = dataclasses.replace(
            TINY, lagrange=True, target_update_rate=0.5, **still | {rate: 0.01}
        )
        agent, noise, batch = (
            helpers.random_agent([config]),
            helpers.random_noise(config, 1, 0),
            helpers.batch_of(config, 1),
        )
        agent.targets.flat.copy_(agent.critics.flat)
        before = helpers.copy_tensors(agent)
        cql.update(
            agent, batch, noise, helpers.double_scalars([config]), cql.PopulationConfig.of([config])
        )
        moved = {
            n
            for n, t in agent.tensors().items()
            if not torch.equal(t, before[n]) and "adam" not in n
        }
        assert moved == expected


# -- policy and temperature ------------------------------------------------------------------------


def test_cloning_scores_the_data_and_not_a_sample() -> None:
    config = dataclasses.replace(TINY, bc_warmup_updates=1)
    scalars, common = helpers.double_scalars([config]), cql.PopulationConfig.of([config])
    batch, noise = helpers.batch_of(config, 1), helpers.random_noise(config, 1, 0)
    _, policy, _ = sac.evaluate_policy(helpers.random_agent([config], spread=0.3), batch, scalars)

    def loss(actions: Tensor, updates: int = 0) -> float:
        agent = helpers.random_agent([config], spread=0.3)  # the same each time
        agent.set_updates(updates)
        changed = batch._replace(actions=actions)
        return float(cql.update(agent, changed, noise, scalars, common)["policy_loss"])

    own = torch.tanh(policy.mean)
    far = -torch.sign(own) * 0.95
    assert loss(own) < loss(own * 0.5 + far * 0.5) < loss(far)
    nearest = tanh_gaussian.tanh_gaussian_log_density(policy.mean, policy.log_std, own).mean()
    farthest = tanh_gaussian.tanh_gaussian_log_density(policy.mean, policy.log_std, far).mean()
    assert loss(far) - loss(own) == pytest.approx(float(nearest - farthest))
    assert loss(own, updates=1) == loss(far, updates=1), (
        "after the warm-up the data's actions play no part"
    )


def test_policy_loss_by_hand() -> None:
    loss = losses.policy_loss(tensor([[1.0, 3.0]]), tensor([[5.0, -1.0]]), tensor([0.5]))
    assert loss.tolist() == [-1.0]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_policy_climbs_the_smaller_critic(layer_norm: bool) -> None:
    """The derivative of min_i Q_i(s, a~) is that of the critic that is lower there, against
    differences of values.
    """
    config = dataclasses.replace(TINY, layer_norm=layer_norm, batch_size=40)
    agent, batch = helpers.random_agent([config, config]), helpers.batch_of(config, 2)
    values, found = sac.policy_values(agent, batch, batch.actions, config)
    q = sac.critic_values(
        agent.critics, torch.cat([batch.observations, batch.actions], -1), config.num_critics
    )
    assert (
        torch.equal(values, q.amin(1))
        and len(set(q.argmin(1).flatten().tolist())) == config.num_critics
    )
    step = 1e-6
    for column in range(ACTION_DIM):
        moved = torch.zeros_like(batch.actions)
        moved[..., column] = step
        above, below = (
            sac.policy_values(agent, batch, batch.actions + sign * moved, config)[0]
            for sign in (1, -1)
        )
        torch.testing.assert_close(
            found[..., column], (above - below) / (2.0 * step), rtol=1e-5, atol=1e-7
        )


def test_temperature_rises_while_the_entropy_is_below_its_target() -> None:
    gradient = losses.temperature_loss_gradient(
        tensor([[3.0, 1.0], [-3.0, -1.0]]), tensor([-1.0, -1.0])
    )
    assert gradient.tolist() == [
        -1.0,
        3.0,
    ], "entropy -2 lies below the target -1: descent raises log alpha"
