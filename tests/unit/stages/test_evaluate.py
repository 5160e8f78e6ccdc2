"""Evaluations without Ray: processes that die, and how many snapshots are in the object store."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cqlray.config.members import members
from cqlray.config.schema import CQLConfig, EvaluationConfig, RunConfig
from cqlray.errors import Lost
from cqlray.runtime.event_loop import Stop, group
from cqlray.runtime.files import RelayedFiles
from cqlray.runtime.placement import ClusterResources, make_plan
from cqlray.stages import evaluate as stage
from cqlray.stages.evaluate import Evaluation
from cqlray.stages.run import Run
from cqlray.storage.run_directory import (
    EVALUATIONS,
    FITTED_Q,
    RunDirectory,
    snapshot_name,
    write_bytes,
)
from cqlray.storage.writer import Writer
from cqlray.workers.fitted_q import POLICIES_AT_ONCE


class Estimator:
    """Fitted Q, which can be made of data that is there."""

    def __init__(self, data: str) -> None:
        self.data = data

    def ask(self, method: str, *snapshots: bytes, returns: int = 1) -> Any:
        async def answer() -> Any:
            if self.data == "went with its node":
                raise Lost("The actor died because its creation needs a lost object", for_good=True)
            return [{"member": 0, "updates": int(at), "fqe_return": 1.0} for at in snapshots]

        return answer()

    def kill(self) -> None:
        pass


def test_fitted_q_is_made_anew_of_data_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The references that its processes were made with are of no use after their node is gone."""
    config = RunConfig(
        num_seeds=1,
        cql=CQLConfig(num_updates=60),
        evaluation=EvaluationConfig(interval=30, episodes=0, fitted_q=True),
    )
    directory, writer = RunDirectory.create(tmp_path / "run", {"id": "x"}), Writer()
    for updates in (30, 60):
        write_bytes(directory / snapshot_name(0, updates), str(updates).encode())
    plan = make_plan(config, members(config), ClusterResources(4.0, nodes=2))
    cluster: Any = SimpleNamespace(start=lambda role, *args, **_: Estimator(args[-1]))
    spec: Any = SimpleNamespace(scaling=None)
    progress: Any = SimpleNamespace(say=print)
    files = RelayedFiles(directory, writer)
    run = Run(config, directory, plan, spec, progress, Stop(print), cluster, writer, files)
    run.data = ["went with its node"]

    async def provide_data(run: Run) -> None:
        run.data = run.data or ["put anew"]

    monkeypatch.setattr(stage, "provide_data", provide_data)
    monkeypatch.setattr(stage, "put", lambda value: value)
    asyncio.run(Evaluation(run, tests=False, fits=True).finish())
    writer.flush()
    assert [row["updates"] for row in directory.rows(FITTED_Q)] == [30, 60]


SNAPSHOTS, POPULATIONS, WORKERS = 40, 4, 1
FROM_FILES = 2 * WORKERS  # tests or fits at once
SLACK = 2  # that a task which has just ended has not let go of yet


def content(population: int, updates: int) -> bytes:
    return b"%d %d" % (population, updates)


def write_snapshot(directory: RunDirectory, population: int, updates: int) -> None:
    path = directory.path / snapshot_name(population, updates)
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content(population, updates))


class InStore:
    """A snapshot in the object store; counts those that somebody holds."""

    alive: ClassVar[weakref.WeakSet[InStore]] = weakref.WeakSet()
    most = 0

    def __init__(self, value: bytes) -> None:
        self.member, self.updates = map(int, value.split())
        self.alive.add(self)
        InStore.most = max(InStore.most, len(self.alive))


