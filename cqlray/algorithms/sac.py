"""SAC (Haarnoja et al. 2018, arXiv 1812.05905): the teacher's update, and the parts that CQL shares.

Order of an update: the gradients of critics, policy and temperature are all taken at the old parameters, then all are
applied, then the targets move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cqlray.algorithms import losses
from cqlray.algorithms.agent import AgentState, Batch, Scalars, adam_biases, clip_gradient, polyak
from cqlray.algorithms.networks import critic_values, policy_distribution
from cqlray.config import SACConfig

Metrics = dict[str, Tensor]
Noise = dict[str, Tensor]


@dataclass(frozen=True)
class PolicyOutput:
    """The policy at a batch of states: mean and log standard deviation [M, B, A]; the trunk runs once for each state."""

    mean: Tensor
    log_std: Tensor


def noise_shapes(config: SACConfig, action_dim: int) -> dict[str, tuple[int, ...]]:
    """Standard normal noise that one update of one member draws."""
    shape = (config.batch_size, action_dim)
    return {"policy": shape, "next": shape}


def evaluate_policy(agent: AgentState, observations: Tensor, scalars: Scalars) -> PolicyOutput:
    """The policy's distribution at observations [M, B, observation_dim]."""
    return PolicyOutput(*policy_distribution(agent.policy.forward(observations), scalars["log_std_min"]))


def target_values(
    agent: AgentState, batch: Batch, next_policy: PolicyOutput, noise: Noise, scalars: Scalars, config: SACConfig
) -> Tensor:
    """y, [M, B]; call without gradients."""
    actions, log_density = losses.sample_tanh_gaussian(next_policy.mean, next_policy.log_std, noise["next"])
    q_next = critic_values(agent.targets, torch.cat([batch.next_observations, actions], -1), config.num_critics)
    entropy = log_density if config.entropy_backup else None
    value = losses.soft_value(q_next, entropy, agent.log_temperature.exp())
    return losses.bellman_target(batch.rewards, batch.terminations, scalars["discount"], value)


def policy_values(agent: AgentState, batch: Batch, actions: Tensor, config: SACConfig) -> Tensor:
    """min_i Q_i(s, a~), [M, B]; the gradient reaches the actions and not the critics."""
    inputs = torch.cat([batch.observations, actions], -1)
    return critic_values(agent.critics, inputs, config.num_critics, agent.critics.frozen()).amin(1)


def apply_gradients(
    agent: AgentState,
    critic_gradient: Tensor,
    policy_gradient: Tensor,
    temperature: Tensor,
    scalars: Scalars,
    clip: bool,
) -> None:
    """One Adam step of everything by gradients [M * N, P], [M, P], [M], then the targets."""
    members = agent.num_members
    agent.step.add_(1)
    critic_gradient = critic_gradient.view(members, -1)
    if clip:
        critic_gradient = clip_gradient(critic_gradient, scalars["gradient_clip"])
        policy_gradient = clip_gradient(policy_gradient, scalars["gradient_clip"])
    biases = adam_biases(agent.step)
    agent.critics_adam.step(agent.critics.flat.view(members, -1), critic_gradient, scalars["critic_learning_rate"], biases)
    agent.policy_adam.step(agent.policy.flat, policy_gradient, scalars["policy_learning_rate"], biases)
    agent.temperature_adam.step(
        agent.log_temperature.unsqueeze(1), temperature.unsqueeze(1), scalars["temperature_learning_rate"], biases
    )
    polyak(agent.targets, agent.critics, scalars["target_update_rate"])


def update(agent: AgentState, batch: Batch, noise: Noise, scalars: Scalars, config: SACConfig) -> Metrics:
    """One SAC update of every member, in place; metrics [M] each, left on the device."""
    policy = evaluate_policy(agent, batch.observations, scalars)
    with torch.no_grad():
        next_policy = evaluate_policy(agent, batch.next_observations, scalars)
        target = target_values(agent, batch, next_policy, noise, scalars, config)

    q_data = critic_values(agent.critics, torch.cat([batch.observations, batch.actions], -1), config.num_critics)
    td = losses.td_loss(q_data, target)
    critic_gradients = torch.autograd.grad(td.sum(), agent.critics.parameters())

    temperature = agent.log_temperature.exp()
    actions, log_density = losses.sample_tanh_gaussian(policy.mean, policy.log_std, noise["policy"])
    policy_loss = losses.policy_loss(log_density, policy_values(agent, batch, actions, config), temperature)
    policy_gradients = torch.autograd.grad(policy_loss.sum(), agent.policy.parameters())

    with torch.no_grad():
        temperature_gradient = losses.temperature_gradient(log_density, scalars["target_entropy"])
        metrics = {
            "td_loss": td.detach().mean(1),
            "policy_loss": policy_loss.detach(),
            "q_data": q_data.detach().mean((1, 2)),
            "entropy": -log_density.detach().mean(1),
            "temperature": temperature,
        }
        clip = bool(config.gradient_clip < float("inf"))
        critic_gradient, policy_gradient = agent.critics.flatten(critic_gradients), agent.policy.flatten(policy_gradients)
        apply_gradients(agent, critic_gradient, policy_gradient, temperature_gradient, scalars, clip)
    return metrics
