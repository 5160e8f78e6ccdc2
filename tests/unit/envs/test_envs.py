"""Environments made and described, actions scaled, episodes played."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqlray.algorithms.policy import UniformActor
from cqlray.config.schema import EnvConfig
from cqlray.data.episode import Array
from cqlray.envs.make import EnvPool, describe_env, make_env
from cqlray.envs.rollout import rollout
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import EnvironmentFailure, UserError

POINT = EnvConfig("tests.toy_envs:Point-v0")


class Constant:
    """Acts with one number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def act(self, observations: Array) -> Array:
        return np.full((len(observations), 1), self.value, np.float32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig("Pendulum-v9"), r"env.id 'Pendulum-v9': .*"),
        (EnvConfig("Pendulm-v1"), r"did you mean Pendulum-v1\?"),
        (
            EnvConfig("Hopper-v2"),
            r"env.id 'Hopper-v2': The mujoco v2 and v3 based environments have been moved",
        ),
        (
            EnvConfig("CartPole-v1"),
            r"actions are Discrete\(2\); cqlray needs a one-dimensional Box",
        ),
        (EnvConfig("no_such_module:X-v0"), r"no_such_module.*install it"),
        (
            EnvConfig("Pendulum-v1", kwargs={"gravity": 3}),
            r"env.kwargs \{'gravity': 3\}: .*gravity",
        ),
    ],
)
def test_mistakes_get_one_line(config: EnvConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        describe_env(config)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is not None, reason="MuJoCo is here, so nothing is missing"
)
def test_what_is_missing_is_named_without_a_guess() -> None:
    with pytest.raises(UserError, match="MuJoCo is not installed") as raised:
        describe_env(EnvConfig("Ant-v5"))
    assert "did you mean" not in str(raised.value)


def test_description() -> None:
    spec = describe_env(EnvConfig("Pendulum-v1", max_episode_steps=17, kwargs={"g": 5.0}))
    assert (spec.observation_dim, spec.action_dim, spec.max_episode_steps) == (3, 1, 17)
    assert (spec.action_low, spec.action_high) == ((-2.0,), (2.0,))


@given(
    low=st.floats(-100, 99, width=32),
    width=st.floats(0.5, 100, width=32),
    unit=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5),
)
def test_scaling_there_and_back(low: float, width: float, unit: list[float]) -> None:
    scaling = ActionScaling(np.array([low], np.float32), np.array([low + width], np.float32))
    actions = scaling.to_environment(np.array(unit, np.float32)[:, None])
    assert (actions >= scaling.low).all() and (actions <= scaling.high).all()
    np.testing.assert_allclose(scaling.to_unit(actions)[:, 0], unit, atol=1e-3)


def test_bounds_map_to_bounds() -> None:
    scaling = describe_env(POINT).scaling
    np.testing.assert_array_equal(
        scaling.to_environment(np.array([[-1.0], [0.0], [1.0]], np.float32)), [[-2], [0.5], [3]]
    )
    np.testing.assert_array_equal(
        scaling.to_unit(np.array([[-2.0], [0.5], [3.0]], np.float32)), [[-1], [0], [1]]
    )


def test_terminations_and_truncations_are_told_apart() -> None:
    spec, envs = describe_env(POINT), EnvPool(POINT).take(2)
    (pushed,) = rollout(Constant(1.0), envs[:1], [3], spec.scaling)
    assert (
        pushed.terminations[-1]
        and not pushed.truncations.any()
        and not pushed.terminations[:-1].any()
    )
    assert abs(pushed.observations[-1][0]) > 1.0, "the true final observation is kept"
    (still,) = rollout(Constant(-0.2), envs[:1], [3], spec.scaling)
    assert len(still) == 25 and still.truncations[-1] and not still.terminations.any()
    assert len(still.observations) == 26


def test_an_episode_does_not_depend_on_who_plays_beside_it() -> None:
    spec, envs = describe_env(POINT), EnvPool(POINT).take(5)
    together = rollout(UniformActor(1, [1, 2, 3, 4, 5]), envs, [1, 2, 3, 4, 5], spec.scaling)
    alone = rollout(UniformActor(1, [4]), envs[:1], [4], spec.scaling)[0]
    np.testing.assert_array_equal(together[3].observations, alone.observations)
    np.testing.assert_array_equal(together[3].actions, alone.actions)


def test_a_used_environment_is_as_good_as_new() -> None:
    spec, used = describe_env(POINT), make_env(POINT)
    rollout(UniformActor(1, [9]), [used], [9], spec.scaling)
    again = rollout(UniformActor(1, [4]), [used], [4], spec.scaling)[0]
    fresh = rollout(UniformActor(1, [4]), [make_env(POINT)], [4], spec.scaling)[0]
    np.testing.assert_array_equal(again.observations, fresh.observations)


def test_the_environments_own_error_is_told_with_its_seed() -> None:
    config = EnvConfig("tests.toy_envs:Broken-v0")
    with pytest.raises(EnvironmentFailure) as raised:
        rollout(Constant(-0.2), EnvPool(config).take(2), [11, 12], describe_env(config).scaling)
    assert raised.value.where == "episode seed 11, step 4"
    assert "ZeroDivisionError: the spring snapped" in raised.value.traceback_text
