"""SIGTERM to all that a run consists of, in every stage: `timeout` sends it to the process group,
systemd and Slurm to every process; and the head node may die first.

However it comes, the run ends in order and soon: exit status 130, and a last line that says how to
resume; or status 1 and that line, if it saw its node die first. Instants are random, from a seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cqlray.config.load import dump_yaml, load_config
from cqlray.config.schema import EnvConfig, RunConfig
from cqlray.storage.run_directory import snapshot_name
from tests.conftest import small_config
from tests.nightly.distributed.nodes import ROOT, cluster
from tests.processes import descendants, kill, running, wait_until

SECONDS = 15.0
SEED = int(os.environ.get("CQLRAY_SEED", "0"))
TRIALS = 2
STAGES = ("teacher", "collection", "students", "evaluation", "report")
# Whose cluster it is, and what happens to it: a signal to the run's process group, or to all of its
# processes, or to the group after the head node's daemons were killed.
KINDS = ("own: group", "own: all", "own: head", "joined: group", "joined: head")
LONG = 1_000_000

pytestmark = pytest.mark.timeout(240)


class Driver:
    """A cqlray command in a session of its own, on a cluster of its own or on a joined one."""

    def __init__(self, words: list[str], environment: dict[str, str], said: Path) -> None:
        self.file = said
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cqlray", *words],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.file.read_text(errors="replace")

    def wait_for(self, sign: Callable[[], Any], what: str) -> None:
        def there() -> Any:
            assert self.process.poll() is None, self.said()
            return sign()

        wait_until(there, what)

    def end(self) -> float:
        """Seconds until it has ended."""
        began = time.monotonic()
        try:
            self.process.wait(2 * SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end; it said: {self.said()}") from None
        return time.monotonic() - began

    def last_line(self) -> str:
        return self.said().rstrip().splitlines()[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with every stage in it."""
    out = tmp_path_factory.mktemp("base") / "run"
    config = small_config(out, env=EnvConfig("Pendulum-v1"))
    config = replace(config, teacher=replace(config.teacher, rounds=4, episodes_per_round=1))
    out.with_suffix(".yaml").write_text(dump_yaml(config))
    driver = Driver(
        ["run", "--config", str(out.with_suffix(".yaml"))], own_environment(), out.parent / "said"
    )
    assert driver.process.wait(200) == 0, driver.said()
    return out


