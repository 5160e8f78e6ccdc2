"""Runs as Weights & Biases (offline) and MLflow (local files) have them, read back with each one's
own reader.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, EvaluationConfig, RunConfig
from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.statistics.summary import summarize
from cqlray.results.trackers.send import send_to
from cqlray.results.trackers.series import EVERYONE, tracked_run
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import estimate, make_run, reference, student, write_lines
from tests.unit.results.wandb_server import Runs, wandb_server

TESTS = [
    student(member, updates, [-100.0 * member - updates, -200.0])
    for member in (0, 1)
    for updates in (100, 200)
]
REFERENCES = [reference("teacher", [-150.0]), reference("random", [-1200.0, -1000.0])]
KEY = "0123456789" * 4  # of W&B, for nobody
Points = dict[tuple[str, int], float]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])


def expected(directory: Path) -> dict[str, Points]:
    """Of each member its points, from the files themselves."""
    points: dict[str, Points] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = "teacher" if row["stage"] == "teacher" else f"member-{row['member']}"
        for key in row.keys() - {"stage", "member", "round", "updates"}:
            if row[key] is not None:
                points.setdefault(name, {})[f"train/{key}", row["updates"]] = row[key]
    for line in (directory / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["policy"] == "student":
            own = points.setdefault(f"member-{row['member']}", {})
            own["eval/return_mean", row["updates"]] = sum(row["returns"]) / len(row["returns"])
            own["eval/value", row["updates"]] = row["value"]
            own["eval/observed_return", row["updates"]] = (
                row["discounted_return"] + row["tail_value"]
            )
    for row in RunDirectory(directory).rows("fqe.jsonl"):
        if row["fqe_return"] is not None:
            points[f"member-{row['member']}"]["eval/fqe_return", row["updates"]] = row["fqe_return"]
    for test in json.loads((directory / "teacher" / "teacher.json").read_text())["tests"]:
        points["teacher"]["eval/return_mean", test["updates"]] = test["mean_return"]
    return points


def digest(directory: Path) -> dict[str, str]:
    """Every file of a folder and the digest of what is in it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# -- Weights & Biases ------------------------------------------------------------------------------


@pytest.fixture
def wandb_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B writes, offline."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "w"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield tmp_path / "w" / "wandb"
    wandb.teardown()  # it reads the environment once


def log_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, protocol
    buffers inside.
    """
    from wandb.proto import wandb_internal_pb2

    record: Any = wandb_internal_pb2
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record.Record.FromString(parts)
            parts = b""


@dataclasses.dataclass
class Logged:
    """What a .wandb file holds."""

    about: Any
    points: Points
    steps: list[int]
    config: dict[str, Any]
    summary: dict[str, Any]


def read_wandb(path: Path) -> Logged:
    logged = Logged(None, {}, [], {}, {})
    for record in log_records(path):
        if record.HasField("run"):
            logged.about = record.run
            logged.config |= {
                item.key: json.loads(item.value_json) for item in record.run.config.update
            }
        for item in record.summary.update:
            logged.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if row:
            logged.steps.append(row["_step"])
            logged.points |= {
                (key, row["_step"]): value for key, value in row.items() if not key.startswith("_")
            }
    return logged


def read_group(folder: Path) -> dict[str, Logged]:
    """W&B's runs by what they show; there must be one of each."""
    import wandb

    wandb.teardown()  # W&B's own process has written all there is
    runs = [read_wandb(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]
    named = {logged.about.display_name.split()[-1]: logged for logged in runs}
    assert len(named) == len(runs)
    return named


def test_wandb_has_the_rows_of_the_run_directory(run: Path, wandb_files: Path) -> None:
    before = digest(run)
    (line,) = send_to(run, ["wandb"]).values()
    assert f"wandb sync {wandb_files}" in line
    assert digest(run) == before
    group = read_group(wandb_files)
    everyone = group.pop(EVERYONE)
    assert {name: logged.points for name, logged in group.items()} == expected(run)
    assert {(logged.about.project, logged.about.run_group) for logged in group.values()} == {
        ("Pendulum-v1", everyone.about.run_group)
    }
    member = group["member-1"]
    assert member.config["seed"] == member.config["member"] == 1
    assert member.config["cql"]["conservative_weight"] == RunConfig().cql.conservative_weight
    assert sorted(member.about.tags) == ["cql", "cqlray", "member"]
    assert member.about.job_type == "member"
    assert member.summary["best/return_mean"] == (-200 - 200) / 2
    record = load_run(run)
    results = summarize(record, record.config["evaluation"]["bootstrap_samples"], 0)
    for key in ("iqm", "iqm_low", "iqm_high"):
        assert (
            everyone.summary[f"last/{key}"] == everyone.points[f"eval/{key}", 200] == results[key]
        )
    assert (everyone.summary["reference/teacher"], everyone.summary["reference/random"]) == (
        -150,
        -1100,
    )
    assert everyone.summary["state"] == "finished"


def test_wandb_again_replaces_what_was_written_offline(
    run: Path, wandb_files: Path, tmp_path: Path
) -> None:
    other = wandb_files / "offline-run-20200101_000000-another" / "run-another.wandb"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"not ours")
    send_to(run, ["wandb"])
    first = digest(wandb_files)
    moved = run.rename(tmp_path / "moved")
    send_to(moved, ["wandb"])
    assert other.read_bytes() == b"not ours"
    shutil.rmtree(other.parent)
    group = read_group(wandb_files)
    for name, points in expected(moved).items():
        assert group[name].points == points
        assert len(group[name].steps) == len(set(group[name].steps))
    ids = {logged.about.run_id for logged in group.values()}
    assert ids == {
        Path(name).stem.removeprefix("run-") for name in first if name.endswith(".wandb")
    } - {"another"}


