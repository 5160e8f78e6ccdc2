"""Play episodes: the only environment loop, a pure function of (actor, environments, seeds)."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np

from cqlray.data.episode import Array, Episode
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import EnvironmentFailure


class Actor(Protocol):
    """A policy: observations [n, observation_dim] float32 -> actions [n, A] in [-1, 1]."""

    def act(self, observations: Array) -> Array: ...


class _Recorder:
    """Records one episode while it is played."""

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        self.env = env
        self.seed = seed
        self.observations: list[Array] = []
        self.actions: list[Array] = []
        self.rewards: list[float] = []
        self.terminated = self.truncated = False

    def reset(self) -> Array:
        observation = np.asarray(self.env.reset(seed=self.seed)[0], np.float32)
        self.observations.append(observation)
        return observation

    def step(self, action: Array) -> Array:
        result = self.env.step(action)
        observation = np.asarray(result[0], np.float32)
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(result[1]))
        self.terminated, self.truncated = bool(result[2]), bool(result[3])
        return observation

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def episode(self) -> Episode:
        steps = len(self.rewards)
        terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
        # An environment may report both; a bootstrapped target needs the termination.
        terminations[-1], truncations[-1] = self.terminated, self.truncated and not self.terminated
        return Episode(
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminations=terminations,
            truncations=truncations,
            seed=self.seed,
        )


def rollout(
    actor: Actor,
    envs: Sequence[gymnasium.Env[Any, Any]],
    seeds: Sequence[int],
    scaling: ActionScaling,
) -> list[Episode]:
    """Play one whole episode in each environment, in parallel; seeds[i] resets environment i.

    Raises:
        EnvironmentFailure: the environment raised; has its traceback and the seed.
    """
    recorders = [_Recorder(env, seed) for env, seed in zip(envs, seeds, strict=True)]
    recorder = recorders[0]
    try:
        current = []
        for recorder in recorders:
            current.append(recorder.reset())
        observations = np.stack(current)
        playing = list(enumerate(recorders))
        while playing:
            # Rows of finished episodes are computed too, so that a row's bits never depend on the
            # others.
            actions = scaling.to_environment(actor.act(observations))
            for index, recorder in playing:
                observations[index] = recorder.step(actions[index])
            playing = [(index, recorder) for index, recorder in playing if not recorder.ended]
    except Exception:
        where = f"episode seed {recorder.seed}, step {len(recorder.rewards)}"
        raise EnvironmentFailure(where, traceback.format_exc()) from None
    return [recorder.episode() for recorder in recorders]
