"""Policies in numpy, for the workers that play: network parameters as arrays, and the functions
that act and estimate values with them.

Importing this loads numpy alone, so a rollout worker or evaluator starts without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

LOG_STD_MAX = 2.0  # in training, too: tanh_gaussian
LAYER_NORM_EPSILON = 1e-5


def _forward(arrays: Arrays, prefix: str, inputs: Array) -> Array:
    """E networks at once: [E, rows, in] -> [E, rows, out]; the counterpart of
    forward_backward.outputs in torch.
    """
    hidden = inputs
    last = sum(name.startswith(prefix) and name.endswith(".weight") for name in arrays) - 1
    for index in range(last + 1):
        hidden = hidden @ arrays[f"{prefix}{index}.weight"] + arrays[f"{prefix}{index}.bias"]
        if index == last:
            break
        if f"{prefix}{index}.norm_scale" in arrays:
            centred = hidden - hidden.mean(-1, keepdims=True)
            hidden = centred / np.sqrt(
                np.square(centred).mean(-1, keepdims=True) + np.float32(LAYER_NORM_EPSILON)
            )
            hidden = (
                hidden * arrays[f"{prefix}{index}.norm_scale"]
                + arrays[f"{prefix}{index}.norm_shift"]
            )
        hidden = np.maximum(hidden, 0.0, dtype=hidden.dtype)
    return hidden


class Policy:
    """Policies and critics of M members.

    `arrays` holds policy.I.weight [M, in, out], policy.I.bias [M, 1, out], critics.I.weight
    [M * N, in, out] and so on, observation_mean and observation_std [observation_dim], log_std_min
    [M].
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.num_members = len(arrays["log_std_min"])
        layers = sum(name.startswith("policy.") and name.endswith(".weight") for name in arrays)
        self.action_dim = arrays[f"policy.{layers - 1}.weight"].shape[-1] // 2

    def member(self, index: int) -> Policy:
        """One member alone."""
        return Policy(select_members(self.arrays, [index]))

    def _normalized(self, observations: Array) -> Array:
        scaled = (observations - self.arrays["observation_mean"]) / self.arrays["observation_std"]
        return scaled.astype(np.float32, copy=False)

    def act(self, observations: Array) -> Array:
        """The deterministic action tanh(mean): [M, E, observation_dim] -> [M, E, A] in [-1, 1]."""
        mean: Array = _forward(self.arrays, "policy.", self._normalized(observations))[
            ..., : self.action_dim
        ]
        actions: Array = np.tanh(mean)
        return actions

    def sample(self, observations: Array, noise: Array) -> Array:
        """A sampled action; noise [M, E, A] standard normal."""
        output = _forward(self.arrays, "policy.", self._normalized(observations))
        mean, log_std = output[..., : self.action_dim], output[..., self.action_dim :]
        log_std = np.clip(log_std, self.arrays["log_std_min"][:, None, None], LOG_STD_MAX)
        actions: Array = np.tanh(mean + np.exp(log_std) * noise)
        return actions

    def value(self, observations: Array, actions: Array) -> Array:
        """min_i Q_i, in the units of the rewards as they were scaled for training:
        [M, E, observation_dim], [M, E, A] in [-1, 1] -> [M, E].
        """
        critics = len(self.arrays["critics.0.weight"]) // self.num_members
        inputs = np.concatenate([self._normalized(observations), actions], axis=-1).astype(
            np.float32, copy=False
        )
        q_values = _forward(self.arrays, "critics.", np.repeat(inputs, critics, axis=0))
        value: Array = q_values.reshape(self.num_members, critics, -1).min(1)
        return value


class DeterministicActor:
    """Acts with tanh(mean) in n = M * E environments, a member's environments in a row."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def act(self, observations: Array) -> Array:
        """[n, observation_dim] -> [n, A] in [-1, 1]."""
        members = self.policy.num_members
        actions = self.policy.act(observations.reshape(members, -1, observations.shape[-1]))
        return actions.reshape(len(observations), -1)


class StochasticActor:
    """Acts with sampled actions. Each environment has a seed for its noise, so that this does not
    depend on the environments beside it.
    """

    def __init__(self, policy: Policy, seeds: Sequence[int]) -> None:
        self.policy = policy
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: Array) -> Array:
        """[n, observation_dim] -> [n, A] in [-1, 1], for a policy of one member."""
        noise = np.stack(
            [g.standard_normal(self.policy.action_dim, dtype=np.float32) for g in self.generators]
        )
        actions: Array = self.policy.sample(observations[None], noise[None])[0]
        return actions


class UniformActor:
    """Acts uniformly on [-1, 1]; each environment has a seed for its draws."""

    def __init__(self, action_dim: int, seeds: Sequence[int]) -> None:
        self.action_dim = action_dim
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: Array) -> Array:
        """[n, observation_dim] -> [n, A] in [-1, 1]."""
        return np.stack([g.uniform(-1.0, 1.0, self.action_dim) for g in self.generators]).astype(
            np.float32
        )


def select_members(arrays: Arrays, indices: Sequence[int]) -> Arrays:
    """The arrays of some members, in the given order."""
    members = len(arrays["log_std_min"])
    selected = {}
    for name, array in arrays.items():
        if name.startswith("observation_"):
            selected[name] = array
        else:
            by_member = array.reshape(members, -1, *array.shape[1:])[list(indices)]
            selected[name] = by_member.reshape(-1, *array.shape[1:])
    return selected