def own_environment() -> dict[str, str]:
    """For a run that starts a cluster: it must not find one of `ray start`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}


# What a run lacks that is about to begin a stage.
MISSING = {
    "teacher": ("teacher", "dataset", "checkpoints", "snapshots"),
    "collection": ("dataset", "checkpoints", "snapshots"),
    "students": ("checkpoints", "snapshots"),
    "evaluation": ("checkpoints", "snapshots"),
    "report": ("report.html",),
}


def prepared(finished: Path, stage: str, out: Path) -> Callable[[], Any]:
    """Make a run at `out` that is about to begin a stage, which then takes long; returns the sign
    that it has begun.
    """
    shutil.copytree(finished, out)
    for name in MISSING[stage]:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        kept = [row for row in rows if stage == "report" or row.get("member") is None]
        kept = [] if stage == "teacher" else kept
        (out / name).write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    (out / "events.jsonl").write_text("")
    manifest = json.loads((out / "manifest.json").read_text()) | {"finished": False}
    if stage in ("teacher", "collection"):
        manifest.pop("dataset_digest", None)
    (out / "manifest.json").write_text(json.dumps(manifest))
    config = long_in(stage, load_config(out / "config.yaml"))
    (out / "config.yaml").write_text(dump_yaml(replace(config, out=str(out))))
    return sign_of(stage, out)


def long_in(stage: str, config: RunConfig) -> RunConfig:
    """The config of a run whose stage takes long."""
    if stage == "teacher":
        return replace(config, teacher=replace(config.teacher, rounds=LONG))
    if stage == "collection":
        collection = replace(config.collection, tiers=("random",), episodes=(LONG,))
        return replace(config, collection=collection)
    if stage == "students":
        evaluation = replace(config.evaluation, interval=LONG)
        return replace(config, cql=replace(config.cql, num_updates=LONG), evaluation=evaluation)
    if stage == "evaluation":
        return replace(config, evaluation=replace(config.evaluation, episodes=20_000))
    return config


def sign_of(stage: str, out: Path) -> Callable[[], Any]:
    """What shows that a stage is under way."""
    if stage == "report":
        return lambda: json.loads((out / "manifest.json").read_text())["finished"]
    if stage == "evaluation":
        return (out / snapshot_name(0, 330)).exists
    began = f'"stage": "{stage}", "what": "began"'
    return lambda: began in (out / "events.jsonl").read_text()


@pytest.fixture(scope="module")
def joined() -> Iterator[dict[str, str]]:
    """The environment of a driver that joins a cluster."""
    with cluster(4, ()) as nodes:
        yield nodes.environment


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_to_all_of_a_run(
    kind: str, stage: str, trial: int, finished: Path, tmp_path: Path, request: Any
) -> None:
    rng = random.Random(f"{SEED}/{kind}/{stage}/{trial}")
    out, (owner, what) = tmp_path / "run", kind.split(": ")
    begun = prepared(finished, stage, out)
    with ExitStack() as stack:
        environment, server = own_environment(), None
        if kind == "joined: group":
            environment = request.getfixturevalue("joined")
        elif owner == "joined":
            nodes = stack.enter_context(cluster(4, ()))
            environment, server = nodes.environment, nodes.server.pid
        driver = Driver(["resume", str(out)], environment, tmp_path / "said")
        stack.callback(stop_all, driver)
        driver.wait_for(begun, f"{stage} has begun")
        delay = rng.uniform(0.0, 1.0 if stage == "report" else 8.0)
        time.sleep(delay)
        below = descendants(driver.process.pid)
        if what == "head":
            kill_head(server or driver.process.pid)
            time.sleep(rng.uniform(0.0, 1.0))
        os.killpg(driver.process.pid, signal.SIGTERM)
        for process in below if what == "all" else ():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        seconds = driver.end()
        status = driver.process.returncode
        print(f"{kind}, {delay:.2f} s after {stage} began: {seconds:.2f} s, status {status}")
        line = driver.last_line()
        if what == "head" and status == 1:  # it ended by itself before the signal came
            assert "is gone" in line and line.endswith(f"; go on with: cqlray resume {out}")
        elif stage == "report" and status == 0:  # it was over
            assert (out / "report.html").exists()
        else:
            assert status == 130, driver.said()
            assert line == f"cqlray: stopped; go on with: cqlray resume {out}"
        assert seconds < SECONDS, driver.said()
        if what != "head":  # its agents try to reach the control store for another minute
            wait_until(lambda: not still_there(below), "nothing of it is left", 60)


@contextmanager
def among_students(finished: Path, tmp_path: Path) -> Iterator[tuple[Driver, Path]]:
    """A driver with a cluster of its own that trains students, and its run directory."""
    out = tmp_path / "run"
    begun = prepared(finished, "students", out)
    driver = Driver(["resume", str(out)], own_environment(), tmp_path / "said")
    with ExitStack() as stack:
        stack.callback(stop_all, driver)
        driver.wait_for(begun, "students have begun")
        yield driver, out


def test_the_head_node_dies_alone(finished: Path, tmp_path: Path) -> None:
    """Ray would end the process without a line, or with one after a minute."""
    with among_students(finished, tmp_path) as (driver, out):
        kill_head(driver.process.pid)
        assert driver.end() < SECONDS, driver.said()
        assert driver.process.returncode == 1, driver.said()
        assert driver.last_line().endswith(f"; go on with: cqlray resume {out}")


def test_daemons_end_with_a_driver_that_is_killed(finished: Path, tmp_path: Path) -> None:
    with among_students(finished, tmp_path) as (driver, _):
        below = descendants(driver.process.pid)
        driver.process.kill()
        wait_until(lambda: not still_there(below), "nothing of it is left", 90)


def kill_head(parent: int) -> None:
    """As a machine that fails: the control store and the raylet by SIGKILL."""
    below = set(descendants(parent))
    for name in ("gcs_server", "raylet"):
        for process in below:
            with suppress(OSError):
                if (Path(f"/proc/{process}/comm")).read_text().strip() == name:
                    kill(process)


def still_there(processes: list[int]) -> set[int]:
    """Those that run on; those that are dead and not yet reaped have no command line."""
    return set(processes) & set(running("")) - defunct(processes)


def defunct(processes: list[int]) -> set[int]:
    found = set()
    for process in processes:
        with suppress(OSError):
            if not Path(f"/proc/{process}/cmdline").read_bytes():
                found.add(process)
    return found


def stop_all(driver: Driver) -> None:
    for process in [driver.process.pid, *descendants(driver.process.pid)]:
        kill(process)
    driver.process.wait()