def test_wandb_has_only_steps_that_will_not_change(tmp_path: Path, wandb_files: Path) -> None:
    late = [row for row in TESTS if (row["member"], row["updates"]) != (0, 200)]
    directory = make_run(tmp_path / "run", evaluations=late, finished=False, teacher=False)
    send_to(directory, ["wandb"])
    group = read_group(wandb_files)
    assert {name: logged.steps for name, logged in group.items()} == {
        EVERYONE: [100],
        "teacher": [],  # its tests come when it is done
        "member-0": [100],
        "member-1": [100],
    }
    assert group[EVERYONE].summary["state"] == "interrupted"
    write_lines(
        directory / "evaluations.jsonl", [*late, *(row for row in TESTS if row not in late)]
    )
    send_to(directory, ["wandb"])
    assert read_group(wandb_files)["member-0"].steps == [100, 200]


def unfinished(directory: Path) -> Path:
    """A run whose last test of member 0 is not there yet."""
    return make_run(
        directory, evaluations=[row for row in TESTS if row is not TESTS[1]], finished=False
    )


def finish(directory: Path) -> None:
    write_lines(directory / "evaluations.jsonl", TESTS)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"finished": True}))


def received(runs: Runs) -> dict[str, Points]:
    """What a server was sent of members and teacher; a step that stands there twice fails."""
    points: dict[str, Points] = {}
    for run in runs.values():
        rows = [json.loads(line) for line in run["history"]]
        assert len({row["_step"] for row in rows}) == len(rows)
        own = points.setdefault(run["displayName"].split()[-1], {})
        own |= {
            (key, row["_step"]): value
            for row in rows
            for key, value in row.items()
            if not key.startswith("_")
        }
    del points[EVERYONE]
    return points


