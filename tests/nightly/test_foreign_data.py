"""Training on other people's data, on a real Ray cluster: tested, killed, larger than memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from cqlray import load_dataset
from cqlray.api import runs as api
from cqlray.config.load import dump_yaml
from cqlray.config.schema import (
    NO_ENVIRONMENT,
    ColumnsConfig,
    EnvConfig,
    EvaluationConfig,
    ResourcesConfig,
    RunConfig,
)
from cqlray.data import formats
from cqlray.errors import UserError
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory, read_json
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, outcome
from tests.unit.api.test_datasets import COLUMNS, frame
from tests.unit.data.formats.test_foreign import (
    collected,
    minari_root,  # noqa: F401 (a fixture)
    replay_buffer_file,
)

pytestmark = [pytest.mark.ray, pytest.mark.sample]
LOG = ColumnsConfig(
    ("sensor_*",),
    ("torque",),
    "r",
    "trip",
    terminated="crashed",
    action_low=(-1.0,),
    action_high=(1.0,),
)


def trained(out: Path, data: str, **changes: object) -> dict[str, object]:
    """What a run on the data ends with, but for the members of run directories that tests do not
    compare.
    """
    config = small_config(out, dataset=data, **changes)
    return outcome(api.run(config, quiet=True).run_dir)


def students(result: dict[str, object]) -> dict[object, object]:
    rows: dict[tuple[str, object, object], object] = result["evaluations"]  # type: ignore[assignment]
    return {key: row for key, row in rows.items() if key[0] == "student"}


def updates(run: Path) -> int:
    count: int = checkpoint.decode((run / "checkpoints" / "population-0.safetensors").read_bytes())[
        1
    ]["updates"]
    return count


def plant(out: Path, data: str, **changes: object) -> RunConfig:
    """A small run on the log of a plant that nobody can simulate."""
    # that is tested in test_judges.py
    evaluation = EvaluationConfig(interval=110, episodes=12, fitted_q=False)
    return small_config(
        out,
        **{
            "dataset": data,
            "columns": LOG,
            "env": EnvConfig(NO_ENVIRONMENT),
            "evaluation": evaluation,
        }
        | changes,
    )


@pytest.fixture(scope="module")
def ours(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What training on the native shards of the undisturbed run ends with."""
    return trained(tmp_path_factory.mktemp("ours") / "run", str(finished_run))


def test_a_log_and_native_shards_train_the_same_students(
    finished_run: Path, ours: dict[str, Any], tmp_path: Path
) -> None:
    """Tiers and seeds are the log's only losses, and students see neither. Minari's loses nothing:
    unit/data/formats/test_round_trips.py.
    """
    formats.write_log(load_dataset(finished_run).shards(), tmp_path / "log.parquet")
    assert students(ours) == students(outcome(finished_run))
    theirs = trained(tmp_path / "run", str(tmp_path / "log.parquet"))
    assert theirs["files"] == ours["files"]
    assert theirs["evaluations"] == students(ours)


def test_data_larger_than_memory_gives_the_same_bits(
    finished_run: Path, ours: dict[str, Any], tmp_path: Path
) -> None:
    on_disk = trained(
        tmp_path / "b",
        str(finished_run),
        resources=ResourcesConfig(evaluators=1, learners=2, data="disk"),
    )
    assert on_disk["files"] == ours["files"]
    assert not list((tmp_path / "b").glob("cqlray-*")), "the file is given back"


def test_a_log_without_an_environment_is_trained_not_tested_and_once_converted_needed_no_more(
    ray_cluster: str, tmp_path: Path
) -> None:
    frame().to_csv(tmp_path / "trips.csv", index=False)
    run = api.run(plant(tmp_path / "run", str(tmp_path / "trips.csv")), quiet=True)
    assert run.iqm is None and (run.run_dir / "report.html").is_file()
    assert RunDirectory(run.run_dir).rows("evaluations.jsonl") == []
    assert read_json(run.run_dir / "dataset" / "dataset.json")["provenance"][0]["format"] == "csv"
    assert updates(run.run_dir) == 330
    (run.run_dir / "checkpoints" / "population-0.safetensors").unlink()
    (tmp_path / "trips.csv").unlink()
    api.resume(run.run_dir, quiet=True)
    assert updates(run.run_dir) == 330


