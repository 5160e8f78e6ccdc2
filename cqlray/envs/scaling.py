"""Scale actions to and from [-1, 1].

In data and files, actions are in the environment's bounds; in algorithms, in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cqlray.data.episode import Array


@dataclass(frozen=True)
class ActionScaling:
    """Bounds of a Box of actions, [A] float32 each."""

    low: Array
    high: Array

    def to_environment(self, actions: Array) -> Array:
        """[..., A] in [-1, 1] -> the environment's bounds, float32."""
        scaled = self.low + (actions.astype(np.float32, copy=False) + np.float32(1.0)) * (
            self.high - self.low
        ) * np.float32(0.5)
        clipped: Array = np.clip(scaled, self.low, self.high)
        return clipped

    def to_unit(self, actions: Array) -> Array:
        """[..., A] in the environment's bounds -> [-1, 1], float32."""
        unit = (actions - self.low) / (self.high - self.low) * np.float32(2.0) - np.float32(1.0)
        clipped: Array = np.clip(unit, -1.0, 1.0).astype(np.float32, copy=False)
        return clipped
