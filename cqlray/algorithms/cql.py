"""CQL(H) (Kumar et al. 2020, arXiv 2006.04779): SAC with one more term in the critics' loss, and
nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cqlray.algorithms import losses, sac
from cqlray.algorithms.agent import AgentState, Batch, Scalars
from cqlray.algorithms.networks import Pass, critic_values
from cqlray.algorithms.sac import Metrics, Noise, PolicyOutput
from cqlray.config.schema import CQLConfig


@dataclass(frozen=True)
class PopulationConfig:
    """A population's structure, and which of its members' numbers call for a term at all."""

    config: CQLConfig
    clip_gradient: bool
    clip_gap: bool
    bc_warmup_updates: int

    @staticmethod
    def of(configs: list[CQLConfig]) -> PopulationConfig:
        return PopulationConfig(
            config=configs[0],
            clip_gradient=any(c.gradient_clip < math.inf for c in configs),
            clip_gap=any(
                c.difference_clip_min > -math.inf or c.difference_clip_max < math.inf
                for c in configs
            ),
            bc_warmup_updates=max(c.bc_warmup_updates for c in configs),
        )


def noise_shapes(config: CQLConfig, action_dim: int) -> dict[str, tuple[int, ...]]:
    """Noise that one update of one member draws; "uniform" is on [-1, 1], the rest standard
    normal.
    """
    samples = (config.num_action_samples, config.batch_size, action_dim)
    return {
        **sac.noise_shapes(config, action_dim),
        "current_samples": samples,
        "next_samples": samples,
        "uniform": samples,
    }


def _samples(policy: PolicyOutput, noise: Tensor) -> tuple[Tensor, Tensor]:
    """K actions of each state's policy and their log density: noise [M, K, B, A] -> [M, B, K, A],
    [M, B, K].
    """
    return losses.sample_tanh_gaussian(
        policy.mean.unsqueeze(2), policy.log_std.unsqueeze(2), noise.transpose(1, 2)
    )


def _critic_inputs(observations: Tensor, actions: Tensor) -> Tensor:
    """Each of a state's S actions beside it, state by state: [M, B, O], [M, B, S, A] ->
    [M, B * S, O + A].
    """
    members, batch, samples, _ = actions.shape
    repeated = observations.unsqueeze(2).expand(members, batch, samples, observations.shape[-1])
    return torch.cat([repeated, actions], dim=-1).view(members, batch * samples, -1)


def _target(
    agent: AgentState,
    batch: Batch,
    next_policy: PolicyOutput,
    next_samples: tuple[Tensor, Tensor],
    noise: Noise,
    scalars: Scalars,
    config: CQLConfig,
) -> Tensor:
    """y, [M, B]; with max_target_backup from the K next actions that the conservative term samples
    too.
    """
    if not config.max_target_backup:
        return sac.target_values(agent, batch, next_policy, noise, scalars, config)
    actions, log_density = next_samples
    q_next = critic_values(
        agent.targets, _critic_inputs(batch.next_observations, actions), config.num_critics
    )
    q_next = q_next.view(*q_next.shape[:2], *actions.shape[1:3])
    entropy = log_density if config.entropy_backup else None
    value = losses.max_backup_value(q_next, entropy, agent.log_temperature.exp())
    return losses.bellman_target(batch.rewards, batch.terminations, scalars["discount"], value)


def critic_gradients(
    agent: AgentState,
    batch: Batch,
    policy: PolicyOutput,
    next_policy: PolicyOutput,
    noise: Noise,
    scalars: Scalars,
    settings: PopulationConfig,
) -> tuple[Tensor, Metrics, Tensor]:
    """Gradient of the critics' loss [M * N, P], metrics, and the multiplier's gradient [M].

    The loss is losses.td_loss + losses.conservative_loss (or lagrange_loss), summed over members
    and critics; its derivative by the values is losses.CriticLossGradient, which the critics take
    back piece by piece.
    """
    config = settings.config
    current_actions, current_density = _samples(policy, noise["current_samples"])
    next_actions, next_density = _samples(next_policy, noise["next_samples"])
    uniform_density = torch.full_like(current_density, -noise["uniform"].shape[-1] * math.log(2.0))
    log_density = torch.cat([uniform_density, current_density, next_density], dim=2)  # [M, B, 3K]
    target = _target(
        agent, batch, next_policy, (next_actions, next_density), noise, scalars, config
    )
    uniform = noise["uniform"].transpose(1, 2)
    actions = torch.cat(
        [batch.actions.unsqueeze(2), uniform, current_actions, next_actions], dim=2
    )  # [M, B, 1 + 3K, A]

    temperature, weight = scalars["conservative_temperature"], scalars["conservative_weight"]
    clip = (
        (scalars["difference_clip_min"], scalars["difference_clip_max"])
        if settings.clip_gap
        else None
    )
    multiplied = weight * losses.multiplier(agent.log_multiplier) if config.lagrange else weight
    samples, critics = actions.shape[2], config.num_critics
    loss_gradient = losses.CriticLossGradient(log_density, target, multiplied, temperature, clip)

    def derivative(network: int | None, rows: slice, values: Tensor) -> Tensor:
        own = slice(None) if network is None else slice(network // critics, network // critics + 1)
        states = slice(rows.start // samples, rows.stop // samples)
        q = values.view(-1, critics if network is None else 1, states.stop - states.start, samples)
        bounded = _bounded(
            q, None if batch.data_returns is None else batch.data_returns[own, states], config
        )
        gradient = loss_gradient(bounded, own, states)
        if config.calibrated:  # a value that stands below the data's return has no part in the loss
            gradient = gradient * (bounded == q)
        return gradient.view(values.shape)

    values, gradient = agent.critics.differentiate(
        _critic_inputs(batch.observations, actions), samples, derivative
    )
    q = _bounded(
        values.view(-1, critics, config.batch_size, samples), batch.data_returns, config
    )  # [M, N, B, 1 + 3K]
    q_data = q[..., 0]
    gap = losses.conservative_gap(q[..., 1:], log_density, q_data, temperature)
    multiplier_gradient = torch.zeros_like(agent.log_multiplier)
    if config.lagrange:
        gaps = losses.mean_gap(gap, clip)
        multiplier_gradient = losses.multiplier_gradient(
            gaps, weight, agent.log_multiplier, scalars["target_gap"]
        )
    metrics = {
        "td_loss": losses.td_loss(q_data, target).mean(1),
        "conservative_gap": gap.mean((1, 2)),
        "q_data": q_data.mean((1, 2)),
        "q_target": target.mean(1),
    }
    return gradient, metrics, multiplier_gradient


def _bounded(q: Tensor, data_returns: Tensor | None, config: CQLConfig) -> Tensor:
    """With Cal-QL the policy's actions' values are bounded by the data's returns; else as they are:
    [M, N, B, 1 + 3K].
    """
    if not config.calibrated:
        return q
    assert data_returns is not None
    return losses.calibrated_values(q, data_returns, 1 + config.num_action_samples)


def policy_gradient(
    agent: AgentState,
    batch: Batch,
    taken: Pass,
    policy: PolicyOutput,
    noise: Noise,
    scalars: Scalars,
    settings: PopulationConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the policy's loss [M, P], the loss [M], and log pi(a~|s) [M, B]; `taken` gave the
    policy at the batch.

    Members in their first updates clone the data's actions: log pi(a|s) of these stands in the
    place of min_i Q_i, as in the authors' code.
    """
    cloning = agent.step < scalars["bc_warmup_updates"] if settings.bc_warmup_updates else None
    return sac.policy_gradient(
        agent, batch, taken, policy, noise, scalars, settings.config, cloning
    )


