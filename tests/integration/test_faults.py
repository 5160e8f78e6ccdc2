"""What a run meets on a bad day, on a real cluster: signals, full disks, storage that is not
shared, slow workers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cqlray import UserError, driver
from cqlray.api import runs as api
from cqlray.config.load import dump_yaml
from cqlray.config.schema import RunConfig
from cqlray.errors import Lost, StorageFailure
from cqlray.runtime import pool as pools
from cqlray.runtime.cluster import Cluster
from cqlray.runtime.event_loop import results
from cqlray.runtime.files import RelayedFiles
from cqlray.runtime.pool import Pool
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, assert_same

pytestmark = pytest.mark.ray


def begun(config: RunConfig, tmp_path: Path, cluster: str) -> subprocess.Popen[str]:
    """The run in a process of its own."""
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    name = "run" if config.dataset is None else "train"
    command = [sys.executable, "-m", "cqlray", name, "--config", str(tmp_path / "c.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def waited_for(sign: Path, run: subprocess.Popen[str]) -> None:
    """Until the file is there."""
    while not sign.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.005)


def test_the_time_line_says_what_happened(finished_run: Path) -> None:
    rows = RunDirectory(finished_run).rows("events.jsonl")
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    stages = [(row["stage"], row["what"]) for row in rows if row["event"] == "stage"]
    assert stages == [
        (stage, what)
        for stage in ("teacher", "collection", "students")
        for what in ("began", "ended")
    ]
    busy = [row for row in rows if row["event"] == "busy"]
    assert {row["role"] for row in busy} == {"rollout worker", "evaluator", "learner"}
    assert all(
        0 <= row["busy_seconds"] <= row["seconds"] * row["processes"] + 0.1 for row in busy
    ), busy
    assert any(row["busy_seconds"] > 0 for row in busy if row["role"] == "learner")


def test_storage_that_only_the_drivers_machine_has(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver writes for everybody then, and a resumed run reads for them: the same bits."""

    async def relayed(directory: Any, plan: Any, writer: Any, say: Any) -> RelayedFiles:
        return RelayedFiles(directory, writer)

    monkeypatch.setattr(driver, "choose_files", relayed)
    out = api.run(small_config(tmp_path / "run"), quiet=True).run_dir
    assert_same(finished_run, out)
    for left in ("checkpoints", "snapshots"):
        for path in (out / left).rglob("population-1*"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    (out / "dataset" / "dataset.json").unlink()
    (out / "dataset" / "shard-00002.parquet").unlink()
    api.resume(out, quiet=True)
    assert_same(finished_run, out)


def test_what_was_not_written_before_the_driver_died_is_made_up_for(
    finished_run: Path, tmp_path: Path
) -> None:
    """A learner's checkpoint can be there before the driver wrote the metrics and tests of the
    snapshot before it.
    """
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished_run), str(out)], check=True)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(line for line in lines if '"updates": 220' not in line))
    config = small_config(out)
    (out / "config.yaml").write_text(dump_yaml(config))
    api.resume(out, quiet=True)
    assert_same(finished_run, out)
    assert keyed(out) == keyed(finished_run)


def keyed(run: Path) -> dict[Any, Any]:
    """The students' metrics."""
    rows = [row for row in RunDirectory(run).rows("metrics.jsonl") if row["stage"] == "students"]
    return {(row["member"], row["updates"]): row for row in rows}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_costs_nothing(
    finished_run: Path, ray_cluster: str, small_disk: Path, tmp_path: Path
) -> None:
    out, ballast = small_disk / "run", small_disk / "ballast"
    ballast.write_bytes(bytes(800 * 2**10))
    with begun(small_config(out), tmp_path, ray_cluster) as run:
        _, said = run.communicate(timeout=120)
    assert run.returncode == 2, said
    last = said.splitlines()[-1]
    assert "No space left on device" in last and f"go on with: cqlray resume {out}" in last
    assert "Traceback" not in said
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    api.resume(out, quiet=True)
    assert_same(finished_run, out)


def test_a_learners_write_that_fails_is_heard(
    ray_cluster: str, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = small_config(out, dataset=str(finished_run))
    with begun(config, tmp_path, ray_cluster) as run:
        waited_for(out / "members.json", run)
        (out / "checkpoints").write_bytes(b"in the way")
        _, said = run.communicate(timeout=120)
    assert run.returncode == 2, said
    assert "cannot be written" in said.splitlines()[-1] and "cqlray resume" in said.splitlines()[-1]
    (out / "checkpoints").unlink()
    api.resume(out, quiet=True)


def test_a_member_that_becomes_non_finite_can_fail_the_run(
    ray_cluster: str, finished_run: Path, tmp_path: Path
) -> None:
    config = small_config(tmp_path / "run", dataset=str(finished_run), non_finite="fail")
    bad = dataclasses.replace(config.cql, critic_learning_rate=1e30)
    with pytest.raises(
        UserError, match=r"member \d+ became non-finite \(non_finite: fail\)"
    ) as failure:
        api.run(dataclasses.replace(config, cql=bad), quiet=True)
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    else:
        pytest.fail("actors outlive the run that failed, for whoever holds its traceback")
    assert failure.tb is not None
    assert not issubclass(UserError, StorageFailure)


class Sleeper:
    """Sleeps for as long as its file says."""

    def __init__(self, file: Path) -> None:
        self.seconds = float(file.read_text())
        file.write_text("0.05")

    def work(self, number: int) -> tuple[int, Any]:
        time.sleep(self.seconds)
        return number, np.full(10, number)


def test_a_slow_worker_holds_nobody_up(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two actors needs a minute for each call: its call is made by the other as
    well.
    """
    monkeypatch.setattr(pools, "SLOW_SECONDS", 0.5)
    (tmp_path / "seconds").write_text("60")

    async def story() -> list[tuple[int, int]]:
        with closing(Cluster(print)) as cluster:
            workers = []
            for _ in range(2):
                file = tmp_path / "seconds"
                workers.append(cluster.start(Sleeper, file, cpus=0.1, retried=True))
                await workers[-1].ask("__ray_ready__")
            pool = Pool("sleeper", 2, workers.__getitem__)
            calls = (pool.call("work", number, returns=2) for number in range(8))
            return [(value, int((await array)[0])) for value, array in await results(calls, 8)]

    started = time.monotonic()
    assert asyncio.run(story()) == [(number, number) for number in range(8)]
    assert time.monotonic() - started < 20


class Source:
    """Never answers."""

    def give(self) -> None:
        time.sleep(600)


class Taker:
    def take(self, given: object) -> object:
        return given


def test_what_a_closed_pool_was_at_is_forgotten(ray_cluster: str) -> None:
    """All its calls wait for what a dead process was to give: the first failure ends a stage, the
    next is free of them.
    """

    async def story() -> None:
        with closing(Cluster(print)) as cluster:

            def hire(number: int) -> Any:
                return cluster.start(Taker, cpus=0.1, retried=True)

            source, pool = cluster.start(Source, cpus=0.1), Pool("taker", 5, hire)
            given = source.ask("give").references[0]
            asyncio.get_running_loop().call_later(0.1, source.kill)
            with pytest.raises(Lost, match=r"^The actor"):
                await results((pool.call("take", given) for _ in range(8)), 8)
            pool.close()
            again = Pool("taker", 1, hire)
            assert await again.call("take", 7) == 7
            again.close()
            await asyncio.sleep(0.1)
            assert not pool.attempts

    asyncio.run(story())
