"""A run's policy beside its log: from a snapshot and shards as a run leaves them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open

from cqlray.api.session import result
from cqlray.results.export import export
from cqlray.results.policies import load_policy
from cqlray.results.policy_actions import as_json, beside_the_log
from cqlray.results.record import load_run
from cqlray.results.report.actions_section import actions_section
from cqlray.results.report.table import results_table
from cqlray.storage.run_directory import RunDirectory, snapshot_name
from tests.unit.data.test_dataset import write_dataset
from tests.unit.results.run_directories import make_run
from tests.unit.workers.test_fitted_q import shard, snapshot

BOUNDS = {"action_low": [-2.0], "action_high": [2.0], "observation_dim": 2, "action_dim": 1}


def run_with_policies(directory: Path, *actions: float) -> Path:
    """Members that do the same everywhere, `actions` in [-1, 1], and a log of uniform actions that
    earn half of themselves.
    """
    count = len(actions)
    plan = {"populations": [list(range(count))]}
    run = make_run(directory, seeds=count, plan=plan, environment={"id": "logged", **BOUNDS})
    write_dataset(run / "dataset", [shard(seed) for seed in range(6)])
    description = json.loads((run / "dataset" / "dataset.json").read_text())
    columns = {"observation": ["CGM mg/dL", "carbs"], "action": "insulin"}
    written = json.dumps({**description, "columns": columns})
    (run / "dataset" / "dataset.json").write_text(written)
    path = run / snapshot_name(0, 7)
    path.parent.mkdir(parents=True)
    path.write_bytes(snapshot(*actions))
    return run


def test_each_logged_state_is_beside_its_own_action(tmp_path: Path) -> None:
    """The policy does 0.5 * 2 = 1 everywhere; the logged action is twice the reward of its step."""
    run = load_run(run_with_policies(tmp_path / "run", 0.5))
    found = beside_the_log(run)
    assert found is not None and found.comparison.states == 320  # 4 of 6 shards of 80 steps
    logged = np.concatenate([shard(seed).actions for seed in (0, 1, 3, 5)])
    (one,) = found.comparison.dimensions
    assert one.policy_mean == pytest.approx(1.0, abs=1e-5)
    assert one.logged_mean == pytest.approx(float(logged.mean()), abs=1e-5)
    of_state = {
        tuple(observation): action
        for seed in (0, 1, 3, 5)
        for episode in shard(seed).episodes()
        for observation, action in zip(
            episode.observations[:-1].tolist(), episode.actions[:, 0].tolist(), strict=True
        )
    }
    for state in found.comparison.furthest:
        assert of_state[tuple(state.observation.tolist())] == state.logged[0]


def test_names_and_warnings_are_in_report_terminal_and_json(tmp_path: Path) -> None:
    directory = run_with_policies(tmp_path / "run", 0.999999)
    run = load_run(directory)
    said = as_json(run)
    assert said is not None and said["member"] == 0 and said["updates"] == 7
    assert list(said["furthest"][0]["observation"]) == ["CGM mg/dL", "carbs"]
    assert said["dimensions"][0]["name"] == "insulin"
    assert said["warnings"][0].startswith("insulin: 100% of its actions lie on a bound")
    section = actions_section(run)
    for words in ("CGM mg/dL", "insulin, policy", "100% of its actions lie on a bound", "img"):
        assert words in section
    out = io.StringIO()
    summary = result(RunDirectory.open(directory), run)
    Console(file=out, width=300).print(results_table(summary, run))
    assert "insulin: 100% of its actions" in " ".join(out.getvalue().split())
    json.dumps(summary["actions"])


def test_nothing_is_said_without_a_policy_or_data(tmp_path: Path) -> None:
    bare = load_run(make_run(tmp_path / "bare"))
    assert beside_the_log(bare) is None and actions_section(bare) == "" and as_json(bare) is None
    gone = run_with_policies(tmp_path / "gone", 0.5)
    for path in (gone / "dataset").glob("*.parquet"):
        path.unlink()
    assert beside_the_log(load_run(gone)) is None


def test_a_loaded_policy_names_its_numbers(tmp_path: Path) -> None:
    """By the log's columns, else by the keys that the run noted, else by their places; an export
    has the same names.
    """
    run = run_with_policies(tmp_path / "run", 0.5)

    def names() -> list[list[str]]:
        policy = load_policy(run, 0)
        exported = export(run, 0, "safetensors", tmp_path / "exported")
        said = json.loads(safe_open(exported.path, "np").metadata()["cqlray"])
        found = [policy.observation_names, policy.action_names]
        assert [said["observation_names"], said["action_names"]] == found
        return found

    assert names() == [["CGM mg/dL", "carbs"], ["insulin"]]
    card = (tmp_path / "exported.md").read_text()
    assert "Its numbers, in order: `CGM mg/dL`, `carbs`." in card and "order: `insulin`." in card
    manifest = json.loads((run / "manifest.json").read_text())
    noted = json.dumps({**manifest, "observation_names": ["goal.x", "goal.y"]})
    file = run / "dataset" / "dataset.json"
    for columns in ({}, {"observation": [3]}):  # none, and damaged
        file.write_text(json.dumps({**json.loads(file.read_text()), "columns": columns}))
        (run / "manifest.json").write_text(noted)
        assert names() == [["goal.x", "goal.y"], ["action[0]"]]
        (run / "manifest.json").write_text(json.dumps(manifest))
        assert names() == [["observation[0]", "observation[1]"], ["action[0]"]]


@pytest.mark.parametrize(
    "observation",
    [{"speed": np.zeros(1), "gear": 1}, (np.zeros(3), 1)],
    ids=["dictionary", "tuple"],
)
def test_a_policy_says_how_to_flatten_what_an_environment_gives(
    tmp_path: Path, observation: Any
) -> None:
    policy = load_policy(run_with_policies(tmp_path / "run", 0.5), 0)
    with pytest.raises(ValueError, match=rf"a {type(observation).__name__} .*spaces\.flatten\("):
        policy(observation)
    assert policy([0.0, 0.0]).shape == (1,), "plain numbers are an array of numbers"
