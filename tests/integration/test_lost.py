"""What is lost, and what merely looks so: Ray's errors, actors that cannot start, files that went
with a node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RaySystemError

from cqlray import driver
from cqlray.api import runs as api
from cqlray.api import session
from cqlray.cli import main as cli
from cqlray.config.members import members
from cqlray.config.schema import ResourcesConfig
from cqlray.errors import ActorLost, Lost, StorageFailure, UserError
from cqlray.runtime import cluster as clusters
from cqlray.runtime import files as run_files
from cqlray.runtime import joining
from cqlray.runtime.cluster import Cluster
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.files import RelayedFiles
from cqlray.runtime.placement import ClusterResources, Plan, make_plan
from cqlray.stages import data as data_of_runs
from cqlray.stages import evaluate, train
from cqlray.stages import run as runs
from cqlray.stages.run import Run
from cqlray.stages.teach import Lessons
from cqlray.stages.train import Training
from cqlray.storage import checkpoint
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import (
    RunDirectory,
    read_json,
    snapshot_name,
    write_bytes,
    write_json,
)
from cqlray.storage.writer import Writer
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.fitted_q import FittedQ
from cqlray.workers.learner import Advance, Learner
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, outcome
from tests.unit.storage.test_locations import Proxy, proxy, remote, server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.ray

# -- Ray's errors ----------------------------------------------------------------------------------

OUT_OF_MEMORY = """
import asyncio, time, ray
from cqlray.errors import Lost
from cqlray.runtime.cluster import Cluster
# Ray's memory monitor takes any use of memory for too much.
monitor = {"memory_usage_threshold": 0.0, "memory_monitor_refresh_ms": 200,
           "min_memory_free_bytes": -1}
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         object_store_memory=80 * 2**20,
         _system_config=monitor)

class Large:
    def work(self):
        time.sleep(60)

async def story():
    try:
        await Cluster(print).start(Large, cpus=0.1).ask("work")
    except Lost as error:
        print(type(error.__cause__).__name__, error)

asyncio.run(story())
"""


def test_an_actor_that_the_memory_monitor_killed_is_lost_as_any_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "OutOfMemoryError 1 worker(s) were killed due to the node running low on memory"
        in done.stdout.splitlines()[-1]
    )


class Fragile:
    """Cannot be made, or cannot work."""

    def __init__(self, failure: Exception | None = None, *_: Any) -> None:
        if failure is not None:
            raise failure

    def work(self, failure: Exception) -> None:
        raise failure

    def kept(self) -> tuple[int, list[Any]]:
        return os.getpid(), [ray.put(bytes(2**20))]


@pytest.fixture
def cluster(ray_cluster: str) -> Iterator[Cluster]:
    """Its actors end with the test."""
    with closing(Cluster(print)) as made:
        yield made


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's machine alone has the run directory."""
    monkeypatch.setattr(driver, "choose_files", relay)


async def relay(directory: RunDirectory, plan: Plan, writer: Writer, say: Any) -> RelayedFiles:
    return RelayedFiles(directory, writer)


def awaited(reply: Any) -> Any:
    """What a reply brings."""

    async def story() -> Any:
        return await reply

    return asyncio.run(story())


def test_what_an_actors_init_raised_is_said_and_not_taken_for_a_death(cluster: Cluster) -> None:
    failures = [ValueError("no such card: 7"), UserError("disk: full"), StorageFailure("no answer")]
    expected = [
        (ActorLost, "Fragile cannot be started: ValueError: no such card: 7"),
        (UserError, "disk: full"),
        (StorageFailure, "no answer"),
    ]
    broken = [cluster.start(Fragile, failure, cpus=0.1) for failure in failures]
    user = cluster.start(Fragile, cpus=0.1)
    for actor, (kind, said) in zip(broken, expected, strict=True):
        given = actor.ask("work", None).references[0]
        for reply in (actor.ask("work", None), user.ask("work", given)):  # and what waits for it
            with pytest.raises(kind) as raised:
                awaited(reply)
            assert type(raised.value) is kind and str(raised.value) == said


