"""Observations of every kind of space: flattened as gymnasium and the readers of recorded data do
it, or refused.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.serialization import serialize_space

from cqlray.algorithms.policy import UniformActor
from cqlray.config.schema import EnvConfig
from cqlray.data.episode import Array, Episode
from cqlray.data.formats import minari_spaces
from cqlray.envs.make import describe_env, make_env
from cqlray.envs.observations import LARGEST_ARRAY, with_flat_observations
from cqlray.envs.rollout import rollout
from cqlray.errors import UserError
from tests.unit.envs.spaces import SPACES, Seen


def config(name: str) -> EnvConfig:
    return EnvConfig(f"tests.unit.envs.spaces:Seen-{name}-v0")


def played(name: str, seed: int = 3) -> tuple[Episode, list[Any]]:
    """An episode of the environment, and what the environment showed in it before it was
    flattened.
    """
    env = make_env(config(name))
    spec = describe_env(config(name))
    (episode,) = rollout(UniformActor(2, [seed]), [env], [seed], spec.scaling)
    inner = env.unwrapped
    assert isinstance(inner, Seen)
    return episode, inner.shown


SIZES = {
    "Dict": 2 + 4 + 3 + 2,
    "Tuple": 3 + 2 + 4,
    "Discrete": 5,
    "MultiDiscrete": 2 + 3 + 4 + 1,
    "Matrix": 12,
    "Scalar": 1,
    "Integers": 3,
    "Bytes": 16,
    "Doubles": 3,
}


@pytest.mark.parametrize("name", SIZES)
def test_every_supported_space_is_played_as_float32_vectors(name: str) -> None:
    assert describe_env(config(name)).observation_dim == SIZES[name]
    episode, shown = played(name)
    assert (episode.observations.shape, episode.observations.dtype) == (
        (8, SIZES[name]),
        np.float32,
    )
    assert len(episode) == 7 and episode.truncations[-1]
    again, _ = played(name)
    np.testing.assert_array_equal(again.observations, episode.observations)
    assert len(shown) == 8


@pytest.mark.parametrize("name", SIZES)
def test_recorded_data_and_played_episodes_are_flattened_alike(name: str) -> None:
    """So that a policy trained on a Minari dataset plays in the environment that it was recorded
    in.
    """
    episode, shown = played(name)
    space = minari_spaces.parse(serialize_space(SPACES[name]), name)
    assert minari_spaces.width(space, name) == SIZES[name]
    recorded = minari_spaces.flatten(
        space, _columns(space, shown), len(shown), lambda values, key: values[key]
    )
    np.testing.assert_array_equal(recorded.astype(np.float32), episode.observations)


def _columns(space: dict[str, Any], values: list[Any]) -> Any:
    """Values one by one, as a recording holds them: an array for each part."""
    below = space.get("subspaces")
    if below is None:
        return np.array(values)
    keys: list[Any] = list(below) if space["type"] == "Dict" else list(range(len(below)))
    return {str(key): _columns(below[key], [value[key] for value in values]) for key in keys}


def test_one_hot_by_hand() -> None:
    episode, shown = played("Discrete")
    assert [int(np.argmax(row)) - 2 for row in episode.observations] == [
        int(value) for value in shown
    ]
    assert (episode.observations.sum(axis=1) == 1).all() and set(
        np.unique(episode.observations)
    ) == {0.0, 1.0}


def test_parts_of_a_dict_by_hand() -> None:
    """Keys in the space's order: arm (at, on), gear, speed."""
    assert list(SPACES["Dict"].spaces) == ["arm", "gear", "speed"]  # type: ignore[attr-defined]
    episode, shown = played("Dict")
    for row, value in zip(episode.observations, shown, strict=True):
        assert row[value["arm"]["at"]] == 1 and row[:2].sum() == 1
        np.testing.assert_array_equal(row[2:5], value["arm"]["on"])
        assert row[5 + value["gear"] - 1] == 1 and row[5:9].sum() == 1
        np.testing.assert_array_equal(row[9:], value["speed"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Picture",
            (
                "observations are images (8 x 8 x 3 of uint8), which are not supported yet; give"
                " vectors instead"
            ),
        ),
        ("Grey", "observations are images (8 x 8 of uint8), "),
        ("FloatPicture", "observations are images (84 x 84 x 3 of float32), "),
        ("PictureInside", "observations['camera']['left'] are images (8 x 8 x 3 of uint8), "),
        ("Text", "observations['sign'] are a Text space, which is not supported; Box, Discrete, "),
        ("Graph", "observations are a Graph space, "),
        ("Sequence", "observations[0] are a Sequence space, "),
        ("Empty", "observations are Dict(), which holds no numbers"),
    ],
)
def test_what_is_no_vector_is_refused_by_its_key(name: str, message: str) -> None:
    for make in (describe_env, make_env):
        with pytest.raises(
            UserError, match=re.escape(f"env.id 'tests.unit.envs.spaces:Seen-{name}-v0': {message}")
        ) as raised:
            make(config(name))
        assert "\n" not in str(raised.value)


def test_every_part_that_is_refused_has_its_line() -> None:
    with pytest.raises(UserError) as raised:
        make_env(config("TwoPictures"))
    lines = str(raised.value).splitlines()
    assert [re.findall(r"observations\[\d\]", line) for line in lines] == [
        ["observations[0]"],
        ["observations[2]"],
    ]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Blackjack-v1", r"actions are Discrete\(2\)"),
        ("FrozenLake-v1", r"actions are Discrete\(4\)"),
    ],
)
def test_discrete_actions_stay_refused(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe_env(EnvConfig(env_id))
    observation = make_env(EnvConfig(env_id)).reset(seed=1)[0]
    # one-hot, for each part
    assert np.asarray(observation).ndim == 1 and np.sum(observation) in (1, 3)


@pytest.mark.parametrize(
    "env_id", ["Pendulum-v1", "MountainCarContinuous-v0", "tests.unit.envs.spaces:Seen-Doubles-v0"]
)
def test_vectors_get_no_wrapper(env_id: str) -> None:
    env = make_env(EnvConfig(env_id))
    assert with_flat_observations(env, "env") is env
    assert "Flatten" not in str(env)


def test_the_largest_array_is_still_one() -> None:
    env = Seen("Matrix")
    env.observation_space = Box(-1.0, 1.0, (2, LARGEST_ARRAY // 2), np.float32)
    flat: Array = with_flat_observations(env, "env").reset(seed=0)[0]
    assert flat.shape == (LARGEST_ARRAY,)
