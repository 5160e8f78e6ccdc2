"""Make, check and describe Gymnasium environments.

An unsupported one is refused with a one-line message.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from cqlray.config.schema import EnvConfig
from cqlray.envs.observations import with_flat_observations
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError


@dataclass(frozen=True)
class EnvSpec:
    """What the rest of cqlray needs to know about an environment."""

    id: str
    observation_dim: int  # numbers in a flat observation
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_episode_steps: int | None

    @property
    def scaling(self) -> ActionScaling:
        return ActionScaling(
            np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        )


def make_env(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """Make an environment whose observations are flat vectors.

    Raises:
        UserError: no such id, the module cannot be imported, the environment cannot be made, or its
            observations are of a kind that is not supported.
    """
    module, colon, _ = config.id.rpartition(":")
    if colon and not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"env.id {config.id!r}: {module!r} is not the name of a module; write"
            " package.module:Name-v0"
        )
    options: dict[str, Any] = dict(config.kwargs)
    if config.max_episode_steps is not None:
        options["max_episode_steps"] = config.max_episode_steps
    try:
        env = gymnasium.make(config.id, disable_env_checker=True, **options)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.Error) as error:
        raise UserError(f"env.id {config.id!r}: {_first_line(error)}{_hint(config.id)}") from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"env.id {config.id!r}: {error}; install it, or write module:Name-v0 of a module on the"
            " path"
        ) from None
    except ImportError as error:  # Gymnasium keeps the ids of removed environments
        raise UserError(f"env.id {config.id!r}: {_first_line(error)}") from None
    except TypeError as error:
        raise UserError(f"env.kwargs {config.kwargs}: {_first_line(error)}") from None
    try:
        return with_flat_observations(env, f"env.id {config.id!r}")
    except UserError:
        env.close()
        raise


def describe_env(config: EnvConfig) -> EnvSpec:
    """Make the environment once and check that cqlray supports it.

    Raises:
        UserError: see make_env; or spaces that are not supported.
    """
    env = make_env(config)
    try:
        action = env.action_space
        if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1:
            raise UserError(
                f"env.id {config.id!r}: actions are {action}; cqlray needs a one-dimensional Box"
                " (continuous actions)"
            )
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise UserError(
                f"env.id {config.id!r}: the action bounds are infinite; wrap it in gymnasium's"
                " RescaleAction or ClipAction"
            )
        limit = env.spec.max_episode_steps if env.spec is not None else None
        return EnvSpec(
            id=config.id,
            observation_dim=gymnasium.spaces.flatdim(env.observation_space),
            action_dim=action.shape[0],
            action_low=tuple(float(v) for v in action.low),
            action_high=tuple(float(v) for v in action.high),
            max_episode_steps=limit,
        )
    finally:
        env.close()


def _hint(env_id: str) -> str:
    """Suggest the id that may have been meant; nothing if only a dependency is missing."""
    if env_id in gymnasium.registry:
        return ""
    close = difflib.get_close_matches(env_id, list(gymnasium.registry), n=1)
    return (
        f"; did you mean {close[0]}?"
        if close
        else "; for your own environment write package.module:Name-v0"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class EnvPool:
    """Equal environments, made when first needed and then reused: a seeded reset renews them."""

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self.envs: list[gymnasium.Env[Any, Any]] = []

    def take(self, count: int) -> list[gymnasium.Env[Any, Any]]:
        """The first `count` environments, made if needed."""
        while len(self.envs) < count:
            self.envs.append(make_env(self.config))
        return self.envs[:count]


def registered_spec(environment: Mapping[str, Any]) -> str | None:
    """Gymnasium's description of a recorded environment, as JSON; None if its id is unknown here.

    `environment` has id, kwargs and max_episode_steps, as in dataset.json.
    """
    try:
        spec = copy.deepcopy(gymnasium.spec(environment.get("id") or ""))
    except (gymnasium.error.Error, ModuleNotFoundError):
        return None
    spec.kwargs.update(environment.get("kwargs") or {})
    spec.max_episode_steps = environment.get("max_episode_steps") or spec.max_episode_steps
    return spec.to_json()
