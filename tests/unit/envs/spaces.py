"""Environments whose observations are anything but plain vectors, used as
`tests.unit.envs.spaces:Seen-NAME-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
)

PICTURE = Box(0, 255, (8, 8, 3), np.uint8)
SPEED = Box(-1.0, 1.0, (2,), np.float32)
SPACES: dict[str, gymnasium.Space[Any]] = {
    "Dict": Dict(
        {
            "speed": SPEED,
            "gear": Discrete(4, start=1),
            "arm": Dict({"on": MultiBinary(3), "at": Discrete(2)}),
        }
    ),
    "Tuple": Tuple((Discrete(3), SPEED, Box(-5, 5, (2, 2), np.float64))),
    "Discrete": Discrete(5, start=-2),
    "MultiDiscrete": MultiDiscrete([[2, 3], [4, 1]], start=[[0, 7], [0, 0]]),
    "Matrix": Box(-1.0, 1.0, (3, 4), np.float32),
    "Scalar": Box(-1.0, 1.0, (), np.float32),
    "Integers": Box(-9, 9, (3,), np.int64),
    "Bytes": Box(0, 255, (16,), np.uint8),
    "Doubles": Box(-1.0, 1.0, (3,), np.float64),
    "Picture": PICTURE,
    "Grey": Box(0, 255, (8, 8), np.uint8),
    "FloatPicture": Box(0.0, 1.0, (84, 84, 3), np.float32),
    "PictureInside": Dict({"speed": SPEED, "camera": Dict({"left": PICTURE})}),
    "TwoPictures": Tuple((PICTURE, SPEED, PICTURE)),
    "Text": Dict({"speed": SPEED, "sign": Text(5)}),
    "Graph": Graph(SPEED, None),
    "Sequence": Tuple((Sequence(SPEED),)),
    "Empty": Dict({}),
}


class Seen(gymnasium.Env[Any, Any]):
    """Shows values of a space at random, whatever is done; `shown` holds what it showed, as it
    was.
    """

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, space: str) -> None:
        self.observation_space = SPACES[space]
        self.shown: list[Any] = []

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._show(), float(action[0]), False, False, {}


for name in SPACES:
    gymnasium.register(
        f"Seen-{name}-v0",
        "tests.unit.envs.spaces:Seen",
        max_episode_steps=7,
        kwargs={"space": name},
    )
