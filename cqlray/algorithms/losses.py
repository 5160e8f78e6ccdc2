"""The equations of the update, in the order of DESIGN's section 5 and of the papers, each closed
derivative beside its equation; those of the policy's distribution are in tanh_gaussian.

What runs in an update are the targets and the derivatives: no graph is built for what is made of a
few values for each state. `X_gradient` (or the class `XGradient`) is the derivative of `X`, summed
over what it gives, and is held to autograd's of `X` by tests/unit/algorithms/test_gradients.py,
which finds the pairs by these names. An equation whose derivative is used is there for that, even
where the update never evaluates it.

Papers: SAC is Haarnoja et al. 2018, arXiv 1812.05905; CQL is Kumar et al. 2020, arXiv 2006.04779;
Cal-QL is Nakamoto et al. 2023, arXiv 2303.05479.

Letters in the shapes: M members, N critics, B batch, A action dimensions, K sampled actions of one
source, S sampled actions of all sources (3K). Numbers that each member has for itself are [M], and
`per_member` broadcasts them. No function here takes an optimiser's step, touches a parameter, or
knows where its tensors come from.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from cqlray.algorithms.shapes import shaped

Clip: TypeAlias = tuple[Tensor, Tensor]  # lowest and highest gap, [M] each

MULTIPLIER_MAX = 1e6


def per_member(value: Tensor, like: Tensor) -> Tensor:
    """[M] -> [M, 1, ...] with as many dimensions as `like`."""
    return value.reshape(-1, *([1] * (like.dim() - 1)))


# -- what the critics are regressed on -------------------------------------------------------------


def bellman_target(
    rewards: Tensor, terminations: Tensor, discount: Tensor, next_values: Tensor
) -> Tensor:
    """y = r + gamma (1 - d) V(s') (SAC, eq. 2), d the termination alone, never the truncation:
    [M, B], discount [M].
    """
    assert shaped("MB MB M MB", rewards, terminations, discount, next_values)
    return rewards + per_member(discount, rewards) * (1.0 - terminations) * next_values


def lowest_value(q: Tensor) -> Tensor:
    """min_i Q_i(s, a): [M, N, B] -> [M, B] (SAC, section 6)."""
    assert shaped("MNB", q)
    return q.amin(1)


def lowest_value_gradient(q: Tensor, lowest: Tensor) -> Tensor:
    """With respect to q, [M, N, B]; critics that are equally low share it."""
    assert shaped("MNB MB", q, lowest)
    is_lowest = q == lowest.unsqueeze(1)
    return (is_lowest / is_lowest.sum(1, keepdim=True)).to(q.dtype)


def soft_value(q_values: Tensor, log_density: Tensor | None, temperature: Tensor) -> Tensor:
    """V(s) = min_i Q_i(s, a) - alpha log pi(a|s) of one sampled action (SAC, eq. 3): [M, N, B],
    [M, B], [M] -> [M, B]. Without log_density no entropy is counted.
    """
    value = lowest_value(q_values)
    if log_density is None:
        return value
    assert shaped("MB MB M", value, log_density, temperature)
    return value - per_member(temperature, value) * log_density


def max_backup_value(q_values: Tensor, log_density: Tensor | None, temperature: Tensor) -> Tensor:
    """max_k min_i Q_i(s', a'_k), less alpha log pi of that a'_k where log_density is given (CQL,
    appendix F).

    The minimum over critics comes first and the maximum is of Q alone, as in young-geng/CQL and
    CORL. q_values [M, N, B, K], log_density [M, B, K] -> [M, B].
    """
    assert shaped("MNBK M", q_values, temperature)
    value, best = q_values.amin(1).max(2)
    if log_density is None:
        return value
    assert shaped("MB MBK", value, log_density)
    return value - per_member(temperature, value) * log_density.gather(
        2, best.unsqueeze(2)
    ).squeeze(2)


def calibrated_values(q: Tensor, data_returns: Tensor, first_policy_sample: int) -> Tensor:
    """Policy actions' values become max(Q_i, V_return(s)) (Cal-QL, eq. 5.1).

    q [M, N, B, S], of which the actions before `first_policy_sample` are not the policy's and stay
    as they are; data_returns [M, B].
    """
    assert shaped("MNBS MB", q, data_returns)
    bounded = torch.maximum(q[..., first_policy_sample:], data_returns[:, None, :, None])
    return torch.cat([q[..., :first_policy_sample], bounded], dim=-1)


def calibrated_values_gradient(q: Tensor, calibrated: Tensor, of_calibrated: Tensor) -> Tensor:
    """With respect to q, from that with respect to the calibrated values, [M, N, B, S] each: none
    where the data's return has replaced the value.
    """
    return of_calibrated * (calibrated == q)


# -- the critics' loss -----------------------------------------------------------------------------


def td_loss(q_data: Tensor, target: Tensor) -> Tensor:
    """mean (Q_i(s, a) - y)^2 over the batch (SAC, eq. 5, without its 1/2): [M, N, B], [M, B] ->
    [M, N].
    """
    assert shaped("MNB MB", q_data, target)
    return (q_data - target.unsqueeze(1)).square().mean(-1)


def td_loss_gradient(q_data: Tensor, target: Tensor, batch_size: int) -> Tensor:
    """With respect to q_data, [M, N, b], of any b states of a batch."""
    assert shaped("MNB MB", q_data, target)
    return (q_data - target.unsqueeze(1)) * (2.0 / batch_size)


def conservative_gap(
    q_samples: Tensor, log_density: Tensor, q_data: Tensor, temperature: Tensor
) -> Tensor:
    """P_i = tau_c logsumexp_k((Q_i(s, a_k) - log mu_k) / tau_c) - Q_i(s, a): CQL(H) (CQL, eq. 4).

    One logsumexp runs over all samples of all three sources, and log mu is subtracted (importance
    weights; CQL, appendix F).

    Args:
        q_samples: [M, N, B, S]; log_density: [M, B, S] log mu of each sampled action; q_data:
            [M, N, B]; temperature: [M].
    Returns:
        [M, N, B]
    """
    assert shaped("MNBS MBS MNB M", q_samples, log_density, q_data, temperature)
    scale = per_member(temperature, q_samples)
    soft_maximum = torch.logsumexp((q_samples - log_density.unsqueeze(1)) / scale, dim=-1)
    return per_member(temperature, q_data) * soft_maximum - q_data


def mean_gap(gap: Tensor, clip: Clip | None = None) -> Tensor:
    """Mean over the batch of P_i, each state's clipped first where `clip` is given: [M, N, B] ->
    [M, N].
    """
    assert shaped("MNB", gap)
    if clip is not None:
        assert shaped("MNB M M", gap, *clip)
        gap = torch.minimum(torch.maximum(gap, per_member(clip[0], gap)), per_member(clip[1], gap))
    return gap.mean(-1)


def conservative_loss(gap: Tensor, weight: Tensor, clip: Clip | None = None) -> Tensor:
    """w mean(P_i) (CQL, eq. 4; w is its alpha): [M, N, B], [M] -> [M, N]."""
    assert shaped("MNB M", gap, weight)
    return per_member(weight, gap[..., 0]) * mean_gap(gap, clip)


def multiplier(log_multiplier: Tensor) -> Tensor:
    """clip(exp zeta, 0, 1e6): [M]."""
    assert shaped("M", log_multiplier)
    return log_multiplier.exp().clamp(max=MULTIPLIER_MAX)


def lagrange_loss(
    gap_mean: Tensor, weight: Tensor, log_multiplier: Tensor, target_gap: Tensor
) -> Tensor:
    """w clip(exp zeta) (mean P_i - tau) (CQL, appendix F): [M, N]. The critics descend on it, zeta
    ascends on it.
    """
    assert shaped("MN M M M", gap_mean, weight, log_multiplier, target_gap)
    excess = gap_mean - per_member(target_gap, gap_mean)
    return per_member(multiplier(log_multiplier) * weight, gap_mean) * excess


def critic_loss(
    q: Tensor,
    log_density: Tensor,
    target: Tensor,
    weight: Tensor,
    temperature: Tensor,
    clip: Clip | None = None,
) -> Tensor:
    """td_loss + conservative_loss (CQL, eq. 4, without its 1/2, as in the authors' code): [M, N].

    With respect to q lagrange_loss is conservative_loss with weight * multiplier, but for a
    constant.

    Args:
        q: [M, N, B, 1 + S], the data's action before the samples; log_density: [M, B, S];
            target: [M, B]; weight, temperature: [M].
    """
    assert shaped("MNBT MBS MB M M", q, log_density, target, weight, temperature)
    gap = conservative_gap(q[..., 1:], log_density, q[..., 0], temperature)
    return td_loss(q[..., 0], target) + conservative_loss(gap, weight, clip)


class CriticLossGradient:
    """With respect to q, of some or all members and states of a batch.

    The logsumexp's derivative is a softmax; a gap beyond its bounds has none. What does not depend
    on the values is computed once, here: a tile holds so few values that what counts is the number
    of calls.
    """

    def __init__(
        self,
        log_density: Tensor,
        target: Tensor,
        weight: Tensor,
        temperature: Tensor,
        clip: Clip | None = None,
    ) -> None:
        """As for critic_loss; `weight` is times the multiplier in the Lagrange form."""
        assert shaped("MBS MB M M", log_density, target, weight, temperature)
        batch_size = target.shape[1]
        self.log_density, self.temperature, self.clip = log_density, temperature, clip
        # The data's action comes first, and an infinite density keeps it out of the softmax.
        scaled = pad(-log_density / per_member(temperature, log_density), (1, 0), value=-math.inf)
        self.scaled = scaled.unsqueeze(1)  # [M, 1, B, 1 + S]
        self.rate = temperature.reciprocal().view(-1, 1, 1, 1)
        self.share = (weight / batch_size).view(-1, 1, 1, 1)
        self.of_square = 2.0 / batch_size
        self.of_target = (-self.of_square * target).unsqueeze(1)  # [M, 1, B]

    def __call__(self, q: Tensor, members: slice, states: slice) -> Tensor:
        """q of these members and states, [m, N, b, 1 + S] -> the derivative, as large."""
        share = self.share[members]
        if self.clip is not None:
            share = share * self._inside(q, members, states, self.clip)
        logits = torch.addcmul(self.scaled[members, :, states], q, self.rate[members])
        gradient = torch.softmax(logits, -1).mul_(share)
        of_data = self.of_target[members, :, states] - share.squeeze(-1)
        torch.add(of_data, q[..., 0], alpha=self.of_square, out=gradient[..., 0])
        return gradient

    def _inside(self, q: Tensor, members: slice, states: slice, clip: Clip) -> Tensor:
        """Whether each state's gap is within its bounds, [m, N, b, 1]."""
        gap = conservative_gap(
            q[..., 1:], self.log_density[members, states], q[..., 0], self.temperature[members]
        )
        lowest, highest = (per_member(bound[members], gap) for bound in clip)
        return ((gap > lowest) & (gap < highest)).unsqueeze(-1)


def multiplier_loss(
    gap_mean: Tensor, weight: Tensor, log_multiplier: Tensor, target_gap: Tensor
) -> Tensor:
    """What zeta descends on: -lagrange_loss, summed over a member's critics: [M]."""
    return -lagrange_loss(gap_mean, weight, log_multiplier, target_gap).sum(1)


def multiplier_loss_gradient(
    gap_mean: Tensor, weight: Tensor, log_multiplier: Tensor, target_gap: Tensor
) -> Tensor:
    """With respect to log_multiplier: [M, N] -> [M]; none beyond the multiplier's bound."""
    assert shaped("MN M M M", gap_mean, weight, log_multiplier, target_gap)
    below = log_multiplier.exp() <= MULTIPLIER_MAX
    excess = gap_mean - per_member(target_gap, gap_mean)
    return -(below * multiplier(log_multiplier) * weight * excess.sum(1))


# -- policy and temperature ------------------------------------------------------------------------


def policy_loss(log_density: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
    """mean (alpha log pi(a~|s) - V), V = min_i Q_i(s, a~), a~ = tanh(u) reparameterised (SAC,
    eq. 9); while cloning, V = log pi(a|s) of the data's action. [M, B] -> [M].
    """
    assert shaped("MB MB M", log_density, values, temperature)
    return (per_member(temperature, log_density) * log_density - values).mean(-1)


def policy_loss_gradient(
    log_std: Tensor, noise: Tensor, actions: Tensor, of_values: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """With respect to mean and log_std, through the actions and their density (SAC, eq. 10).

    At fixed noise d log pi / du = 2 tanh(u), and log pi also contains -log_std.

    Args:
        log_std, noise, actions: [M, B, A]; of_values: dV/da [M, B, A]; temperature: [M].
    Returns:
        with respect to mean [M, B, A], to log_std [M, B, A]
    """
    assert shaped("MBA MBA MBA MBA M", log_std, noise, actions, of_values, temperature)
    weight = per_member(temperature, actions) / actions.shape[1]
    by_pre_tanh = 2.0 * weight * actions - of_values * (1.0 - actions.square()) / actions.shape[1]
    return by_pre_tanh, by_pre_tanh * log_std.exp() * noise - weight


def temperature_loss(
    log_temperature: Tensor, log_density: Tensor, target_entropy: Tensor
) -> Tensor:
    """mean -log alpha (log pi(a~|s) + target entropy): [M], [M, B], [M] -> [M]. SAC's eq. 18 with
    log alpha in place of alpha before the bracket, as in its published code.
    """
    assert shaped("M MB M", log_temperature, log_density, target_entropy)
    return -(
        per_member(log_temperature, log_density) * (log_density + target_entropy[:, None])
    ).mean(-1)


def temperature_loss_gradient(log_density: Tensor, target_entropy: Tensor) -> Tensor:
    """With respect to log_temperature: [M, B], [M] -> [M]."""
    assert shaped("MB M", log_density, target_entropy)
    return -(log_density.mean(-1) + target_entropy)
