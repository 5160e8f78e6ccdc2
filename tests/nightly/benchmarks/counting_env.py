"""An environment that writes down its every step, used as
`tests.nightly.benchmarks.counting_env:Counting-v0`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium

from tests.toy_envs import Point


class Counting(Point):
    """Point, with the process's number appended to `log` at every step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        with Path(self.log).open("a") as file:
            file.write(f"step {os.getpid()}\n")
        return super().step(action)


gymnasium.register(
    "Counting-v0", "tests.nightly.benchmarks.counting_env:Counting", max_episode_steps=25
)
