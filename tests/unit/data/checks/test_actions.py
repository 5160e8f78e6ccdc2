"""Actions that crowd into one bin of their bounds, and whole numbers that may be choices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cqlray.data.checks.validation import validate
from cqlray.data.episode import Array
from cqlray.data.source import Piece, Source, describe_environment
from tests.unit.data.test_shards import random_shard

N = 400


def found(actions: Array, low: float, high: float) -> list[str]:
    """What validation says of one action in these bounds, in two pieces."""
    halves = np.split(np.asarray(actions, np.float32)[:, None], 2)
    pieces = []
    for seed, half in enumerate(halves):
        shard = random_shard([N // 2], seed, 3, 1)
        pieces.append(Piece(dataclasses.replace(shard, actions=half), "made"))
    environment = describe_environment(3, 1, action_low=[low], action_high=[high])
    report = validate(Source("made", "log", environment, lambda: iter(pieces)), 1)
    return [str(finding) for finding in report.warnings if "action" in finding.place.column]


def test_crowded_actions_are_told_with_their_bin() -> None:
    doses = np.random.default_rng(0).uniform(0.01, 0.3, N)
    doses[::100] = 6.5
    (line,) = found(doses, 0, 7)
    assert line.startswith(
        "action[0]: 99% of the actions lie in [0, 0.35], one twentieth of the bounds [0, 7]; give"
    )


@pytest.mark.parametrize("choices", [[0, 1, 2], [-1, 4]])
def test_whole_numbers_may_be_choices(choices: list[int]) -> None:
    drawn = np.random.default_rng(0).choice(choices, N)
    told = ", ".join(map(str, choices))
    assert any(f"whole numbers alone: {told};" in line for line in found(drawn, -2, 5))


def test_nothing_is_said_of_sound_actions() -> None:
    rng = np.random.default_rng(0)
    assert found(rng.uniform(-1, 1, N), -1, 1) == []
    assert found(np.clip(rng.normal(0, 0.5, N), -1, 1), -1, 1) == []
    assert found(rng.integers(0, 20, N), -1, 20) == []  # too many to be choices
    mixed = rng.integers(0, 3, N).astype(float)
    mixed[-1] = 0.5
    assert found(mixed, -2, 5) == []