def test_wandb_online_gets_each_step_once(
    tmp_path: Path, wandb_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = unfinished(tmp_path / "run")
    send_to(directory, ["wandb"])
    assert len(list(wandb_files.glob("offline-run-*"))) == 4
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb = pytest.importorskip("wandb")
        wandb.teardown()
        for _ in range(2):
            (line,) = send_to(directory, ["wandb"]).values()
        assert line.startswith(f"{address}/someone/Pendulum-v1/groups/run-")
        assert {step for _, step in received(runs)["member-0"]} == {100}
        finish(directory)
        for _ in range(2):
            send_to(directory, ["wandb"])
        assert received(runs) == expected(directory)
        assert {json.loads(run["summary"])["state"] for run in runs.values()} == {"finished"}
    assert not list(wandb_files.glob("offline-run-*"))  # synced later, they would stand there twice


def test_wandb_sync_gets_each_step_once(
    tmp_path: Path, wandb_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = unfinished(tmp_path / "run")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        for _ in range(2):
            for _ in range(2):
                send_to(directory, ["wandb"])
            folders = sorted(map(str, wandb_files.glob("offline-run-*")))
            subprocess.run(
                [sys.executable, "-m", "wandb", "sync", *folders], check=True, capture_output=True
            )
            finish(directory)
        assert received(runs) == expected(directory)


def test_wandb_disabled_is_said(
    run: Path, wandb_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert send_to(run, ["wandb"]) == {"wandb": "WANDB_MODE is disabled: nothing was sent"}


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
    write_lines(
        run / "fqe.jsonl", [*judged, estimate(1, 200, None)]
    )  # the second of (0, 100) counts
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


@pytest.mark.parametrize("episodes", [0, 2])
def test_a_step_is_settled_when_all_its_judges_have_spoken(tmp_path: Path, episodes: int) -> None:
    config = RunConfig(evaluation=EvaluationConfig(episodes=episodes, fitted_q=True))
    directory = make_run(tmp_path / "run", evaluations=TESTS, finished=False, config=config)

    def members() -> set[float]:
        return {
            series.settled
            for series in tracked_run(load_run(directory)).series
            if series.name.startswith("member")
        }

    assert members() == {100}
    write_lines(
        directory / "fqe.jsonl",
        [estimate(member, 100, 1.0) for member in (0, 1)] + [estimate(0, 200, None)],
    )
    assert members() == {200}
    write_lines(
        directory / "fqe.jsonl",
        [estimate(member, updates, 1.0) for member in (0, 1) for updates in (100, 200)],
    )
    assert members() == {math.inf}


def test_without_tests_every_step_is_settled(tmp_path: Path) -> None:
    config = RunConfig(evaluation=EvaluationConfig(episodes=0))
    tracked = tracked_run(load_run(make_run(tmp_path / "run", finished=False, config=config)))
    assert {series.name: series.settled for series in tracked.series}["member-0"] == math.inf


def test_numbers_that_are_not_finite_are_no_obstacle(
    tmp_path: Path, wandb_files: Path, mlflow_store: str
) -> None:
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT))
    directory = make_run(
        tmp_path / "run", [{}], seeds=1, evaluations=[student(0, 100, [None, 1.0])], config=config
    )
    assert "experiment logged-data," in send_to(directory, ["wandb", "mlflow"])["mlflow"]
    assert math.isnan(read_group(wandb_files)["member-0"].points["eval/return_mean", 100])


def test_wandb_without_an_answer_is_one_line(
    run: Path, wandb_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    before = digest(run)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), "wandb"],
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"wandb: {EVERYONE} was not sent: ")
    assert "127.0.0.1:9" in line
    assert digest(run) == before
    everything = (
        done.stdout
        + done.stderr
        + "".join(path.read_text("latin-1") for path in wandb_files.rglob("*.*"))
    )
    assert KEY not in everything


# -- MLflow ----------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a local file store."""
    pytest.importorskip("mlflow")
    address = f"file:{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return address


def read_mlflow(address: str) -> tuple[dict[str, Any], dict[str, Points]]:
    """Runs and points by name; a step that stands there twice fails."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("Pendulum-v1")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    points: dict[str, Points] = {}
    for name, run in runs.items():
        points[name] = {}
        for key in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, key):
                assert (key, metric.step) not in points[name]
                points[name][key, metric.step] = metric.value
    return runs, points


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


# -- all of them -----------------------------------------------------------------------------------

PROGRAM = """\
import sys
from pathlib import Path
from cqlray.errors import UserError
from cqlray.results.trackers.send import send_to
run, name, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
try:
    send_to(Path(run), [name])
except UserError as error:
    print(error)
"""


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
