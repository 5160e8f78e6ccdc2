"""Runs on clusters of three nodes with separate object stores: shards from everywhere, nodes lost,
another machine.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqlray.config.load import dump_yaml
from cqlray.config.schema import EnvConfig, EvaluationConfig, ResourcesConfig
from cqlray.stages.run import SECONDS_BETWEEN_CHECKPOINTS
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config
from tests.integration.test_driver import assert_same
from tests.nightly.distributed.nodes import HEAD, Driver, EndedEarly, Nodes, cluster

pytestmark = pytest.mark.ray
ATTEMPTS = 3


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of two CPUs, one of which each test replaces, and a head that only the driver
    uses.
    """
    with cluster(head_cpus=0, cpus=(2, 2)) as started:
        yield started


def begin(nodes: Nodes, out: Path, **changes: object) -> Driver:
    config = out.with_suffix(".yaml")
    config.write_text(dump_yaml(small_config(out, **changes)))
    return nodes.start("run", "--config", str(config), "--quiet")


def test_shards_come_from_all_nodes(finished_run: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "environment.log"
    where: dict[int, str] = {}
    with cluster(head_cpus=2, cpus=(2, 2)) as three:
        env = EnvConfig("tests.toy_envs:Point-v0", kwargs={"log": str(log)})
        run = begin(
            three,
            out,
            env=env,
            resources=ResourcesConfig(rollout_workers=6, evaluators=1, learners=2),
        )

        def played() -> bool:
            where.update(three.processes("RolloutWorker"))
            return (out / "dataset" / "dataset.json").exists()

        run.wait_for(played)
        run.finish()
    players = {
        int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("reset")
    }
    assert {where[process] for process in players & where.keys()} == {HEAD, "a", "b"}
    assert_same(finished_run, out)


VICTIMS = {
    "teacher": ("Teacher", "teacher/replay-00002.parquet"),
    "teacher's workers": ("RolloutWorker", "teacher/checkpoint.safetensors"),
    "collection": ("RolloutWorker", "dataset/shard-00006.parquet"),
    "students": ("Learner", "snapshots/population-0/000000110.safetensors"),
    "evaluation": ("Evaluator", "snapshots/population-0/000000220.safetensors"),
}
EACH_STAGE = ["teacher", "collection", "students", "evaluation"]


@pytest.mark.parametrize(
    "stages",
    [pytest.param(EACH_STAGE, marks=pytest.mark.sample), *([stage] for stage in VICTIMS)],
    ids=", ".join,
)
def test_killed_nodes_change_nothing(
    finished_run: Path, nodes: Nodes, tmp_path: Path, stages: list[str]
) -> None:
    """The node that the stage's process is on dies, and another one joins; stage after stage in the
    same run.
    """
    for attempt in range(ATTEMPTS):
        out = tmp_path / f"run-{attempt}"
        run = begin(nodes, out)
        try:
            for number, stage in enumerate(stages):
                kill_node_of(stage, run, nodes, out, f"{attempt}.{number}")
        except EndedEarly:
            # on a busy machine the run can be over before the last stage's process was found
            assert run.process.returncode == 0, run.said()
            assert attempt + 1 < ATTEMPTS, "never in time"
            continue
        run.finish()
        assert_same(finished_run, out)
        return


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")


@as_root
@pytest.mark.parametrize("stage", ["teacher", "collection", "students"])
def test_a_node_without_the_disk_that_the_others_share_may_come_later(
    finished_run: Path, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "run"
    with cluster(head_cpus=0, cpus=(2,)) as nodes:
        run = begin(nodes, out)
        run.wait_for((out / VICTIMS[stage][1]).exists)
        nodes.hide(tmp_path)
        kill_node_of(stage, run, nodes, out, "later")
        run.finish()
    events = RunDirectory(out).rows("events.jsonl")
    (said,) = [row["what"] for row in events if row["event"] == "not shared"]
    assert (
        said
        == f"{out} is not on node {socket.gethostname()}, though others share it; mount it there"
        " too, or use s3://"
    )
    assert_same(finished_run, out)


@as_root
def test_a_disk_that_only_the_driver_has(finished_run: Path, tmp_path: Path) -> None:
    """The same bits as where workers and learners write their files themselves."""
    with cluster(0, (2, 2), hidden=tmp_path) as nodes:
        begin(nodes, tmp_path / "run").finish()
    assert_same(finished_run, tmp_path / "run")


def without_end(nodes: Nodes, out: Path) -> Driver:
    """A run that comes to no snapshot and to no checkpoint for a minute."""
    cql = dataclasses.replace(small_config(out).cql, num_updates=10**6)
    resources = ResourcesConfig(rollout_workers=1, evaluators=1, learners=1)
    return begin(
        nodes,
        out,
        cql=cql,
        evaluation=EvaluationConfig(interval=10**6, episodes=1),
        resources=resources,
    )


def updates_of(out: Path) -> int:
    return int(
        checkpoint.read_metadata(out / "checkpoints" / "population-0.safetensors")["updates"]
    )


def test_what_a_learner_did_is_kept_before_its_node_is_gone(nodes: Nodes, tmp_path: Path) -> None:
    """After a spot notice no checkpoint is due for long, and yet there are some."""
    out = tmp_path / "run"
    run = without_end(nodes, out)
    (old,) = run.wait_for(lambda: nodes.processes("Learner").values())
    nodes.drain(old, 60)
    noticed = time.monotonic()
    run.wait_for((out / "checkpoints" / "population-0.safetensors").exists)
    assert time.monotonic() - noticed < SECONDS_BETWEEN_CHECKPOINTS / 2
    assert updates_of(out) > 0
    nodes.kill(old)
    nodes.add(f"in place of {old}", 2)
    (new,) = run.wait_for(lambda: nodes.processes("Learner").values())
    assert new != old
    run.process.terminate()
    assert run.process.wait(60) == 130


def test_a_driver_whose_node_is_drained_ends_in_order(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with cluster(2, ()) as alone:
        run = without_end(alone, out)
        run.wait_for(lambda: alone.processes("Learner"))
        time.sleep(5)  # until it has updates
        alone.drain(HEAD, 60)
        assert run.process.wait(60) == 130
        assert f"cqlray resume {out}" in run.said()
    assert updates_of(out) > 0


def kill_node_of(stage: str, run: Driver, nodes: Nodes, out: Path, number: str) -> None:
    """Have another node join in the place of the one that the stage's process is on."""
    role, sign = VICTIMS[stage]
    run.wait_for((out / sign).exists)
    victim = run.wait_for(lambda: sorted(nodes.processes(role).values()))[0]
    nodes.kill(victim)
    replacement = f"{number} after {victim}"
    nodes.add(replacement, 2)
    if run.process.poll() is not None:
        raise EndedEarly(run.said())
    # teacher, workers and evaluator find no room on the two CPUs that are left
    if sign.startswith("teacher/"):
        run.wait_for(lambda: replacement in nodes.workers().values())


@pytest.mark.parametrize(
    "sign",
    ["teacher/checkpoint.safetensors", "checkpoints/population-0.safetensors"],
)
def test_a_run_is_resumed_from_another_machine(
    finished_run: Path, nodes: Nodes, tmp_path: Path, sign: str
) -> None:
    """There the directory has another path, and the driver another working directory and another
    node of the cluster.
    """
    out, there = tmp_path / "run", tmp_path / "mounted elsewhere" / "run"
    run = begin(nodes, out)
    run.wait_for((out / sign).exists)
    run.kill()
    there.parent.mkdir()
    shutil.move(out, there)
    other = next(name for name in nodes.raylets if name != HEAD)
    nodes.start("resume", "run", "--quiet", node=other, cwd=there.parent).finish()
    assert not out.exists()
    assert_same(finished_run, there)
