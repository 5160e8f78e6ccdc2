"""All trackers, several of them at once, and wrong use."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, RunConfig
from cqlray.errors import UserError
from cqlray.results.trackers.send import send_to
from cqlray.results.trackers.series import EVERYONE
from tests.unit.results.run_directories import estimate, make_run, student, write_lines
from tests.unit.results.trackers.tracked import (
    PROGRAM,
    TESTS,
    digest,
    expected,
    read_group,
    read_mlflow,
)


def test_estimates_of_fitted_q_are_a_curve_beside_the_tests(
    run: Path, wandb_files: Path, mlflow_store: str
) -> None:
    """Also those that are made after trackers had the run."""
    send_to(run, ["wandb", "mlflow"])
    assert not [
        key for points in read_mlflow(mlflow_store)[1].values() for key, _ in points if "fqe" in key
    ]
    judged = [
        estimate(0, 200, -2.0),
        estimate(0, 100, 9.0),
        estimate(0, 100, -1.0),
        estimate(1, 100, -3.0),
    ]
    # the second of (0, 100) counts
    write_lines(run / "fqe.jsonl", [*judged, estimate(1, 200, None)])
    send_to(run, ["wandb", "mlflow"])
    group, (runs, points) = read_group(wandb_files), read_mlflow(mlflow_store)
    del group[EVERYONE], points["run"]
    assert {name: logged.points for name, logged in group.items()} == points == expected(run)
    assert (
        points["member-0"]["eval/fqe_return", 100] == -1.0
        and ("eval/fqe_return", 200) not in points["member-1"]
    )
    assert group["member-0"].summary["last/fqe_return"] == -2.0
    assert runs["member-0"].data.tags["cqlray.last/fqe_return"] == "-2.0"
    assert "last/fqe_return" not in group["member-1"].summary, (
        "that of its newest snapshot is no number"
    )


def test_estimates_are_a_curve_in_tensorboard_too(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_lines(run / "fqe.jsonl", [estimate(1, 200, -3.0)])
    send_to(run, ["tensorboard"])
    tags = {}
    for name in ("member-0", "member-1"):
        events = EventAccumulator(str(run / "tensorboard" / name))
        events.Reload()
        tags[name] = (
            [(e.step, e.value) for e in events.Scalars("eval/fqe_return")]
            if name == "member-1"
            else events.Tags()
        )
    assert (
        tags["member-1"] == [(200, -3.0)] and "eval/fqe_return" not in tags["member-0"]["scalars"]
    )


def test_numbers_that_are_not_finite_are_no_obstacle(
    tmp_path: Path, wandb_files: Path, mlflow_store: str
) -> None:
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT))
    directory = make_run(
        tmp_path / "run", [{}], seeds=1, evaluations=[student(0, 100, [None, 1.0])], config=config
    )
    assert "experiment logged-data," in send_to(directory, ["wandb", "mlflow"])["mlflow"]
    assert math.isnan(read_group(wandb_files)["member-0"].points["eval/return_mean", 100])


def test_run_that_has_just_begun_grows(
    tmp_path: Path, wandb_files: Path, mlflow_store: str
) -> None:
    whole = make_run(tmp_path / "whole", evaluations=TESTS)
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("config.yaml", "manifest.json"):
        shutil.copy(whole / name, directory)
    send_to(directory, ["wandb", "mlflow"])
    assert list(read_mlflow(mlflow_store)[0]) == ["run"]
    assert list(read_group(wandb_files)) == [EVERYONE]
    shutil.copytree(whole, directory, dirs_exist_ok=True)
    send_to(directory, ["wandb", "mlflow"])
    runs, points = read_mlflow(mlflow_store)
    assert runs["run"].data.params["dataset_digest"] == "abc123"
    del points["run"]
    assert points == expected(directory)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_package_that_is_missing_is_one_line(run: Path, name: str) -> None:
    before = digest(run)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), name, name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{name}: ")
    assert done.stdout.endswith(f"not installed; pip install 'cqlray[{name}]'\n")
    assert len(done.stdout.splitlines()) == 1
    assert digest(run) == before


def test_tensorboard_is_one_of_them(run: Path) -> None:
    pytest.importorskip("tensorboard")
    assert send_to(run, ["tensorboard"]) == {
        "tensorboard": f"tensorboard --logdir {run / 'tensorboard'}"
    }
    assert sorted(path.name for path in (run / "tensorboard").iterdir()) == [
        "member-0",
        "member-1",
        "teacher",
    ]


def test_wrong_use_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no tracker 'comet'; the trackers are tensorboard, wandb, mlflow"
    ):
        send_to(run, ["comet"])
    with pytest.raises(UserError, match="is not a run directory"):
        send_to(tmp_path / "nowhere", ["tensorboard"])
