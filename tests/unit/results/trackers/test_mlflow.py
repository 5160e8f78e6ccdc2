"""Runs in MLflow, in local files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cqlray.config.schema import RunConfig
from cqlray.errors import UserError
from cqlray.results.trackers.send import send_to
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import make_run
from tests.unit.results.trackers.tracked import (
    PROGRAM,
    digest,
    expected,
    finish,
    read_mlflow,
    unfinished,
)


def test_mlflow_has_the_rows_of_the_run_directory_however_often(
    run: Path, mlflow_store: str
) -> None:
    before = digest(run)
    for _ in range(2):
        (line,) = send_to(run, ["mlflow"]).values()
    assert line == f"experiment Pendulum-v1, run run at {mlflow_store}"
    assert digest(run) == before
    runs, points = read_mlflow(mlflow_store)
    everyone = points.pop("run")
    assert points == expected(run)
    parent, member = runs["run"], runs["member-1"]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.values()} == {
        None,
        parent.info.run_id,
    }
    assert member.data.params["seed"] == "1"
    assert member.data.params["cql.discount"] == str(RunConfig().cql.discount)
    assert parent.data.tags["cqlray.last/iqm"] == str(everyone["eval/iqm", 200])
    assert parent.data.tags["cqlray.reference/random"] == "-1100.0"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.info.end_time - parent.info.start_time == 3_712_000


def test_mlflow_gets_what_came_since(tmp_path: Path, mlflow_store: str) -> None:
    directory = unfinished(tmp_path / "run")
    with RunDirectory.open(directory).locked():
        send_to(directory, ["mlflow"])
    assert read_mlflow(mlflow_store)[0]["run"].info.status == "RUNNING"
    send_to(directory, ["mlflow"])
    runs, points = read_mlflow(mlflow_store)
    assert points["member-0"] == expected(directory)["member-0"]
    assert runs["run"].info.status == "KILLED"
    finish(directory)
    send_to(directory, ["mlflow"])
    runs, points = read_mlflow(mlflow_store)
    del points["run"]
    assert points == expected(directory)
    assert runs["run"].info.status == "FINISHED"


def test_mlflow_tells_members_of_two_runs_apart(tmp_path: Path, mlflow_store: str) -> None:
    for name, identity in (("first", "1"), ("second", "2")):
        send_to(make_run(tmp_path / name, [{"algorithm": "bc"}], seeds=1, id=identity), ["mlflow"])
    from mlflow import MlflowClient

    (experiment,) = (e for e in MlflowClient().search_experiments() if e.name == "Pendulum-v1")
    runs = MlflowClient().search_runs([experiment.experiment_id])
    parents = {
        run.info.run_id: run.info.run_name
        for run in runs
        if "mlflow.parentRunId" not in run.data.tags
    }
    assert sorted(parents.values()) == ["first", "second"]
    bc, _ = (run for run in runs if run.info.run_name == "member-0")
    assert (bc.data.params["algorithm"], bc.data.params["cql.conservative_weight"]) == (
        "bc",
        "None",
    )


def test_mlflow_store_that_cannot_be_used_is_one_line(
    run: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(UserError, match=r"^mlflow: .*MLFLOW_ALLOW_FILE_STORE=true"):
        send_to(run, ["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter22@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"^mlflow: .*127.0.0.1") as raised:
        send_to(run, ["mlflow"])
    assert "\n" not in str(raised.value)
    assert "hunter22" not in str(raised.value)


def test_mlflow_database_without_its_package_is_one_line(
    run: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.parent}/mlflow.db")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), "mlflow", "sqlalchemy"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "mlflow: a database store needs sqlalchemy; pip install mlflow\n"
