"""A population's story without Ray: whatever comes when, and stopped at any instant, what its
learner brought is kept once and in order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cqlray.config.members import members
from cqlray.config.schema import CQLConfig, EvaluationConfig, RunConfig
from cqlray.errors import ActorLost, Lost
from cqlray.runtime.event_loop import Stop, group
from cqlray.stages.run import Run
from cqlray.stages.train import Training
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory, checkpoint_name, write_bytes
from cqlray.workers.learner import Advance

GOAL, INTERVAL = 100, 30


class Reply:
    """A learner's, on its way."""

    def __init__(self, work: Any) -> None:
        self.future = asyncio.ensure_future(work)
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.references = [self, *(self.part(place) for place in (1, 2))]

    def part(self, place: int) -> Any:
        async def fetched() -> Any:
            return (await asyncio.shield(self.future))[place]

        return fetched

    def __await__(self) -> Generator[Any, None, Any]:
        return self.first().__await__()

    async def first(self) -> Any:
        return (await asyncio.shield(self.future))[0]


class Learner:
    """Makes updates in steps; may die of any."""

    def __init__(self, updates: int, rng: random.Random, deaths: float) -> None:
        self.updates, self.rng, self.deaths, self.turn = updates, rng, deaths, asyncio.Lock()

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply:
        return Reply(self.step(*args) if method == "step" else self.save())

    async def step(self, seconds: float, saves: bool) -> tuple[Advance, Any, Any]:
        async with self.turn:
            await asyncio.sleep(self.rng.random() * 0.002)
            if self.rng.random() < self.deaths:
                raise Lost("The actor died")
            ending = min(GOAL, self.updates - self.updates % INTERVAL + INTERVAL)
            self.updates = min(ending, self.updates + self.rng.choice((10, 20, 30)))
            ended = self.updates == ending
            result = Advance(self.updates, 0.0, {}, metrics={"loss": [1.0]} if ended else None)
            return result, f"snapshot {self.updates}", f"checkpoint {self.updates}"

    async def save(self) -> tuple[Any, ...]:
        async with self.turn:
            await asyncio.sleep(self.rng.random() * 0.002)
            return (f"checkpoint {self.updates}", None, None)

    def kill(self) -> None:
        pass


class Kept:
    """The run's files, as they would be: a name and a content at a time."""

    outbox = None

    def __init__(self, directory: RunDirectory, rng: random.Random, unwritten: float) -> None:
        self.directory, self.rng, self.unwritten = directory, rng, unwritten
        self.order: list[tuple[str, Any]] = []

    async def keep(self, references: Mapping[str, Any]) -> None:
        found = {}
        for name, reference in references.items():
            await asyncio.sleep(self.rng.random() * 0.001)
            found[name] = await reference if isinstance(reference, Reply) else await reference()
        for name, content in found.items():
            self.order.append((name, content))
            if name == checkpoint_name(0) and self.rng.random() >= self.unwritten:
                saved = checkpoint.encode({}, {"updates": int(content.split()[1])})
                write_bytes(self.directory / name, saved)


