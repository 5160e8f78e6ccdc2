"""Describe which numbers of a flat observation come from which part of the original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import spaces

from cqlray.config.schema import EnvConfig
from cqlray.envs.make import make_env


def observation_layout(config: EnvConfig) -> list[str]:
    """A line for each part of an observation that is flattened; none if it is a vector already.

    Raises:
        UserError: the environment cannot be made. Errors from its code pass through.
    """
    space = _flattened(config)
    return [] if space is None else list(_lines(space, "", 0))


def observation_names(config: EnvConfig) -> list[str] | None:
    """What each number of a flattened dictionary is called, by its keys: `arm.on[2]`, and `gear=1`
    of a one-hot code; None for other observations, which have no names.

    Raises as observation_layout.
    """
    space = _flattened(config)
    return list(_names(space, "")) if isinstance(space, spaces.Dict) else None


def _flattened(config: EnvConfig) -> gymnasium.Space[Any] | None:
    """The space of an observation before it is flattened; None if it is a vector already."""
    env = make_env(config)
    try:
        if isinstance(env, gymnasium.wrappers.FlattenObservation):
            return env.env.observation_space
        return None
    finally:
        env.close()


def _names(space: gymnasium.Space[Any], name: str) -> Iterator[str]:
    """A name for each number, in the order of gymnasium.spaces.flatten."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _names(part, f"{name}.{key}" if name else str(key))
    elif isinstance(space, spaces.Discrete):
        yield from (f"{name}={space.start + value}" for value in range(space.n))
    elif isinstance(space, spaces.MultiDiscrete):
        for index, (size, start) in enumerate(
            zip(space.nvec.ravel(), space.start.ravel(), strict=True)
        ):
            yield from (f"{name}[{index}]={start + value}" for value in range(size))
    else:
        size = spaces.flatdim(space)
        yield from [name] if size == 1 else (f"{name}[{index}]" for index in range(size))


def _lines(space: gymnasium.Space[Any], name: str, start: int) -> Iterator[str]:
    """The parts in the order of gymnasium.spaces.flatten, from index `start` of the vector on."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _lines(part, f"{name}[{key!r}]", start)
            start += spaces.flatdim(part)
        return
    stop = start + spaces.flatdim(space) - 1
    numbers = f"numbers {start} to {stop}" if stop > start else f"number {start}"
    yield f"{numbers}: observation{name}, {_how(space)}"


def _how(space: gymnasium.Space[Any]) -> str:
    if isinstance(space, spaces.Discrete):
        return f"one-hot, the first stands for {space.start}"
    if isinstance(space, spaces.MultiDiscrete):
        return (
            f"one-hot each, one behind the other: sizes {space.nvec.ravel().tolist()}, from"
            f" {space.start.ravel().tolist()}"
        )
    if isinstance(space, spaces.Box) and len(space.shape) > 1:
        return f"the array {list(space.shape)} row by row"
    return "as it is"
