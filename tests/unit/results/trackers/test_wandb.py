"""Runs in Weights & Biases, offline and on a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cqlray.config.schema import RunConfig
from cqlray.results.record import load_run
from cqlray.results.statistics.summary import summarize
from cqlray.results.trackers.send import send_to
from cqlray.results.trackers.series import EVERYONE
from tests.unit.results.run_directories import make_run, write_lines
from tests.unit.results.trackers.tracked import (
    KEY,
    PROGRAM,
    TESTS,
    Points,
    digest,
    expected,
    finish,
    read_group,
    unfinished,
)
from tests.unit.results.trackers.wandb_server import Runs, wandb_server


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


def test_wandb_without_an_answer_is_one_line(
    run: Path, wandb_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
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
