"""The policy's distribution: a Gaussian that tanh squashes into (-1, 1), with its derivatives.

How equations, derivatives, shapes and papers are named is told in losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cqlray.algorithms.policy import LOG_STD_MAX
from cqlray.algorithms.shapes import shaped

# An action on its bound has no finite pre-image under tanh. This is the nearest to the bound at
# which float32 still has digits to spare.
ACTION_LIMIT = 1.0 - 1e-5


def policy_distribution(output: Tensor, log_std_min: Tensor) -> tuple[Tensor, Tensor]:
    """The policy network's output [M, B, 2A] -> mean and log standard deviation, [M, B, A] each,
    the latter clamped as in SAC's published code; log_std_min [M].
    """
    assert shaped("MBO M", output, log_std_min)
    mean, log_std = output.chunk(2, dim=-1)
    lowest = log_std_min.reshape(-1, 1, 1)
    return mean, torch.maximum(log_std, lowest).clamp(max=LOG_STD_MAX)


def policy_distribution_gradient(
    log_std: Tensor, log_std_min: Tensor, by_mean: Tensor, by_log_std: Tensor
) -> Tensor:
    """With respect to the network's output, [M, B, 2A], from the derivatives with respect to mean
    and log_std, [M, B, A] each; there is none where log_std was clamped.
    """
    assert shaped("MBA M MBA MBA", log_std, log_std_min, by_mean, by_log_std)
    inside = (log_std > log_std_min.reshape(-1, 1, 1)) & (log_std < LOG_STD_MAX)
    return torch.cat([by_mean, by_log_std * inside], dim=-1)


def log_one_minus_tanh_squared(pre_tanh: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), elementwise, in a form that is stable for large |u|."""
    return 2.0 * (math.log(2.0) - pre_tanh - softplus(-2.0 * pre_tanh))


def sample_tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions a = tanh(u), u = mean + std * noise, and log pi(a|s) = log N(u) - sum log(1 - a^2)
    (SAC, appendix C).

    Args:
        mean, log_std: [..., A]; noise: [..., A] standard normal, broadcast against them.
    Returns:
        actions [..., A] in (-1, 1), log density [...] in nats.
    """
    assert shaped("*A *A *A", mean, log_std, noise)
    pre_tanh = mean + log_std.exp() * noise
    log_density = (
        -0.5 * noise.square()
        - log_std
        - 0.5 * math.log(2.0 * math.pi)
        - log_one_minus_tanh_squared(pre_tanh)
    )
    return torch.tanh(pre_tanh), log_density.sum(-1)


def tanh_gaussian_log_density(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """log pi(a|s) of given actions in [-1, 1]: [..., A] -> [...] (SAC, appendix C)."""
    assert shaped("*A *A *A", mean, log_std, actions)
    pre_tanh = torch.atanh(actions.clamp(-ACTION_LIMIT, ACTION_LIMIT))
    scaled = (pre_tanh - mean) * torch.exp(-log_std)
    log_density = (
        -0.5 * scaled.square()
        - log_std
        - 0.5 * math.log(2.0 * math.pi)
        - log_one_minus_tanh_squared(pre_tanh)
    )
    return log_density.sum(-1)


def tanh_gaussian_log_density_gradient(
    mean: Tensor, log_std: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """With respect to mean and log_std, [..., A] each."""
    assert shaped("*A *A *A", mean, log_std, actions)
    pre_tanh = torch.atanh(actions.clamp(-ACTION_LIMIT, ACTION_LIMIT))
    scaled = (pre_tanh - mean) * torch.exp(-log_std)
    return scaled * torch.exp(-log_std), scaled.square() - 1.0
