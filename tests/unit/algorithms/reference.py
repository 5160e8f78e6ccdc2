"""DESIGN section 4 once more, for one member, in float64 numpy: written from the equations, with
none of cqlray's code.

Gradients come from the complex step: df/dx = Im f(x + ih) / h, exact to rounding since nothing is
subtracted, and valid because every function here is analytic between its kinks (relu, min, max and
clip choose by the real part). Functions take parameters of shape [..., P], so that all P perturbed
copies go through in one pass.

Only two things are taken over from cqlray as conventions, not as mathematics: the order of
parameters within a flat vector (weight [in, out], bias, then scale and shift of a layer norm, layer
by layer) and the names in CQLConfig.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
STEP = 1e-30
LOG_STD_MAX = 2.0
DATA_ACTION_LIMIT = 1.0 - 1e-5
MULTIPLIER_LIMIT = 1e6


# -- functions that the complex step needs to choose by the real part ------------------------------


def larger(x: Array, y: Any) -> Array:
    return np.where(np.real(x) >= np.real(y), x, y)


def smaller(x: Array, y: Any) -> Array:
    return np.where(np.real(x) <= np.real(y), x, y)


def smallest(x: Array, axis: int) -> Array:
    index = np.expand_dims(np.argmin(np.real(x), axis), axis)
    return np.squeeze(np.take_along_axis(x, index, axis), axis)


def log_sum_exp(x: Array, axis: int) -> Array:
    shift = np.max(np.real(x), axis=axis, keepdims=True)
    return np.log(np.exp(x - shift).sum(axis)) + np.squeeze(shift, axis)


def gradient(function: Callable[[Array], Array], at: Array) -> Array:
    """d function / d at, [P]; `function` maps [P, P] (one perturbed copy in each row) to [P]."""
    return np.imag(function(at[None] + 1j * STEP * np.eye(len(at)))) / STEP


# -- networks --------------------------------------------------------------------------------------


def mlp(
    parameters: Array, sizes: tuple[int, ...], inputs: Array, layer_norm: bool = False
) -> Array:
    """[..., P], [..., rows, in] -> [..., rows, out]."""
    start = 0

    def take(*shape: int) -> Array:
        nonlocal start
        taken = parameters[..., start : start + math.prod(shape)]
        start += math.prod(shape)
        return taken.reshape(*parameters.shape[:-1], *shape)

    x = inputs
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        x = x @ take(rows, columns) + take(1, columns)
        if layer == len(sizes) - 2:
            break
        if layer_norm:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
            scale = take(1, columns)
            x = x * scale + take(1, columns)
        x = larger(x, 0.0)
    assert start == parameters.shape[-1]
    return x


def normal_log_density(x: Array, mean: Array, std: Array) -> Array:
    return -((x - mean) ** 2) / (2.0 * std**2) - np.log(std * math.sqrt(2.0 * math.pi))


def squashed_sample(mean: Array, std: Array, noise: Array) -> tuple[Array, Array]:
    """a = tanh(u), u ~ N(mean, std); change of variables: log p(a) = log N(u) - sum log |da/du|,
    da/du = 1 / cosh(u)^2.
    """
    u = mean + std * noise
    return np.tanh(u), (normal_log_density(u, mean, std) + 2.0 * np.log(np.cosh(u))).sum(-1)


def squashed_log_density(action: Array, mean: Array, std: Array) -> Array:
    action = np.clip(action, -DATA_ACTION_LIMIT, DATA_ACTION_LIMIT)
    u = 0.5 * np.log((1.0 + action) / (1.0 - action))
    return (normal_log_density(u, mean, std) - np.log(1.0 - action**2)).sum(-1)


# -- one member ------------------------------------------------------------------------------------


@dataclass
class Moments:
    first: Any = 0.0
    second: Any = 0.0

    def step(self, gradient: Any, rate: float, count: int) -> Any:
        """What Adam adds to the parameters (Kingma & Ba 2015, algorithm 1)."""
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        corrected = self.first / (1.0 - 0.9**count)
        return -rate * corrected / (np.sqrt(self.second / (1.0 - 0.999**count)) + 1e-8)


@dataclass
class Reference:
    """A member. `config` is any object with CQLConfig's (or SACConfig's) fields."""

    config: Any
    policy_sizes: tuple[int, ...]
    critic_sizes: tuple[int, ...]
    policy: Array  # [P]
    critics: Array  # [N, P']
    targets: Array  # [N, P']
    log_temperature: float
    log_multiplier: float
    updates: int = 0
    moments: dict[str, Moments] = field(
        default_factory=lambda: {
            n: Moments() for n in ("policy", "critics", "temperature", "multiplier")
        }
    )

    @property
    def action_dim(self) -> int:
        return self.policy_sizes[-1] // 2

    @property
    def target_entropy(self) -> float:
        given = self.config.target_entropy
        return -float(self.action_dim) if given is None else given

    def distribution(self, parameters: Array, observations: Array) -> tuple[Array, Array]:
        output = mlp(parameters, self.policy_sizes, observations)
        mean, log_std = output[..., : self.action_dim], output[..., self.action_dim :]
        return mean, np.exp(smaller(larger(log_std, self.config.log_std_min), LOG_STD_MAX))

    def q(self, parameters: Array, observations: Array, actions: Array) -> Array:
        """[..., P'], [B, O], [..., B, A] -> [..., B]."""
        repeated = np.broadcast_to(observations, (*actions.shape[:-1], observations.shape[-1]))
        inputs = np.concatenate([repeated, actions], -1)
        return mlp(parameters, self.critic_sizes, inputs, self.config.layer_norm)[..., 0]

    def minimum_q(self, critics: Array, observations: Array, actions: Array) -> Array:
        return smallest(np.stack([self.q(one, observations, actions) for one in critics]), 0)

    def target(self, batch: dict[str, Array], noise: dict[str, Array], max_backup: bool) -> Array:
        after = batch["next_observations"]
        mean, std = self.distribution(self.policy, after)
        if max_backup:
            # [K, B, A], [K, B]
            actions, log_densities = squashed_sample(mean, std, noise["next_samples"])
            values = np.stack([self.minimum_q(self.targets, after, a) for a in actions])
            chosen = (values.argmax(0), np.arange(values.shape[1]))
            value, log_density = values[chosen], log_densities[chosen]
        else:
            action, log_density = squashed_sample(mean, std, noise["next"])
            value = self.minimum_q(self.targets, after, action)
        if self.config.entropy_backup:
            value = value - math.exp(self.log_temperature) * log_density
        rewards = self.config.reward_scale * batch["rewards"] + self.config.reward_shift
        return rewards + self.config.discount * np.where(batch["terminations"] > 0, 0.0, value)

    def sources(
        self, batch: dict[str, Array], noise: dict[str, Array]
    ) -> list[tuple[str, Array, Array]]:
        """(source, action [B, A], log mu [B]) of all 3K samples, one by one."""
        found: list[tuple[str, Array, Array]] = []
        here = self.distribution(self.policy, batch["observations"])
        after = self.distribution(self.policy, batch["next_observations"])
        for k in range(self.config.num_action_samples):
            uniform = noise["uniform"][k]
            found.append(
                ("uniform", uniform, np.full(len(uniform), math.log(0.5**self.action_dim)))
            )
            found.append(("policy", *squashed_sample(*here, noise["current_samples"][k])))
            found.append(("policy", *squashed_sample(*after, noise["next_samples"][k])))
        return found

    def mean_gap(
        self, parameters: Array, batch: dict[str, Array], sources: list[tuple[str, Array, Array]]
    ) -> Array:
        """mean P_i of one critic, [...]."""
        temperature = self.config.conservative_temperature
        terms = []
        for source, action, log_mu in sources:
            value = self.q(
                parameters,
                batch["observations"],
                np.broadcast_to(action, (*parameters.shape[:-1], *action.shape)),
            )
            if self.config.calibrated and source == "policy":
                value = larger(value, batch["data_returns"])
            terms.append((value - log_mu) / temperature)
        data = np.broadcast_to(batch["actions"], (*parameters.shape[:-1], *batch["actions"].shape))
        gap = temperature * log_sum_exp(np.stack(terms), 0) - self.q(
            parameters, batch["observations"], data
        )
        gap = smaller(larger(gap, self.config.difference_clip_min), self.config.difference_clip_max)
        return gap.mean(-1)

    def critic_loss(
        self,
        parameters: Array,
        batch: dict[str, Array],
        target: Array,
        sources: list[tuple[str, Array, Array]] | None,
    ) -> Array:
        """L_i of one critic, [...]; without `sources` it is SAC's."""
        data = np.broadcast_to(batch["actions"], (*parameters.shape[:-1], *batch["actions"].shape))
        loss = ((self.q(parameters, batch["observations"], data) - target) ** 2).mean(-1)
        if sources is None:
            return loss
        gap = self.mean_gap(parameters, batch, sources)
        if self.config.lagrange:
            factor = min(math.exp(self.log_multiplier), MULTIPLIER_LIMIT)
            return loss + factor * self.config.conservative_weight * (gap - self.config.target_gap)
        return loss + self.config.conservative_weight * gap

    def policy_loss(
        self, parameters: Array, batch: dict[str, Array], noise: dict[str, Array], cloning: bool
    ) -> Array:
        mean, std = self.distribution(parameters, batch["observations"])
        action, log_density = squashed_sample(mean, std, noise["policy"])
        if cloning:
            value = squashed_log_density(batch["actions"], mean, std)
        else:
            value = self.minimum_q(self.critics, batch["observations"], action)
        return (math.exp(self.log_temperature) * log_density - value).mean(-1)

    def clipped(self, gradient: Array) -> Array:
        norm = float(np.sqrt((gradient**2).sum()))
        return gradient * min(1.0, self.config.gradient_clip / norm) if norm > 0 else gradient

    def update(self, batch: dict[str, Array], noise: dict[str, Array], conservative: bool) -> None:
        """All gradients at the old parameters, then all steps, then the targets.

        `batch` holds the environment's rewards.
        """
        config = self.config
        target = self.target(batch, noise, conservative and config.max_target_backup)
        sources = self.sources(batch, noise) if conservative else None
        critic_gradient = np.stack(
            [
                gradient(lambda p: self.critic_loss(p, batch, target, sources), one)
                for one in self.critics
            ]
        )
        cloning = conservative and self.updates < config.bc_warmup_updates
        policy_gradient = gradient(
            lambda p: self.policy_loss(p, batch, noise, cloning), self.policy
        )
        mean, std = self.distribution(self.policy, batch["observations"])
        _, log_density = squashed_sample(mean, std, noise["policy"])
        # d/dx of -x (log pi + H), and of clip(exp x) w (gap - tau), which is climbed.
        temperature_gradient = -(log_density + self.target_entropy).mean()
        multiplier_gradient = None
        if sources is not None and config.lagrange:
            excess = sum(
                float(self.mean_gap(one, batch, sources)) - config.target_gap
                for one in self.critics
            )
            factor = (
                math.exp(self.log_multiplier)
                if math.exp(self.log_multiplier) < MULTIPLIER_LIMIT
                else 0.0
            )
            multiplier_gradient = -factor * config.conservative_weight * excess

        self.updates += 1
        step = self.moments
        self.critics = self.critics + step["critics"].step(
            self.clipped(critic_gradient), config.critic_learning_rate, self.updates
        )
        self.policy = self.policy + step["policy"].step(
            self.clipped(policy_gradient), config.policy_learning_rate, self.updates
        )
        self.log_temperature += step["temperature"].step(
            temperature_gradient, config.temperature_learning_rate, self.updates
        )
        if multiplier_gradient is not None:
            self.log_multiplier += step["multiplier"].step(
                multiplier_gradient, config.multiplier_learning_rate, self.updates
            )
        rate = config.target_update_rate
        self.targets = (1.0 - rate) * self.targets + rate * self.critics

    def copy(self) -> Reference:
        return copy.deepcopy(self)
