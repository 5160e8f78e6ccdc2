"""Which number of a flat observation is what."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from cqlray.config.schema import EnvConfig
from cqlray.envs.layout import observation_layout, observation_names
from cqlray.errors import UserError
from tests.unit.envs.spaces import SPACES


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "Dict",
            [
                "numbers 0 to 1: observation['arm']['at'], one-hot, the first stands for 0",
                "numbers 2 to 4: observation['arm']['on'], as it is",
                "numbers 5 to 8: observation['gear'], one-hot, the first stands for 1",
                "numbers 9 to 10: observation['speed'], as it is",
            ],
        ),
        (
            "Tuple",
            [
                "numbers 0 to 2: observation[0], one-hot, the first stands for 0",
                "numbers 3 to 4: observation[1], as it is",
                "numbers 5 to 8: observation[2], the array [2, 2] row by row",
            ],
        ),
        ("Discrete", ["numbers 0 to 4: observation, one-hot, the first stands for -2"]),
        (
            "MultiDiscrete",
            [
                "numbers 0 to 9: observation, one-hot each, one behind the other: sizes [2, 3, 4,"
                " 1], from [0, 7, 0, 0]"
            ],
        ),
        ("Matrix", ["numbers 0 to 11: observation, the array [3, 4] row by row"]),
        ("Scalar", ["number 0: observation, as it is"]),
        ("Doubles", []),
    ],
)
def test_lines_by_hand(name: str, lines: list[str]) -> None:
    assert observation_layout(EnvConfig(f"tests.unit.envs.spaces:Seen-{name}-v0")) == lines


def test_the_lines_point_at_what_flatten_puts_there() -> None:
    """A Dict's order is gymnasium's: each part is found where its line says."""
    space: gymnasium.Space[object] = SPACES["Dict"]
    space.seed(3)
    sample = space.sample()
    flat = spaces.flatten(space, sample)
    found = observation_layout(EnvConfig("tests.unit.envs.spaces:Seen-Dict-v0"))
    for line in found:
        numbers, what = line.split(": ", 1)
        first, last = (int(word) for word in numbers.removeprefix("numbers ").split(" to "))
        path = what.split(",")[0]
        part, value = space, sample
        for key in path.removeprefix("observation").strip("[]'").split("']['"):
            part, value = part[key], value[key]  # type: ignore[index]
        np.testing.assert_array_equal(flat[first : last + 1], spaces.flatten(part, value))  # type: ignore[index]


def test_an_environment_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match="Pendulum-v1"):
        observation_layout(EnvConfig("Pendulun-v1"))


def test_a_dictionarys_keys_name_its_numbers() -> None:
    def names(name: str) -> list[str] | None:
        return observation_names(EnvConfig(f"tests.unit.envs.spaces:Seen-{name}-v0"))

    assert names("Dict") == [
        *("arm.at=0", "arm.at=1", "arm.on[0]", "arm.on[1]", "arm.on[2]"),
        *("gear=1", "gear=2", "gear=3", "gear=4", "speed[0]", "speed[1]"),
    ]
    assert names("Tuple") is names("Matrix") is names("Doubles") is None
