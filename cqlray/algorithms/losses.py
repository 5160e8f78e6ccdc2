"""Every equation of the update, in the order of DESIGN's section 4 and of the papers: pure
functions, and one object that keeps what its many calls in an update share.

Letters in the shapes: M members, N critics, B batch, A action dimensions, K sampled actions of one
source, S sampled actions of all sources (3K). Numbers that members have for themselves come as [M]
and are broadcast by `per_member`. No function here takes an optimiser step, touches a parameter, or
knows where its tensors come from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

MULTIPLIER_MAX = 1e6
# Data actions at the bounds have no finite pre-image under tanh; this is the nearest that float32
# bears well.
ACTION_LIMIT = 1.0 - 1e-5


def per_member(value: Tensor, like: Tensor) -> Tensor:
    """[M] -> [M, 1, ...] with as many dimensions as `like`."""
    return value.reshape(-1, *([1] * (like.dim() - 1)))


# -- the policy's distribution ---------------------------------------------------------------------


def log_one_minus_tanh_squared(pre_tanh: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), elementwise, stable for large |u|."""
    return 2.0 * (math.log(2.0) - pre_tanh - softplus(-2.0 * pre_tanh))


def sample_tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(mean + std * noise) and their log density (Haarnoja et al. 2018, appendix C).

    Args:
        mean, log_std: [..., A]; noise: [..., A] standard normal, broadcast against them.
    Returns:
        actions [..., A] in (-1, 1), log density [...] in nats.
    """
    pre_tanh = mean + log_std.exp() * noise
    log_density = (
        -0.5 * noise.square()
        - log_std
        - 0.5 * math.log(2.0 * math.pi)
        - log_one_minus_tanh_squared(pre_tanh)
    )
    return torch.tanh(pre_tanh), log_density.sum(-1)


def tanh_gaussian_log_density(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """log pi(a|s) of given actions in [-1, 1]: [..., A] -> [...]."""
    pre_tanh = torch.atanh(actions.clamp(-ACTION_LIMIT, ACTION_LIMIT))
    scaled = (pre_tanh - mean) * torch.exp(-log_std)
    log_density = (
        -0.5 * scaled.square()
        - log_std
        - 0.5 * math.log(2.0 * math.pi)
        - log_one_minus_tanh_squared(pre_tanh)
    )
    return log_density.sum(-1)


# -- critics ---------------------------------------------------------------------------------------


def bellman_target(
    rewards: Tensor, terminations: Tensor, discount: Tensor, next_values: Tensor
) -> Tensor:
    """y = r + gamma (1 - d) V(s'), d the termination alone (never the truncation); [M, B], discount
    [M].
    """
    return rewards + per_member(discount, rewards) * (1.0 - terminations) * next_values


def soft_value(q_values: Tensor, log_density: Tensor | None, temperature: Tensor) -> Tensor:
    """min_i Q_i(s, a) - alpha log pi(a|s): [M, N, B] -> [M, B]; without log_density no entropy is
    subtracted.
    """
    value = q_values.amin(1)
    return value if log_density is None else value - per_member(temperature, value) * log_density


def max_backup_value(q_values: Tensor, log_density: Tensor | None, temperature: Tensor) -> Tensor:
    """max_k min_i Q_i(s', a'_k), less alpha log pi of that a'_k where log_density is given.

    The minimum over critics comes first and the maximum is of Q alone, as in young-geng/CQL and
    CORL. q_values [M, N, B, K], log_density [M, B, K] -> [M, B].
    """
    value, best = q_values.amin(1).max(2)
    if log_density is None:
        return value
    return value - per_member(temperature, value) * log_density.gather(
        2, best.unsqueeze(2)
    ).squeeze(2)


def td_loss(q_data: Tensor, target: Tensor) -> Tensor:
    """mean over the batch of (Q_i(s, a) - y)^2: [M, N, B], [M, B] -> [M, N]."""
    return (q_data - target.unsqueeze(1)).square().mean(-1)


def conservative_gap(
    q_samples: Tensor, log_density: Tensor, q_data: Tensor, temperature: Tensor
) -> Tensor:
    """P_i = tau_c logsumexp_k((Q_i(s, a_k) - log mu_k) / tau_c) - Q_i(s, a), CQL(H), Kumar et al.
    2020, eq. 4.

    The logsumexp runs over all samples of all three sources together; log mu is subtracted
    (importance weights).

    Args:
        q_samples: [M, N, B, S]; log_density: [M, B, S] log mu of each sampled action; q_data:
            [M, N, B]; temperature: [M].
    Returns:
        [M, N, B]
    """
    scale = per_member(temperature, q_samples)
    soft_maximum = torch.logsumexp((q_samples - log_density.unsqueeze(1)) / scale, dim=-1)
    return per_member(temperature, q_data) * soft_maximum - q_data


def conservative_loss(
    gap: Tensor, weight: Tensor, clip: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """w mean(P_i), each state's P clipped first where `clip` gives [M] bounds: [M, N, B] ->
    [M, N].
    """
    return per_member(weight, gap[..., 0]) * mean_gap(gap, clip)


def mean_gap(gap: Tensor, clip: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mean over the batch of the (clipped) gap: [M, N, B] -> [M, N]."""
    if clip is not None:
        gap = torch.minimum(torch.maximum(gap, per_member(clip[0], gap)), per_member(clip[1], gap))
    return gap.mean(-1)


def multiplier(log_multiplier: Tensor) -> Tensor:
    """clip(exp zeta, 0, 1e6): [M]."""
    return log_multiplier.exp().clamp(max=MULTIPLIER_MAX)


def lagrange_loss(
    gap_mean: Tensor, weight: Tensor, log_multiplier: Tensor, target_gap: Tensor
) -> Tensor:
    """clip(exp zeta) w (mean P_i - tau): [M, N]. Critics descend on it, zeta ascends on it."""
    excess = gap_mean - per_member(target_gap, gap_mean)
    return per_member(multiplier(log_multiplier) * weight, gap_mean) * excess


def multiplier_gradient(
    gap_mean: Tensor, weight: Tensor, log_multiplier: Tensor, target_gap: Tensor
) -> Tensor:
    """What zeta descends by, the derivative of -lagrange_loss summed over a member's critics:
    [M, N] -> [M].
    """
    below = log_multiplier.exp() <= MULTIPLIER_MAX
    excess = gap_mean - per_member(target_gap, gap_mean)
    return -(below * multiplier(log_multiplier) * weight * excess.sum(1))


class CriticLossGradient:
    """Derivative of td_loss + conservative_loss by the critics' values, of some or all states of a
    batch.

    The logsumexp's is a softmax; a gap beyond its bounds has none. Closed, so that no graph is
    built for what is made of a few values for each state; and what does not depend on the values is
    made once, for a piece's few values cost no more than the calls that they take.
    """

    def __init__(
        self,
        log_density: Tensor,
        target: Tensor,
        weight: Tensor,
        temperature: Tensor,
        clip: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """log_density [M, B, S], target [M, B], temperature [M]; weight [M], with the Lagrange form
        times the multiplier.
        """
        batch_size = target.shape[1]
        self.log_density, self.temperature, self.clip = log_density, temperature, clip
        # The data's action is first and has no part in the soft maximum: its density is infinite
        # there.
        scaled = torch.nn.functional.pad(
            -log_density / per_member(temperature, log_density), (1, 0), value=-math.inf
        )
        self.scaled = scaled.unsqueeze(1)  # [M, 1, B, 1 + S]
        self.rate = temperature.reciprocal().view(-1, 1, 1, 1)
        self.share = (weight / batch_size).view(-1, 1, 1, 1)
        self.of_square = 2.0 / batch_size
        self.of_target = (-self.of_square * target).unsqueeze(1)  # [M, 1, B]

    def __call__(self, q: Tensor, members: slice, states: slice) -> Tensor:
        """[m, N, b, 1 + S], the data's action's before the samples', of these members and states ->
        as large.
        """
        share = self.share[members]
        if self.clip is not None:
            share = share * self._inside(q, members, states, self.clip)
        logits = torch.addcmul(self.scaled[members, :, states], q, self.rate[members])
        gradient = torch.softmax(logits, -1).mul_(share)
        of_data = self.of_target[members, :, states] - share.squeeze(-1)
        torch.add(of_data, q[..., 0], alpha=self.of_square, out=gradient[..., 0])
        return gradient

    def _inside(
        self, q: Tensor, members: slice, states: slice, clip: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Whether each state's gap is within its bounds, [m, N, b, 1]."""
        gap = conservative_gap(
            q[..., 1:], self.log_density[members, states], q[..., 0], self.temperature[members]
        )
        lowest, highest = (per_member(bound[members], gap) for bound in clip)
        return ((gap > lowest) & (gap < highest)).unsqueeze(-1)


def calibrated_values(q: Tensor, data_returns: Tensor, first_policy_sample: int) -> Tensor:
    """Cal-QL (Nakamoto et al. 2023, eq. 5.1): policy actions' values become max(Q_i, V_return(s)).

    q [M, N, B, S] with other actions before `first_policy_sample` (left as they are); data_returns
    [M, B].
    """
    bounded = torch.maximum(q[..., first_policy_sample:], data_returns[:, None, :, None])
    return torch.cat([q[..., :first_policy_sample], bounded], dim=-1)


# -- policy and temperature ------------------------------------------------------------------------


def policy_loss(log_density: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
    """mean(alpha log pi(a~|s) - V), V = min_i Q_i(s, a~), or log pi(a|s) of the data's action while
    cloning; [M, B] -> [M].
    """
    return (per_member(temperature, log_density) * log_density - values).mean(-1)


def policy_loss_gradient(
    log_std: Tensor, noise: Tensor, actions: Tensor, of_values: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivative of policy_loss by mean and log_std, through its actions tanh(u), u = mean + std
    noise, and their density.

    At fixed noise d log pi / du = 2 tanh(u), and log pi has -log_std beside (Haarnoja et al. 2018,
    appendix C).

    Args:
        log_std, noise, actions: [M, B, A]; of_values: dV/da [M, B, A]; temperature: [M].
    Returns:
        by mean [M, B, A], by log_std [M, B, A]
    """
    weight = per_member(temperature, actions) / actions.shape[1]
    by_pre_tanh = 2.0 * weight * actions - of_values * (1.0 - actions.square()) / actions.shape[1]
    return by_pre_tanh, by_pre_tanh * log_std.exp() * noise - weight


def log_density_gradient(mean: Tensor, log_std: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of tanh_gaussian_log_density by mean and log_std, [M, B, A] each."""
    pre_tanh = torch.atanh(actions.clamp(-ACTION_LIMIT, ACTION_LIMIT))
    scaled = (pre_tanh - mean) * torch.exp(-log_std)
    return scaled * torch.exp(-log_std), scaled.square() - 1.0


def temperature_gradient(log_density: Tensor, target_entropy: Tensor) -> Tensor:
    """d/d(log alpha) of -log alpha (log pi + target entropy), meaned over the batch: [M, B], [M] ->
    [M].
    """
    return -(log_density.mean(-1) + target_entropy)
