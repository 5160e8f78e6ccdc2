"""SAC (Haarnoja et al. 2018, arXiv 1812.05905, algorithm 1): the teacher's update, and the parts
that CQL shares with it.

Order of an update: the gradients of critics, policy and temperature are all taken at the old
parameters, then all are applied, then the targets move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cqlray.algorithms import losses
from cqlray.algorithms.agent import AgentState, Batch, Scalars, clip_gradient, polyak
from cqlray.algorithms.forward_backward import Pass, forward_pass, outputs, regress
from cqlray.algorithms.networks import Stack
from cqlray.algorithms.tanh_gaussian import (
    policy_distribution,
    policy_distribution_gradient,
    sample_tanh_gaussian,
    tanh_gaussian_log_density,
    tanh_gaussian_log_density_gradient,
)
from cqlray.config.schema import SACConfig

Metrics = dict[str, Tensor]
Noise = dict[str, Tensor]


@dataclass(frozen=True)
class PolicyOutput:
    """The policy at a batch of states, whose network ran once for each state: mean and log standard
    deviation, [M, B, A] each.
    """

    mean: Tensor
    log_std: Tensor


def noise_shapes(config: SACConfig, action_dim: int) -> dict[str, tuple[int, ...]]:
    """Standard normal noise that one update of one member draws."""
    shape = (config.batch_size, action_dim)
    return {"policy": shape, "next": shape}


def evaluate_policy(
    agent: AgentState, batch: Batch, scalars: Scalars
) -> tuple[Pass, PolicyOutput, PolicyOutput]:
    """The policy's distributions at the batch's observations and at the next ones, and the forward
    pass that gave them; a backward pass from it concerns the former alone.
    """
    observations = torch.cat([batch.observations, batch.next_observations], dim=1)
    taken = forward_pass(agent.policy, observations)
    mean, log_std = policy_distribution(taken.outputs, scalars["log_std_min"])
    size = batch.rewards.shape[1]
    return (
        taken,
        PolicyOutput(mean[:, :size], log_std[:, :size]),
        PolicyOutput(mean[:, size:], log_std[:, size:]),
    )


def target_values(
    agent: AgentState,
    batch: Batch,
    next_policy: PolicyOutput,
    noise: Noise,
    scalars: Scalars,
    config: SACConfig,
) -> Tensor:
    """y, [M, B]: losses.bellman_target of losses.soft_value by the target critics."""
    actions, log_density = sample_tanh_gaussian(
        next_policy.mean, next_policy.log_std, noise["next"]
    )
    q_next = critic_values(
        agent.targets, torch.cat([batch.next_observations, actions], -1), config.num_critics
    )
    entropy = log_density if config.entropy_backup else None
    value = losses.soft_value(q_next, entropy, agent.log_temperature.exp())
    return losses.bellman_target(batch.rewards, batch.terminations, scalars["discount"], value)


def critic_values(critics: Stack, inputs: Tensor, num_critics: int) -> Tensor:
    """Q_i of each member's critics: inputs [M, rows, observation + action] -> [M, N, rows]."""
    return outputs(critics, inputs).view(len(inputs), num_critics, inputs.shape[1])


def policy_values(
    agent: AgentState, batch: Batch, actions: Tensor, config: SACConfig
) -> tuple[Tensor, Tensor]:
    """min_i Q_i(s, a~), [M, B], and its derivative with respect to the actions, [M, B, A]."""
    taken = forward_pass(agent.critics, torch.cat([batch.observations, actions], -1))
    q = taken.outputs.view(len(actions), config.num_critics, -1)  # [M, N, B]
    values = losses.lowest_value(q)
    of_q = losses.lowest_value_gradient(q, values)
    of_inputs = taken.input_gradient(of_q.view(taken.outputs.shape))
    of_inputs = of_inputs.view(len(actions), config.num_critics, *of_inputs.shape[1:])
    return values, of_inputs.sum(1)[..., batch.observations.shape[-1] :]