def dead_reference(cluster: Cluster) -> Any:
    """To an object that went with its owner."""
    owner = cluster.start(Fragile, cpus=0.1)
    process, (reference,) = awaited(owner.ask("kept"))
    owner.kill()
    while Path(f"/proc/{process}").exists():
        time.sleep(0.1)
    while True:
        try:
            ray.get(reference)
        except ObjectLostError:
            return reference
        time.sleep(0.1)


def test_an_actor_that_was_given_what_is_lost_may_be_made_again(cluster: Cluster) -> None:
    actor = cluster.start(Fragile, None, dead_reference(cluster), cpus=0.1)
    with pytest.raises(Lost) as lost:
        awaited(actor.ask("kept"))
    cause = lost.value.__cause__
    assert isinstance(cause, ActorDiedError) and cause.actor_init_failed


def test_who_died_and_what_was_given_are_told_apart(cluster: Cluster) -> None:
    given = dead_reference(cluster)
    with pytest.raises(Lost) as of_argument:
        awaited(cluster.start(Fragile, cpus=0.1).ask("work", given))
    actor = cluster.start(Fragile, cpus=0.1)
    actor.kill()
    with pytest.raises(Lost) as of_actor:
        awaited(actor.ask("kept"))
    assert of_argument.value.of_argument and not of_actor.value.of_argument
    assert of_actor.value.for_good


class Unmakeable(Learner):
    """Cannot be made."""

    def __init__(self, *_: Any) -> None:
        raise ValueError("no such card")


