"""Whether a dataset's observations lie within the bounds that its environment gives them."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from cqlray.config.schema import EnvConfig
from cqlray.data.episode import Array
from cqlray.envs.make import make_env

# How far beyond its bounds a dimension may reach, as a share of their width: environments round,
# and some go a little beyond what they say.
ALLOWED = 0.05


def outside_bounds(
    config: EnvConfig, names: Sequence[str], minimum: Array, maximum: Array
) -> list[str]:
    """A line for each dimension that goes beyond its bounds, with the dimensions where it fits.

    Args:
        config: the environment, which is made: one that may be trusted.
        names, minimum, maximum: of each dimension of the data, [observation_dim].
    """
    env = make_env(config)
    try:
        box = env.observation_space
    finally:
        env.close()
    assert isinstance(box, gymnasium.spaces.Box)
    low, high = (bound.astype(np.float64) for bound in (box.low, box.high))
    slack = np.where(np.isfinite(high - low), ALLOWED * (high - low), 0.0)
    lines = []
    for index, name in enumerate(names):
        fits = (minimum[index] >= low - slack) & (maximum[index] <= high + slack)
        if fits[index] or not np.isfinite([minimum[index], maximum[index]]).all():
            continue
        others = np.flatnonzero(fits & np.isfinite(low) & np.isfinite(high)).tolist()
        where = ", ".join(map(str, others))
        advice = (
            f"dimension{'s' * (len(others) > 1)} {where} fit{'s' * (len(others) == 1)}: are the"
            " columns in the environment's order?"
            if others
            else "is it in the environment's unit?"
        )
        lines.append(
            f"observation {index} ({name}) spans {minimum[index]:.4g} to {maximum[index]:.4g} where"
            f" dimension {index} of {config.id} lies in {low[index]:.4g} to {high[index]:.4g};"
            f" {advice}"
        )
    return lines
