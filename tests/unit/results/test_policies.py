"""A loaded policy fills missing values as its data was filled, and never answers for others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cqlray.algorithms.policy import Policy
from cqlray.data.missing import ObservationFill
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.results.policies import LoadedPolicy, _action_scaling, _fill, load_policy
from cqlray.storage.run_directory import RunDirectory

MISSING = {"rules": ["glucose=forward:1", "meal=indicator:0.5"], "observation": ["glucose", "meal"]}
NAN = float("nan")


def loaded(observation_dim: int, fill: ObservationFill | None) -> LoadedPolicy:
    generator = np.random.default_rng(0)
    arrays = {
        "log_std_min": np.full(1, -5, np.float32),
        "observation_mean": np.zeros((1, observation_dim), np.float32),
        "observation_std": np.ones((1, observation_dim), np.float32),
        "policy.0.weight": generator.normal(size=(1, observation_dim, 4)).astype(np.float32),
        "policy.0.bias": np.zeros((1, 4), np.float32),
        "policy.1.weight": generator.normal(size=(1, 4, 2)).astype(np.float32),
        "policy.1.bias": np.zeros((1, 2), np.float32),
    }
    scaling = ActionScaling(-np.ones(1, np.float32), np.ones(1, np.float32))
    return LoadedPolicy(Policy(arrays), scaling, 0, 0, fill=fill)


def test_gaps_are_filled_step_after_step_as_in_the_data() -> None:
    raw, plain = loaded(3, ObservationFill(MISSING)), loaded(3, None)
    np.testing.assert_array_equal(raw([7, 1]), plain([7, 1, 0]))
    np.testing.assert_array_equal(raw([NAN, NAN]), plain([7, 0.5, 1]))
    with pytest.raises(ValueError, match=r"missing or not finite, in dimensions \[0\]"):
        raw([NAN, 1])  # held for one step at most
    raw.reset()
    with pytest.raises(ValueError, match="missing"):
        raw([NAN, 1])  # the value before is of another episode
    filled = np.array([[7, 0.5, 1], [1, 2, 0]], np.float32)
    np.testing.assert_array_equal(raw(filled), plain(filled))


@pytest.mark.parametrize("value", [NAN, np.inf])
def test_no_action_is_given_for_a_value_that_is_not_there(value: float) -> None:
    with pytest.raises(ValueError, match=r"dimensions \[1\]"):
        loaded(2, None)([[0, 1], [0, value]])


def test_the_rules_are_those_of_the_runs_data(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    directory = RunDirectory.open(tmp_path)
    assert _fill(directory) is None
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").write_text("{}")
    assert _fill(directory) is None
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps({"missing": MISSING}))
    fill = _fill(directory)
    assert fill is not None and fill.names == MISSING["observation"]


def test_a_snapshot_that_is_a_link_to_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": {"populations": [[0]]}}))
    snapshot = tmp_path / "snapshots" / "population-0" / "000000200.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to("nothing")
    with pytest.raises(UserError, match=r"000000200.safetensors: a link to a file that is not"):
        load_policy(tmp_path, member=0)


def test_bounds_of_different_lengths_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    environment = {"action_low": [-1.0, -1.0], "action_high": [1.0, 1.0, 1.0]}
    with pytest.raises(UserError, match="bounds of the actions differ in length"):
        _action_scaling(RunDirectory.open(tmp_path), {"environment": environment})