def policy_gradient(
    agent: AgentState,
    batch: Batch,
    taken: Pass,
    policy: PolicyOutput,
    noise: Noise,
    scalars: Scalars,
    config: SACConfig,
    cloning: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the policy's loss [M, P], the loss [M], and log pi(a~|s) [M, B]; `taken` is the
    pass that gave the policy at the batch.

    For members that are `cloning` [M], log pi(a|s) of the data's action replaces min_i Q_i.
    """
    actions, log_density = sample_tanh_gaussian(policy.mean, policy.log_std, noise["policy"])
    values, of_values = policy_values(agent, batch, actions, config)
    temperature = agent.log_temperature.exp()
    if cloning is not None:
        of_values = torch.where(losses.per_member(cloning, of_values), 0.0, of_values)
    by_mean, by_log_std = losses.policy_loss_gradient(
        policy.log_std, noise["policy"], actions, of_values, temperature
    )
    if cloning is not None:
        data_density = tanh_gaussian_log_density(policy.mean, policy.log_std, batch.actions)
        values = torch.where(losses.per_member(cloning, values), data_density, values)
        of_data = tanh_gaussian_log_density_gradient(policy.mean, policy.log_std, batch.actions)
        clones = losses.per_member(cloning, of_values)
        of_mean, of_log_std = (torch.where(clones, v / values.shape[1], 0.0) for v in of_data)
        by_mean, by_log_std = by_mean - of_mean, by_log_std - of_log_std
    of_output = policy_distribution_gradient(
        policy.log_std, scalars["log_std_min"], by_mean, by_log_std
    )
    return (
        taken.gradient(of_output),
        losses.policy_loss(log_density, values, temperature),
        log_density,
    )


def apply_gradients(
    agent: AgentState,
    critic_gradient: Tensor,
    policy_gradient: Tensor,
    temperature_gradient: Tensor,
    scalars: Scalars,
    clip: bool,
) -> None:
    """One Adam step of critics, policy and temperature by their gradients [M * N, P], [M, P], [M];
    then the targets follow.
    """
    members = agent.num_members
    agent.step.add_(1)
    critic_gradient = critic_gradient.view(members, -1)
    if clip:
        critic_gradient = clip_gradient(critic_gradient, scalars["gradient_clip"])
        policy_gradient = clip_gradient(policy_gradient, scalars["gradient_clip"])
    agent.critics_adam.step(
        agent.critics.flat.view(members, -1),
        critic_gradient,
        scalars["critic_learning_rate"],
        agent.step,
    )
    agent.policy_adam.step(
        agent.policy.flat, policy_gradient, scalars["policy_learning_rate"], agent.step
    )
    agent.temperature_adam.step(
        agent.log_temperature.unsqueeze(1),
        temperature_gradient.unsqueeze(1),
        scalars["temperature_learning_rate"],
        agent.step,
    )
    polyak(agent.targets, agent.critics, scalars["target_update_rate"])


@torch.no_grad()
def update(
    agent: AgentState, batch: Batch, noise: Noise, scalars: Scalars, config: SACConfig
) -> Metrics:
    """One SAC update of every member, in place; metrics [M] each, left on the device."""
    taken, policy, next_policy = evaluate_policy(agent, batch, scalars)
    target = target_values(agent, batch, next_policy, noise, scalars, config)
    inputs = torch.cat([batch.observations, batch.actions], -1)
    values, critic_gradient = regress(agent.critics, inputs, target)
    q_data = values.view(len(target), config.num_critics, -1)

    of_policy, loss_of_policy, log_density = policy_gradient(
        agent, batch, taken, policy, noise, scalars, config
    )
    metrics = {
        "td_loss": losses.td_loss(q_data, target).mean(1),
        "policy_loss": loss_of_policy,
        "q_data": q_data.mean((1, 2)),
        "entropy": -log_density.mean(1),
        "temperature": agent.log_temperature.exp(),
    }
    temperature_gradient = losses.temperature_loss_gradient(log_density, scalars["target_entropy"])
    clip = bool(config.gradient_clip < float("inf"))
    apply_gradients(agent, critic_gradient, of_policy, temperature_gradient, scalars, clip)
    return metrics
