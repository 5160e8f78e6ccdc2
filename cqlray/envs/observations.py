"""Flatten observations of any supported space to vectors of numbers, with gymnasium's functions.

The parts of a Dict (in the space's order) and of a Tuple follow one another, Discrete and
MultiDiscrete are one-hot, and arrays are flattened row by row. `cqlray.data.formats.minari_spaces`
flattens recorded observations the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from cqlray.errors import UserError

# A Box with more numbers than this and more than one dimension is an image, whatever its dtype.
LARGEST_ARRAY = 4096
_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple are"


def with_flat_observations(env: gymnasium.Env[Any, Any], what: str) -> gymnasium.Env[Any, Any]:
    """The environment, wrapped unless its observations are vectors; `what` names it in messages.

    Raises:
        UserError: images, texts, graphs or sequences, anywhere in the observation; or no numbers at
            all.
    """
    space = env.observation_space
    problems = list(_problems(space, "observations"))
    if problems:
        raise UserError("\n".join(f"{what}: {problem}" for problem in problems))
    if spaces.flatdim(space) == 0:
        raise UserError(f"{what}: observations are {space}, which holds no numbers")
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        # no wrapper, no cost: integers and float64 become float32 when episodes are recorded
        return env
    return FlattenObservation(env)


def _problems(space: gymnasium.Space[Any], where: str) -> Iterator[str]:
    """A line for each part of the space that cannot be flattened usefully."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _problems(part, f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _problems(part, f"{where}[{index}]")
    elif isinstance(space, spaces.Box):
        if len(space.shape) > 1 and (
            space.dtype == "uint8" or spaces.flatdim(space) > LARGEST_ARRAY
        ):
            size = " x ".join(map(str, space.shape))
            yield (
                f"{where} are images ({size} of {space.dtype}), which are not supported yet; give"
                " vectors instead"
            )
    elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        yield f"{where} are a {type(space).__name__} space, which is not supported; {_SUPPORTED}"