SIGNS = [
    "config.yaml",
    "dataset/shard-00000.parquet",
    "dataset/dataset.json",
    "checkpoints/population-0.safetensors",
]


def test_a_run_on_a_log_killed_while_converting_ends_with_the_same_bits(
    ray_cluster: str, tmp_path: Path
) -> None:
    """At each of the signs: nightly/test_same_bits.py."""
    assert_same_when_killed_at(SIGNS[1:2], ray_cluster, tmp_path)


def assert_same_when_killed_at(signs: list[str], ray_cluster: str, tmp_path: Path) -> None:
    """A run on a log ends as one that nobody disturbed, killed at the instant that a file
    appears and resumed.
    """
    log = frame(episodes=60)
    log.to_parquet(tmp_path / "trips.parquet")
    whole = outcome(
        api.run(plant(tmp_path / "whole", str(tmp_path / "trips.parquet")), quiet=True).run_dir
    )
    for sign in signs:
        out = tmp_path / sign.replace("/", "-")
        (tmp_path / "c.yaml").write_text(dump_yaml(plant(out, str(tmp_path / "trips.parquet"))))
        command = [
            sys.executable,
            "-m",
            "cqlray",
            "train",
            "--config",
            str(tmp_path / "c.yaml"),
            "--quiet",
        ]
        environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as run:
            while not (out / sign).exists():
                assert run.poll() is None, run.stderr.read().decode() if run.stderr else ""
                time.sleep(0.001)
            run.kill()
        api.resume(out, quiet=True)
        assert outcome(out) == whole, sign


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda log: log.assign(torque=log["torque"] * 9), "actions outside"),
        (lambda log: log.assign(r=1.0), "every reward is 1"),
        (lambda log: log.head(18), "16 transitions; a batch has 32"),
        (lambda log: log.assign(sensor_1=np.inf), "the value is inf"),
    ],
)
def test_errors_in_the_data_stop_it_before_anything_is_written(
    ray_cluster: str, tmp_path: Path, break_it: object, said: str
) -> None:
    break_it(frame().assign(crashed=False)).to_parquet(tmp_path / "trips.parquet")  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        api.run(plant(tmp_path / "run", str(tmp_path / "trips.parquet")), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_changed_is_not_gone_on_with(finished_run: Path, tmp_path: Path) -> None:
    data = load_dataset(frame(), COLUMNS | {"action_low": -1, "action_high": 1})
    data.save(tmp_path / "data")
    config = plant(tmp_path / "run", str(tmp_path / "data"))
    run = api.run(config, quiet=True).run_dir
    (run / "checkpoints" / "population-0.safetensors").unlink()
    load_dataset(frame(seed=1), COLUMNS | {"action_low": -1, "action_high": 1}).save(
        tmp_path / "data", append=True
    )
    with pytest.raises(UserError, match="has changed since the run began"):
        api.resume(run, quiet=True)
    assert (
        json.loads((run / "manifest.json").read_text())["dataset_digest"]
        == data.description["digest"]
    )
    assert dataclasses.asdict(config)["columns"]["action_low"] == (-1.0,)


def test_what_minari_and_stable_baselines3_recorded_trains(
    ray_cluster: str,
    minari_root: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    made, _ = collected(gymnasium.make("Pendulum-v1", max_episode_steps=30), "hdf5", 12)
    replay_buffer_file(tmp_path / "buffer.h5")
    for number, data in enumerate((f"minari:{made.spec.dataset_id}", str(tmp_path / "buffer.h5"))):
        config = small_config(
            tmp_path / f"run-{number}", dataset=data, env=EnvConfig("Pendulum-v1")
        )
        run = api.run(config, quiet=True)
        assert run.iqm is not None and np.isfinite(run.iqm)
        assert updates(run.run_dir) == 330
        described = read_json(run.run_dir / "dataset" / "dataset.json")
        assert described["environment"]["id"] == "Pendulum-v1" and described["environment"][
            "action_high"
        ] == [2.0]
