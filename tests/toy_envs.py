"""Small environments for tests, used as `tests.toy_envs:Name-v0`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.spaces import Box


class Point(gymnasium.Env[Any, Any]):
    """A point on a line, pushed by one action in [-2, 3]; falling off an end terminates.

    Notes who uses it in `log`.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(np.float32(-2.0), np.float32(3.0), (1,), np.float32)

    def __init__(self, log: str = "") -> None:
        self.log = log
        self._note("made")

    def _note(self, what: str) -> None:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{what} {os.getpid()}\n")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._note("reset")
        self.state = (self.np_random.uniform(-0.5, 0.5, 2) * [1.0, 0.2]).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state[1] += 0.05 * float(action[0])
        self.state[0] += 0.1 * self.state[1]
        fallen = bool(abs(self.state[0]) > 1.0)
        return self.state.copy(), 1.0 - float(self.state[0]) ** 2, fallen, False, {}


class Broken(Point):
    """Raises at its fifth step."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 5:
            raise ZeroDivisionError("the spring snapped")
        return super().step(action)


class Hanging(Point):
    """As Point, but its first step never ends where the marker, a file, is not there yet."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = Path(marker)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.marker.exists():
            self.marker.touch()
            time.sleep(600)
        return super().step(action)


class Wide(Point):
    """As Point, with an observation of 340 kB."""

    observation_space = Box(-np.inf, np.inf, (85_000,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return self._widened(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        return self._widened(observation), reward, False, False, info

    def _widened(self, observation: Any) -> Any:
        wide = self.np_random.normal(size=85_000).astype(np.float32)
        wide[:2] = observation
        return wide


class Drawn(Point):
    """As Point, with small pictures; it ends after `length` steps, or never.

    What `broken` names raises RuntimeError.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, render_mode: str | None = None, length: int = 0, broken: str = "") -> None:
        super().__init__()
        self.render_mode, self.length, self.broken = render_mode, length, broken
        if render_mode:
            self._break("making")

    def _break(self, what: str) -> None:
        if what == self.broken:
            raise RuntimeError(f"no GL context\n\twhile {what}")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._break("resetting")
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._break("stepping")
        observation, _, _, _, info = super().step(action)
        self.steps += 1
        return observation, 1.0, self.steps == self.length, False, info

    def render(self) -> Any:
        """16 x 16 pixels of a grey that tells the step, up to 255."""
        self._break("rendering")
        return np.full((16, 16, 3), min(self.steps, 255), np.uint8)

    def close(self) -> None:
        if self.render_mode:  # what could not draw cannot be closed either
            self._break(self.broken)


class Slow(PendulumEnv):
    """Pendulum, at 2 ms for each step, most of which the CPU is free."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.002)
        return super().step(action)


gymnasium.register("Drawn-v0", "tests.toy_envs:Drawn")
gymnasium.register("Slow-v0", "tests.toy_envs:Slow", max_episode_steps=200)
gymnasium.register("Point-v0", "tests.toy_envs:Point", max_episode_steps=25)
gymnasium.register("Wide-v0", "tests.toy_envs:Wide", max_episode_steps=25)
gymnasium.register("Hanging-v0", "tests.toy_envs:Hanging", max_episode_steps=25)
gymnasium.register("Broken-v0", "tests.toy_envs:Broken", max_episode_steps=25)