class Worker:
    """Evaluates anything within a turn of the event loop."""

    def ask(self, method: str, *args: Any, returns: int = 1) -> Any:
        if isinstance(args[-1], tuple):
            rows: Any = [{"returns": [1.0], "lengths": [1], "seconds": 0.1}]
        else:
            rows = [{"member": s.member, "updates": s.updates, "fqe_return": 1.0} for s in args]
        return asyncio.sleep(0.0001, rows)

    def kill(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run of four populations with all their snapshots, and no evaluations."""
    InStore.alive.clear()
    InStore.most = 0
    monkeypatch.setattr(stage, "put", InStore)
    config = RunConfig(
        num_seeds=1,
        cql=CQLConfig(num_updates=SNAPSHOTS),
        evaluation=EvaluationConfig(interval=1, episodes=1, fitted_q=True),
    )
    directory = RunDirectory.create(tmp_path / "run", {"id": "x"})
    for population in range(POPULATIONS):
        for updates in range(1, SNAPSHOTS + 1):
            write_bytes(
                directory / snapshot_name(population, updates), content(population, updates)
            )
    plan = dataclasses.replace(
        make_plan(config, members(config), ClusterResources(4.0, nodes=2)),
        populations=tuple((member,) for member in range(POPULATIONS)),
        evaluators=WORKERS,
        fitted_q=WORKERS,
    )
    quiet = lambda *_, **__: None  # noqa: E731
    progress: Any = SimpleNamespace(say=quiet, stage=quiet, advance=quiet, finish=quiet)
    cluster: Any = SimpleNamespace(start=lambda *_, **__: Worker())
    with closing(Writer()) as writer:
        files = RelayedFiles(directory, writer)
        spec: Any = SimpleNamespace(scaling=None)
        run = Run(config, directory, plan, spec, progress, Stop(print), cluster, writer, files)
        run.data = ["shards"]
        yield run


def rows(run: Run, file: str) -> int:
    """How many snapshots have a row."""
    run.writer.flush()
    found = {(row["member"], row["updates"]) for row in run.directory.rows(file)}
    assert len(found) == len(list(run.directory.rows(file))), "no row stands twice"
    return len(found)


def test_the_last_catch_up_and_resume_hold_a_few_snapshots_at_once(run: Run) -> None:
    """Both begin by the same method, whose snapshots are files."""

    asyncio.run(Evaluation(run, tests=True, fits=False).finish())
    assert rows(run, EVALUATIONS) == SNAPSHOTS * POPULATIONS
    assert 0 < InStore.most <= FROM_FILES + SLACK


def test_evaluate_fitted_q_holds_a_few_blocks_at_once(run: Run) -> None:
    asyncio.run(stage.fit_q(run))
    assert rows(run, FITTED_Q) == SNAPSHOTS * POPULATIONS
    assert 0 < InStore.most <= (FROM_FILES + SLACK) * POLICIES_AT_ONCE


def test_evaluate_holds_a_few_last_snapshots_at_once(run: Run) -> None:
    run.plan = dataclasses.replace(run.plan, populations=tuple((member,) for member in range(60)))
    for population in range(60):
        write_bytes(
            run.directory / snapshot_name(population, SNAPSHOTS), content(population, SNAPSHOTS)
        )
    found = asyncio.run(stage.evaluate_again(run, 1))
    assert [row["member"] for row in found] == [None, *range(60)]
    assert 0 < InStore.most <= FROM_FILES + SLACK


@pytest.mark.parametrize("fits", [False, True])
def test_learners_that_are_faster_leave_a_bounded_number_of_snapshots(run: Any, fits: bool) -> None:
    """The others are read from their files, and all are evaluated."""

    async def story() -> None:
        evaluation = Evaluation(run, tests=not fits, fits=fits)
        async with group() as evaluation.tasks:
            for updates in range(1, SNAPSHOTS + 1):
                for population in range(POPULATIONS):
                    evaluation.evaluate(population, updates, InStore(content(population, updates)))
        assert not evaluation.at_work and not evaluation.held and not evaluation.blocks

    asyncio.run(story())
    assert rows(run, FITTED_Q if fits else EVALUATIONS) == SNAPSHOTS * POPULATIONS
    per_call = POLICIES_AT_ONCE if fits else 1
    assert 0 < InStore.most <= stage.MOST_HELD + (FROM_FILES + SLACK) * per_call


def test_a_snapshot_that_is_not_written_yet_is_left_to_the_last_catch_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "MOST_HELD", 0)

    async def story() -> None:
        evaluation = Evaluation(run, tests=True, fits=False)
        (run.directory / snapshot_name(0, 1)).unlink()
        async with group() as evaluation.tasks:
            evaluation.evaluate(0, 1, InStore(content(0, 1)))
        assert not evaluation.at_work and rows(run, EVALUATIONS) == 0

    asyncio.run(story())