def test_a_learner_that_cannot_start_ends_the_run_at_once_with_the_reason(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Learner", Unmakeable)
    out = tmp_path / "run"
    with pytest.raises(ActorLost) as raised:
        api.run(small_config(out, dataset=str(finished_run)), quiet=True)
    said = (
        r"^learner of population \d cannot be started: ValueError: no such card; go on with: cqlray"
        r" resume "
    )
    assert re.match(f"{said}{out}$", str(raised.value)), str(raised.value)
    assert not [row for row in RunDirectory(out).rows("events.jsonl") if row["event"] == "death"]


class Mortal(Learner):
    """Makes some updates in its first call and dies of its second, once its checkpoint is written
    if it made one.
    """

    calls = 0

    def step(self, seconds: float, save: bool) -> tuple[Advance, bytes | None, bytes | None]:
        self.calls += 1
        if self.calls > 1:
            self.outbox.flush()
            os._exit(1)
        return super().step(0.02, save)  # shorter than the 100 updates that are made at a time


@pytest.mark.parametrize("shared", [True, False])
def test_a_learner_is_replaced_for_as_long_as_checkpoints_rise(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Two lives end after a checkpoint, the third before one: what its call returned is gone and is
    no progress.
    """
    lives, start = [], Training._start

    def started(self: Training, population: int) -> Any:
        lives.append(self.done[population])
        assert len(lives) < 6, "replaced for ever"
        return start(self, population)

    monkeypatch.setattr(train, "Learner", Mortal)
    monkeypatch.setattr(runs, "DEATHS_IN_A_ROW", 1)
    monkeypatch.setattr(Run, "is_checkpoint_due", lambda *_: len(lives) < 3)
    monkeypatch.setattr(Training, "_start", started)
    if not shared:
        monkeypatch.setattr(driver, "choose_files", relay)
    config = small_config(tmp_path / "run", dataset=str(finished_run), num_seeds=1)
    evaluation = dataclasses.replace(config.evaluation, interval=330)
    with pytest.raises(ActorLost, match=r"^a learner died 2 times in a row: The actor died"):
        api.run(dataclasses.replace(config, evaluation=evaluation), quiet=True)
    assert lives == [0, 100, 200]


@pytest.mark.parametrize("debug", [False, True])
def test_whatever_else_ray_says_is_one_line(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    debug: bool,
) -> None:
    def of_ray() -> None:
        raise RaySystemError("the raylet is away\nand more")

    def of_an_actor() -> None:
        awaited(cluster.start(Fragile, cpus=0.1).ask("work", KeyError("loss")))

    said = []
    for work in (of_ray, of_an_actor):

        def command(_: Any, work: Any = work) -> int:
            with session.saying_how_to_go_on("cqlray resume X"):
                work()
            return 0

        monkeypatch.setattr("cqlray.cli.run.resume", command)
        assert cli.main(["resume", "X", *["--debug"] * debug]) == 1
        said.append(capsys.readouterr().err)
    ending = " (--debug shows the traceback); go on with: cqlray resume X"
    lines = [
        f"cqlray: RaySystemError: System error: the raylet is away{ending}",
        f"cqlray: KeyError: 'loss'{ending}",
    ]
    assert [text.splitlines()[-1] for text in said] == lines
    assert [len(text.splitlines()) > 1 for text in said] == [debug, debug]
    assert all(("Traceback" in text) == debug for text in said)


class Steady:
    """Always answers."""

    def work(self) -> None:
        time.sleep(0.1)


class Sleeper:
    """Plain, as the actors are."""

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"


def test_a_drain_is_one_request_to_stop(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for as long as what was begun is seen out, and where a signal comes with it or has come
    before.
    """
    node = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(clusters.state, "get_draining_nodes", lambda: {node: 0})
    for before in ([], [0.0]):
        said: list[str] = []
        stop = Stop(said.append)
        stop.requests += before

        async def story(stop: Stop = stop) -> str:
            stop.attach()
            with closing(Cluster(stop.say, stop.on_drain)) as cluster:
                working = cluster.start(Sleeper, cpus=0.1)
                found = await stop.see_out(working.ask("sleep", 3.0), "seen out")
                assert stop.requested and not stop.hurried
                assert cluster.is_leaving(working)
                return found

        assert asyncio.run(story()) == "slept"
        assert said.count("the driver's node is being drained") == (0 if before else 1)
        assert said[-1] == "seen out"


def test_who_does_not_start_is_waited_for_in_the_open_while_others_work(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    async def story() -> None:
        with closing(Cluster(said.append)) as cluster:
            steady = cluster.start(Steady, cpus=0.1)
            await steady.ask("work")
            monkeypatch.setattr(clusters, "SECONDS_BETWEEN_COMPLAINTS", 1.0)
            waiting = cluster.start(Steady, cpus=64)
            until = time.monotonic() + 4.0
            while time.monotonic() < until:
                await steady.ask("work")
            assert waiting is not None

    asyncio.run(story())
    assert 2 <= len(said) <= 5, said
    assert all(
        line.startswith("waiting for 1 processes to start (") and "of 2 CPUs free" in line
        for line in said
    )


# -- the teacher -----------------------------------------------------------------------------------


def alone(out: Path, nodes: int = 1, **changes: Any) -> Run:
    """A run that is not on any cluster."""
    config = small_config(out, **changes)
    directory, writer = RunDirectory.create(out, {"id": "x"}), Writer()
    plan = make_plan(config, members(config), ClusterResources(4.0 * nodes, nodes=nodes))
    said: Any = SimpleNamespace(say=lambda line: None)
    nobody: Any = None
    relayed = RelayedFiles(directory, writer)
    stop = Stop(print)
    return Run(config, directory, plan, nobody, said, stop, nobody, writer, relayed)


@pytest.mark.parametrize("progress", [True, False])
def test_deaths_count_only_in_a_row(tmp_path: Path, progress: bool) -> None:
    run, attempts = alone(tmp_path / "run"), []

    async def stage() -> None:
        attempts.append(1)
        if progress and len(attempts) % 3 == 0:
            saved = checkpoint.encode({}, {"rounds": len(attempts), "tests": []})
            write_bytes(run.directory / "teacher" / "checkpoint.safetensors", saved)
        if len(attempts) < 10:
            raise Lost("The actor died unexpectedly")

    def restarting() -> Coroutine[Any, Any, None]:
        return run.restarting("an actor", "teacher", lambda: Lessons(run).rounds, stage, "died")

    if progress:
        asyncio.run(restarting())
        assert len(attempts) == 10
    else:
        with pytest.raises(
            ActorLost, match="an actor died 4 times in a row: The actor died unexpectedly"
        ):
            asyncio.run(restarting())
        assert len(attempts) == 4
    run.writer.flush()
    deaths = [row for row in run.directory.rows("events.jsonl") if row["event"] == "death"]
    assert len(deaths) == (9 if progress else 4)


# -- files that one machine has --------------------------------------------------------------------


def test_a_last_checkpoint_that_went_with_its_node_is_made_again(
    cluster: Cluster,
    relayed: None,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The learner is done and its node dies before the driver, which alone has the run directory,
    fetched what it left.
    """
    out, keep = tmp_path / "run", RelayedFiles.keep
    gone: list[Any] = []
    dead = dead_reference(cluster)

    async def kept(self: RelayedFiles, references: dict[str, Any]) -> None:
        if snapshot_name(0, 330) in references and not gone:
            gone.append(1)
            references = dict.fromkeys(references, dead)
        await keep(self, references)

    monkeypatch.setattr(RelayedFiles, "keep", kept)
    api.run(small_config(out, dataset=str(finished_run)), quiet=True)
    assert gone
    deaths = [row for row in RunDirectory(out).rows("events.jsonl") if row["event"] == "death"]
    assert [row["role"] for row in deaths] == ["learner"]
    assert of_students(out) == of_students(finished_run)


def of_students(run: Path) -> tuple[dict[str, bytes], dict[Any, Any]]:
    """Files and test results."""
    found: dict[str, Any] = outcome(run)
    files = {name: data for name, data in found["files"].items() if not name.startswith("teacher")}
    return files, {key: row for key, row in found["evaluations"].items() if key[0] == "student"}


@pytest.mark.parametrize("shared", [False, True])
def test_data_on_disk_is_refused_where_learners_do_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    run = alone(tmp_path / "run", nodes=2, resources=ResourcesConfig(data="disk"))

    async def nodes_without(probe: Any, say: Any) -> list[str]:
        return [] if shared and probe() else ["node a", "node b"]

    monkeypatch.setattr(run_files, "nodes_without", nodes_without)
    data = tmp_path / "data"
    write_json(data / "dataset.json", {"digest": "d"})
    if shared:
        run.data = asyncio.run(data_of_runs._provided(run, data, {"digest": "d"}))
        assert [stored.directory for stored in run.data] == [data]
        before = run.data
        run.forget_lost_data()
        assert run.data is before, "no node takes it along"
        return
    with pytest.raises(
        UserError,
        match=rf"^{data} is not on every node, .*as resources\.data asks;"
        r" missing on node a and 1 more.* s3://",
    ):
        asyncio.run(data_of_runs._provided(run, data, {"digest": "d"}))
    with pytest.raises(UserError, match=r"run/dataset is not on every node"):
        asyncio.run(driver.whole_run(run))


def test_a_bucket_that_is_away_is_a_failure_of_storage(
    remote: Location,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which a run can be resumed after: no answer, and credentials that are refused, whether it
    reads or writes.
    """
    from cqlray.storage import object_store

    monkeypatch.setattr(object_store, "GIVE_UP_AFTER", 0.5)
    write_bytes(remote / "x", b"x")
    read, write = (remote / "x").read_bytes, partial(write_bytes, remote / "x", b"y")
    for status, said in ((503, "no answer for"), (403, "ACCESS_DENIED")):
        proxy.status, proxy.share = status, 1.0
        for work in (read, write, partial(RunDirectory(remote).append, "rows.jsonl", [{}])):
            with (
                pytest.raises(StorageFailure, match=said) as raised,
                session.saying_how_to_go_on(f"cqlray resume {remote}"),
            ):
                work()
            assert str(raised.value).endswith(f"; go on with: cqlray resume {remote}")
        proxy.calm()
    with pytest.raises(
        UserError, match=r"^out 's3://no-such-bucket/run' cannot be written: NO_SUCH_BUCKET"
    ):
        RunDirectory.create(Location.parse("s3://no-such-bucket/run"), {})


# -- judgements ------------------------------------------------------------------------------------


class Dying(Evaluator):
    """Its process ends with the first call."""

    def evaluate(self, *_: Any) -> list[dict[str, Any]]:
        os._exit(1)


class DyingQ(FittedQ):
    """Its process ends with the first call."""

    def evaluate(self, *_: bytes) -> list[dict[str, Any]]:
        os._exit(1)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Judges whose processes die of every call; what makes that end soon."""
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "TASK_RETRIES", 0)
        for module in (runs, evaluate):
            patch.setattr(module, "DEATHS_IN_A_ROW", 1)
        patch.setattr(runs, "Evaluator", Dying)
        patch.setattr(evaluate, "FittedQ", DyingQ)
        yield patch


def test_a_run_whose_snapshots_nobody_could_test_is_not_finished(
    dying: pytest.MonkeyPatch, finished_run: Path, tmp_path: Path
) -> None:
    config = small_config(tmp_path / "run", dataset=str(finished_run), num_seeds=1)
    evaluation = dataclasses.replace(config.evaluation, interval=330, episodes=1)
    with pytest.raises(ActorLost) as raised:
        api.run(dataclasses.replace(config, evaluation=evaluation), quiet=True)
    said = (
        r"^evaluations missing: 1, the first in evaluations\.jsonl of population 0 after 330"
        r" updates; the processes that were"
    )
    assert re.match(
        said + r" to evaluate died: The actor .*; go on with: cqlray resume ", str(raised.value)
    ), str(raised.value)
    assert not read_json(tmp_path / "run" / "manifest.json")["finished"]
    dying.undo()
    out = api.resume(tmp_path / "run", quiet=True).run_dir
    assert list(of_students(out)[1]) == [("student", 0, 330)]


def test_commands_whose_judges_die_say_so_in_a_line(
    dying: pytest.MonkeyPatch,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = shutil.ignore_patterns("*110.safetensors", "*220.safetensors")
    out = Path(shutil.copytree(finished_run, tmp_path / "run", ignore=earlier))
    said = []
    for words in (["--episodes", "1"], ["--fitted-q"]):
        assert cli.main(["evaluate", str(out), "--quiet", *words]) == 1
        said.append(capsys.readouterr().err)
    assert said[0].startswith("cqlray: an evaluator died")
    assert said[1].startswith("cqlray: evaluations missing: 2, the first in fqe.jsonl")
    assert said[1].endswith(f"; go on with: cqlray evaluate {out} --fitted-q\n")
    assert [text.count("\n") for text in said] == [1, 1]


# -- what is one cluster's, or another's -----------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        (["node_1f", "node_2e"], False),
        (["local.cluster.node"], False),
        (["ray.head.default", "cpu"], True),
    ],
)
def test_which_clusters_grow(
    monkeypatch: pytest.MonkeyPatch, types: list[str], grows: bool
) -> None:
    status = {
        "autoscaler_report": {
            "node_type_mapping": {f"10.0.0.{place}": name for place, name in enumerate(types)}
        }
    }
    monkeypatch.setattr(joining.state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.setattr(
        joining.internal_kv, "_internal_kv_get", lambda key: json.dumps(status).encode()
    )
    assert joining._autoscaler() == (grows, None)


def test_one_learner_and_two_train_the_same_members(finished_run: Path, tmp_path: Path) -> None:
    """To float tolerance: how many share a set of tensors changes the order of sums."""
    config = small_config(tmp_path / "run", dataset=str(finished_run))
    alone = api.run(
        dataclasses.replace(config, resources=dataclasses.replace(config.resources, learners=1)),
        quiet=True,
    ).run_dir
    together, apart = (parameters(run) for run in (alone, finished_run))
    assert len(read_json(alone / "manifest.json")["plan"]["populations"]) == 1
    assert together.keys() == apart.keys() == {0, 1, 2}
    for member, arrays in apart.items():
        for name, array in arrays.items():
            assert together[member][name] == pytest.approx(array, rel=1e-3, abs=1e-4), (
                member,
                name,
            )
    ours, theirs = of_students(alone)[1], of_students(finished_run)[1]
    assert ours.keys() == theirs.keys()
    for key, row in theirs.items():
        assert ours[key]["returns"] == pytest.approx(row["returns"], rel=1e-3), key


def parameters(run: Path) -> dict[int, dict[str, Any]]:
    """The members' last networks."""
    found = {}
    for population, own in enumerate(read_json(run / "manifest.json")["plan"]["populations"]):
        arrays, _ = checkpoint.decode(
            (run / "checkpoints" / f"population-{population}.safetensors").read_bytes()
        )
        for place, member in enumerate(own):
            names = ("policy", "critics", "targets", "log_temperature")
            found[member] = {name: arrays[name].reshape(len(own), -1)[place] for name in names}
    return found