@torch.no_grad()
def update(
    agent: AgentState, batch: Batch, noise: Noise, scalars: Scalars, settings: PopulationConfig
) -> Metrics:
    """One CQL update of every member, in place; metrics [M] each, left on the device."""
    taken, policy, next_policy = sac.evaluate_policy(agent, batch, scalars)
    critic_gradient, metrics, multiplier_gradient = critic_gradients(
        agent, batch, policy, next_policy, noise, scalars, settings
    )
    of_policy, loss_of_policy, log_density = policy_gradient(
        agent, batch, taken, policy, noise, scalars, settings
    )
    temperature_gradient = losses.temperature_gradient(log_density, scalars["target_entropy"])
    metrics["policy_loss"] = loss_of_policy
    metrics["entropy"] = -log_density.mean(1)
    metrics["temperature"] = agent.log_temperature.exp()
    metrics["multiplier"] = losses.multiplier(agent.log_multiplier)
    sac.apply_gradients(
        agent, critic_gradient, of_policy, temperature_gradient, scalars, settings.clip_gradient
    )
    if settings.config.lagrange:
        agent.multiplier_adam.step(
            agent.log_multiplier.unsqueeze(1),
            multiplier_gradient.unsqueeze(1),
            scalars["multiplier_learning_rate"],
            agent.step,
        )
    return metrics
