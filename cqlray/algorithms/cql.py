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
from cqlray.algorithms.forward_backward import Derivative, differentiate, members_of
from cqlray.algorithms.sac import Metrics, Noise, PolicyOutput
from cqlray.algorithms.tanh_gaussian import sample_tanh_gaussian
from cqlray.config.schema import CQLConfig


@dataclass(frozen=True)
class PopulationConfig:
    """What a population's members have in common, and which terms any of them needs at all."""

    config: CQLConfig  # any member's: only what is the same for all is read from it
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


@dataclass(frozen=True)
class Samples:
    """The actions that the critics are evaluated at, and what each was drawn with."""

    actions: Tensor  # [M, B, 1 + 3K, A]: the data's, K uniform, K of pi(.|s), K of pi(.|s')
    log_density: Tensor  # [M, B, 3K], of all but the data's
    next_actions: tuple[Tensor, Tensor]  # those of pi(.|s') alone, and their log density


def sample_actions(
    batch: Batch, policy: PolicyOutput, next_policy: PolicyOutput, noise: Noise
) -> Samples:
    """All three sources of the conservative term, at every state of the batch."""
    current_actions, current_density = _samples(policy, noise["current_samples"])
    next_actions, next_density = _samples(next_policy, noise["next_samples"])
    uniform_density = torch.full_like(current_density, -noise["uniform"].shape[-1] * math.log(2.0))
    uniform = noise["uniform"].transpose(1, 2)
    return Samples(
        torch.cat([batch.actions.unsqueeze(2), uniform, current_actions, next_actions], dim=2),
        torch.cat([uniform_density, current_density, next_density], dim=2),
        (next_actions, next_density),
    )


def _samples(policy: PolicyOutput, noise: Tensor) -> tuple[Tensor, Tensor]:
    """K actions of each state's policy and their log density: noise [M, K, B, A] -> [M, B, K, A],
    [M, B, K].
    """
    return sample_tanh_gaussian(
        policy.mean.unsqueeze(2), policy.log_std.unsqueeze(2), noise.transpose(1, 2)
    )


def _critic_inputs(observations: Tensor, actions: Tensor) -> Tensor:
    """Each state's observation beside each of its S actions, state by state: [M, B, O],
    [M, B, S, A] -> [M, B * S, O + A].
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
    """y, [M, B]: SAC's, or with max_target_backup from the K next actions that the conservative
    term samples as well.
    """
    if not config.max_target_backup:
        return sac.target_values(agent, batch, next_policy, noise, scalars, config)
    actions, log_density = next_samples
    inputs = _critic_inputs(batch.next_observations, actions)
    q_next = sac.critic_values(agent.targets, inputs, config.num_critics)
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
    common: PopulationConfig,
) -> tuple[Tensor, Metrics, Tensor]:
    """Gradient of losses.critic_loss, summed over members and critics, with respect to the critics'
    parameters [M * N, P]; metrics; and the multiplier's gradient [M].
    """
    config = common.config
    samples = sample_actions(batch, policy, next_policy, noise)
    target = _target(agent, batch, next_policy, samples.next_actions, noise, scalars, config)
    temperature, weight = scalars["conservative_temperature"], scalars["conservative_weight"]
    clip = (
        (scalars["difference_clip_min"], scalars["difference_clip_max"])
        if common.clip_gap
        else None
    )
    multiplied = weight * losses.multiplier(agent.log_multiplier) if config.lagrange else weight
    loss_gradient = losses.CriticLossGradient(
        samples.log_density, target, multiplied, temperature, clip
    )
    values, gradient = differentiate(
        agent.critics,
        _critic_inputs(batch.observations, samples.actions),
        samples.actions.shape[2],
        _derivative(loss_gradient, batch.data_returns, samples.actions.shape[2], config),
    )
    q = values.view(-1, config.num_critics, *samples.actions.shape[1:3])  # [M, N, B, 1 + 3K]
    q = _bounded(q, batch.data_returns, config)
    gap = losses.conservative_gap(q[..., 1:], samples.log_density, q[..., 0], temperature)
    multiplier_gradient = torch.zeros_like(agent.log_multiplier)
    if config.lagrange:
        multiplier_gradient = losses.multiplier_loss_gradient(
            losses.mean_gap(gap, clip), weight, agent.log_multiplier, scalars["target_gap"]
        )
    return gradient, _metrics(q[..., 0], target, gap), multiplier_gradient


def _derivative(
    loss_gradient: losses.CriticLossGradient,
    data_returns: Tensor | None,
    samples: int,
    config: CQLConfig,
) -> Derivative:
    """The critics' loss's derivative with respect to their outputs, for any part of these; a
    state's `samples` actions are rows next to each other.
    """
    critics = config.num_critics

    def derivative(network: int | None, rows: slice, values: Tensor) -> Tensor:
        members = members_of(network, critics)
        states = slice(rows.start // samples, rows.stop // samples)
        q = values.view(-1, critics if network is None else 1, states.stop - states.start, samples)
        returns = None if data_returns is None else data_returns[members, states]
        bounded = _bounded(q, returns, config)
        gradient = loss_gradient(bounded, members, states)
        if config.calibrated:
            gradient = losses.calibrated_values_gradient(q, bounded, gradient)
        return gradient.view(values.shape)

    return derivative


def _bounded(q: Tensor, data_returns: Tensor | None, config: CQLConfig) -> Tensor:
    """The values as the loss takes them, [M, N, B, 1 + 3K]: Cal-QL bounds those of the policy's
    actions by the data's returns.
    """
    if not config.calibrated:
        return q
    assert data_returns is not None
    return losses.calibrated_values(q, data_returns, 1 + config.num_action_samples)


def _metrics(q_data: Tensor, target: Tensor, gap: Tensor) -> Metrics:
    return {
        "td_loss": losses.td_loss(q_data, target).mean(1),
        "conservative_gap": gap.mean((1, 2)),
        "q_data": q_data.mean((1, 2)),
        "q_target": target.mean(1),
    }


@torch.no_grad()
def update(
    agent: AgentState, batch: Batch, noise: Noise, scalars: Scalars, common: PopulationConfig
) -> Metrics:
    """One CQL update of every member, in place; metrics [M] each, left on the device."""
    taken, policy, next_policy = sac.evaluate_policy(agent, batch, scalars)
    of_critics, metrics, of_multiplier = critic_gradients(
        agent, batch, policy, next_policy, noise, scalars, common
    )
    # In its first bc_warmup_updates a member clones the data's actions: log pi(a|s) of these
    # replaces min_i Q_i, as in the authors' code.
    cloning = agent.step < scalars["bc_warmup_updates"] if common.bc_warmup_updates else None
    of_policy, policy_loss, log_density = sac.policy_gradient(
        agent, batch, taken, policy, noise, scalars, common.config, cloning
    )
    of_temperature = losses.temperature_loss_gradient(log_density, scalars["target_entropy"])
    metrics["policy_loss"] = policy_loss
    metrics["entropy"] = -log_density.mean(1)
    metrics["temperature"] = agent.log_temperature.exp()
    metrics["multiplier"] = losses.multiplier(agent.log_multiplier)
    sac.apply_gradients(agent, of_critics, of_policy, of_temperature, scalars, common.clip_gradient)
    if common.config.lagrange:
        agent.multiplier_adam.step(
            agent.log_multiplier.unsqueeze(1),
            of_multiplier.unsqueeze(1),
            scalars["multiplier_learning_rate"],
            agent.step,
        )
    return metrics
