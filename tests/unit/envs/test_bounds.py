"""Observations that cannot be the environment's are told, with what would fit."""

from __future__ import annotations

import numpy as np
import pytest

from cqlray.config.schema import EnvConfig
from cqlray.data.episode import Array
from cqlray.envs.bounds import outside_bounds
from cqlray.envs.make import make_env

PENDULUM = EnvConfig("Pendulum-v1")
NAMES = ("s/x", "s/y", "s/omega")


def played(seed: int, push: float | None) -> Array:
    """Observations of ten episodes: random torques, or one that swings up."""
    env, rng, rows = make_env(PENDULUM), np.random.default_rng(seed), []
    for episode in range(10):
        rows.append(env.reset(seed=seed + episode)[0])
        for _ in range(200):
            swing = push is not None and push * np.sign(rows[-1][2])
            torque = [swing] if push is not None else rng.uniform(-2, 2, 1)
            rows.append(env.step(np.array(torque, np.float32))[0])
    env.close()
    return np.array(rows)


def told(rows: Array, names: tuple[str, ...] = NAMES) -> list[str]:
    return outside_bounds(PENDULUM, names, rows.min(axis=0), rows.max(axis=0))


@pytest.mark.parametrize("push", [None, 0.5, 2.0])
def test_sound_data_is_not_warned_of(push: float | None) -> None:
    for seed in (0, 100):
        assert told(played(seed, push)) == []


def test_another_order_is_named_with_what_fits() -> None:
    """In the order of the alphabet the speed comes first."""
    rows = played(0, 2.0)[:, [2, 0, 1]]
    (line,) = told(rows, ("s/omega", "s/x", "s/y"))
    assert line.startswith("observation 0 (s/omega) spans -8 to 8 where dimension 0 of Pendulum-v1")
    assert line.endswith("dimension 2 fits: are the columns in the environment's order?")


def test_another_unit_is_named() -> None:
    (line,) = told(played(0, 2.0) * np.array([1, 1, 57.3]))
    assert line.startswith("observation 2 (s/omega) spans -458.4 to 458.4 where dimension 2 of")
    assert line.endswith("lies in -8 to 8; is it in the environment's unit?")