def trained(
    folder: Path,
    rng: random.Random,
    deaths: float,
    stop_after: float | None,
    unwritten: float = 0.0,
) -> Any:
    """The files and rows of a population in their order, and whether it came to its end.

    `unwritten` is how often a checkpoint goes with the learner that was to write it.
    """
    config = RunConfig(
        num_seeds=1,
        cql=CQLConfig(num_updates=GOAL),
        evaluation=EvaluationConfig(interval=INTERVAL, episodes=0),
    )
    directory, stop = RunDirectory.create(folder, {"id": "x"}), Stop(lambda line: None)
    kept, nothing = Kept(directory, rng, unwritten), SimpleNamespace
    quiet = lambda *_, **__: None  # noqa: E731
    plan = nothing(populations=((0,),), learners=1, evaluators=1, fitted_q=0, gpu=False)

    async def flush() -> None:
        stop.check_hurry()
        await asyncio.sleep(0)

    def append(name: str, rows: Any) -> None:
        kept.order += [(name, row["updates"]) for row in rows]

    run: Any = nothing(config=config, directory=directory, plan=plan, stop=stop, files=kept)
    run.journal = nothing(append=append, died=quiet, flush=flush, event=quiet)
    run.progress = nothing(say=quiet, advance=quiet)
    run.metrics = nothing(advanced=quiet)
    run.is_checkpoint_due = lambda *_: rng.random() < 0.4
    run.forget_lost_data = quiet
    run.data, run.providing = ["shards"], asyncio.Lock()
    run.snapshots = lambda *_: {}
    run.lacking = lambda name, _, updates: [at for at in updates if (name, at) not in kept.order]
    run.restarting = lambda *args: Run.restarting(run, *args)
    assert len(members(config)) == 1

    async def story() -> None:
        stop.attach()
        training = Training(run)
        training._start = lambda population: Learner(  # type: ignore[assignment, method-assign, return-value]
            training.done[population], rng, deaths
        )
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.request)
        async with group() as tasks:
            training.evaluation.tasks = tasks
            tasks.create_task(training._train_population(0, asyncio.Semaphore(1)))

    with suppress(asyncio.CancelledError):
        asyncio.run(story())
    return kept.order, stop.requested


def check_order(order: list[tuple[str, Any]]) -> None:
    """Each snapshot stands before its checkpoint and that before its rows, all at the interval."""
    for place, (name, content) in enumerate(order):
        if name == "metrics.jsonl":
            before = order[place - 2 : place]
            assert before[0][1] == f"snapshot {content}", order
            assert before[1] == (checkpoint_name(0), f"checkpoint {content}"), order


@pytest.mark.parametrize("seed", range(30))
def test_every_order_of_arrival_ends_with_the_same_snapshots(tmp_path: Path, seed: int) -> None:
    """Deaths now and then: whoever comes after goes on from the checkpoint."""
    try:
        order, stopped = trained(tmp_path / "run", random.Random(seed), 0.1, None)
    except ActorLost:
        return  # four in a row before any checkpoint
    check_order(order)
    rows = [content for name, content in order if name == "metrics.jsonl"]
    assert rows == [30, 60, 90, 100] and not stopped
    assert order[-1] == ("metrics.jsonl", 100)


def test_no_row_stands_twice_where_a_learner_died_before_its_checkpoint_was_written(
    tmp_path: Path,
) -> None:
    """Workers write their files themselves where all nodes see the run, after they have replied."""
    ended = again = 0
    for seed in range(15):
        with suppress(ActorLost):
            order, _ = trained(tmp_path / str(seed), random.Random(seed), 0.15, None, unwritten=0.3)
            names = [content for name, content in order if name.startswith("snapshots")]
            rows = [content for name, content in order if name == "metrics.jsonl"]
            assert rows == [30, 60, 90, 100]
            ended, again = ended + 1, again + (len(names) > len(set(names)))
    assert ended >= 3 and again >= 2, "snapshots were made again"


@pytest.mark.parametrize("seed", range(60))
def test_stopped_at_any_instant_it_leaves_a_last_checkpoint_and_nothing_twice(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    order, stopped = trained(tmp_path / "run", rng, 0.0, rng.random() * 0.015)
    check_order(order)
    rows = [content for name, content in order if name == "metrics.jsonl"]
    assert rows == [30, 60, 90, 100][: len(rows)], "each once"
    snapshots = [content for name, content in order if name.startswith("snapshots")]
    assert snapshots == [f"snapshot {updates}" for updates in rows]
    saved = [int(content.split()[1]) for name, content in order if name == checkpoint_name(0)]
    assert saved == sorted(saved)
    if stopped and saved:
        assert saved[-1] >= max(rows, default=0)
