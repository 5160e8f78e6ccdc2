"""How good policies are: episodes in the environment, and fitted Q evaluation from data alone.

Snapshots are judged while the learners go on. One that could not be, as it went with a node or its
process died, is judged from its file in the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from cqlray import seeding
from cqlray.algorithms.fqe import FQEConfig
from cqlray.errors import ActorLost, Lost
from cqlray.runtime.cluster import put
from cqlray.runtime.event_loop import group, results
from cqlray.runtime.journal import Row
from cqlray.stages.data import data_for_learners
from cqlray.stages.run import DEATHS_IN_A_ROW, Run, died
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import (
    EVALUATIONS,
    FITTED_Q,
    TEACHER,
)
from cqlray.workers.fitted_q import POLICIES_AT_ONCE, FittedQ
from cqlray.workers.rows import merge_rows

# Episodes in one evaluator's call. A constant, so that results never depend on how many evaluators
# there are.
EPISODES_PER_CALL = 10


async def test(run: Run, snapshot: Any, purpose: str, episodes: int) -> list[Row]:
    """One test, its episodes shared out among the evaluators: a row for each member.

    `snapshot` is a reference, or None for uniform actions. Raises Lost where what it refers to is
    gone.
    """
    seeds = seeding.integer_seeds(run.config.seed, purpose, count=episodes)
    parts = [
        tuple(seeds[at : at + EPISODES_PER_CALL]) for at in range(0, episodes, EPISODES_PER_CALL)
    ]
    calls = (run.evaluators().call("evaluate", snapshot, part) for part in parts)
    rows = merge_rows(await results(calls, at_once=len(parts)))
    run.metrics.played("evaluator", sum(sum(row["lengths"]) for row in rows))
    return rows


class Evaluation:
    """Judges the snapshots of a run's populations, in tests and by fitted Q, and writes down the
    rows.

    However many wait: to bound them would hold up learners. A waiting snapshot is some kilobytes
    here, and its bytes are in Ray's object store, which spills; those that are judged from their
    files are read a few at a time.

    Fitted Q takes several policies for little more than one. Which snapshots go into one call is
    fixed by their updates, so that the numbers, which depend on it by rounding, are the same
    however a run went.
    """

    def __init__(self, run: Run, tests: bool, fits: bool) -> None:
        """`tests` and `fits` say how snapshots are judged."""
        self.run = run
        self.files = [file for file, wanted in ((EVALUATIONS, tests), (FITTED_Q, fits)) if wanted]
        self.tasks: asyncio.TaskGroup | None = None  # in which snapshots are judged
        self.at_work: set[tuple[str, int, int]] = (
            set()
        )  # file, population, updates of what is not done
        self.blocks: dict[
            tuple[int, int], dict[int, Any]
        ] = {}  # of fits, until all snapshots are in
        self.newest = "no test yet"
        self.loss: Lost | None = None  # the newest death
        self.readers = asyncio.Semaphore(2 * max(run.plan.evaluators, run.plan.fitted_q))
        self.watch: Callable[[], None] = lambda: None  # called when rows came

    def judge(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin all judgements of a snapshot, a reference to it."""
        for file in self.files:
            self._begin(file, population, updates, snapshot)

    def make_up_for(self, population: int, done: int) -> None:
        """Begin what an earlier session or learner did not get to: snapshots up to `done` that lack
        a row.
        """
        for file, updates, path in self._lacking(population, done):
            if (file, population, updates) not in self.at_work:
                self._begin(file, population, updates, path)

    async def finish(self, done: Callable[[int], int] = lambda population: sys.maxsize) -> None:
        """Judge, from the files, all snapshots that still lack a row; once more where processes die
        of it.

        `done` says up to which updates a population's snapshots count. Blocks of fits that will not
        fill up are fitted as they are; once the run has gone on and such a block is whole, it is
        fitted anew, and its later rows are the ones that count.

        Raises:
            ActorLost: nobody lives long enough to judge them.
        """
        for _ in range(DEATHS_IN_A_ROW + 1):
            self.at_work.clear()
            self.blocks.clear()
            async with group() as self.tasks:
                for population in range(len(self.run.plan.populations)):
                    self.make_up_for(population, done(population))
                for (population, _), block in sorted(self.blocks.items()):
                    self._spawn(self._fit(population, block))
                self.blocks.clear()
                began = sorted(self.at_work)
                self.watch()
            if not began:
                return
        lacking = [
            (file, population, updates)
            for population in range(len(self.run.plan.populations))
            for file, updates, _ in self._lacking(population, done(population))
        ]
        if lacking:
            raise self._unjudged(sorted(lacking))

    def _lacking(self, population: int, done: int) -> list[tuple[str, int, Location]]:
        """File, updates and place of what is to be judged; for fits the whole blocks."""
        snapshots = self.run.snapshots(population, done)
        found: list[tuple[str, int, Location]] = []
        for file in self.files:
            lacking = self.run.lacking(file, population, snapshots)
            if file == FITTED_Q:
                blocks = {self._block(population, updates) for updates in lacking}
                lacking = [at for at in snapshots if self._block(population, at) in blocks]
            found += [(file, updates, snapshots[updates]) for updates in sorted(lacking)]
        return found

    def _begin(self, file: str, population: int, updates: int, snapshot: Any) -> None:
        self.at_work.add((file, population, updates))
        if file == EVALUATIONS:
            self._spawn(self._test(population, updates, snapshot))
        else:
            self._gather(population, updates, snapshot)

    def _spawn(self, story: Coroutine[Any, Any, None]) -> None:
        assert self.tasks is not None
        self.tasks.create_task(story)

    @asynccontextmanager
    async def _in_store(self, *snapshots: Any) -> AsyncIterator[list[Any]]:
        """References to snapshots, of which some may be files; not many of these at a time."""
        files = any(isinstance(snapshot, Location) for snapshot in snapshots)
        async with self.readers if files else nullcontext():
            yield [put(s.read_bytes()) if isinstance(s, Location) else s for s in snapshots]

    # -- tests -------------------------------------------------------------------------------------

    async def _test(self, population: int, updates: int, snapshot: Any) -> None:
        members = self.run.plan.populations[population]
        episodes = self.run.config.evaluation.episodes
        try:
            async with self._in_store(snapshot) as (reference,):
                rows = await test(self.run, reference, "evaluation", episodes)
        except Lost as error:
            self.loss = error
            return
        finally:
            self.at_work.discard((EVALUATIONS, population, updates))
        for member, row in zip(members, rows, strict=True):
            self.run.metrics.tested(str(member), row["returns"])
        keys = [{"policy": "student", "member": member, "updates": updates} for member in members]
        self.run.journal.append(
            EVALUATIONS, [{**key, **row} for key, row in zip(keys, rows, strict=True)]
        )
        returns = [value for row in rows for value in row["returns"]]
        self.newest = f"mean return {sum(returns) / len(returns):.0f} at {updates:,}"
        self.watch()

    # -- fitted Q ----------------------------------------------------------------------------------

    def _block(self, population: int, updates: int) -> tuple[int, int]:
        """Population and number of the block that a snapshot belongs to."""
        index = -(-updates // self.run.config.evaluation.interval) - 1
        return population, index // self._per_block(population)

    def _per_block(self, population: int) -> int:
        return max(1, POLICIES_AT_ONCE // len(self.run.plan.populations[population]))

    def _gather(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin a block's fits once its snapshots are all there; the last one may be small."""
        key = self._block(population, updates)
        block = self.blocks.setdefault(key, {})
        block[updates] = snapshot
        interval, size = self.run.config.evaluation.interval, self._per_block(population)
        goal = self.run.config.cql.num_updates
        ends = {min((key[1] * size + place + 1) * interval, goal) for place in range(size)}
        if block.keys() == ends:
            self._spawn(self._fit(population, self.blocks.pop(key)))

    async def _fit(self, population: int, block: dict[int, Any]) -> None:
        try:
            snapshots = [block[updates] for updates in sorted(block)]
            async with self._in_store(*snapshots) as references:
                rows = await self._judges().call("evaluate", *references)
        except Lost as error:
            self.loss = error
            return
        finally:
            self.at_work -= {(FITTED_Q, population, updates) for updates in block}
        self.run.journal.append(FITTED_Q, rows)
        if EVALUATIONS not in self.files:
            newest = max(block)
            own = [row["fqe_return"] for row in rows if row["updates"] == newest]
            found = [estimate for estimate in own if estimate is not None]
            mean = sum(found) / max(1, len(found))
            self.newest = f"estimated return {mean:.1f} at {newest:,}"
        self.watch()

    def _judges(self) -> Any:
        run = self.run
        if "fitted_q" in run.pools:
            return run.pools["fitted_q"]
        settings = (run.config.seed, run.spec.scaling, run.config.cql.discount, 1, FQEConfig())
        size = max(1, run.plan.fitted_q)
        return run.pool(FittedQ, "fitted_q", size, *settings, *data_for_learners(run))

    def _unjudged(self, lacking: list[tuple[str, int, int]]) -> ActorLost:
        """What to say where processes died of what they were given, again and again."""
        file, population, updates = lacking[0]
        why = "" if self.loss is None else f": {self.loss}"
        return ActorLost(
            f"judgements missing: {len(lacking)}, the first in {file} of population {population}"
            f" after {updates:,} updates; the processes that were to judge died{why}"
        )


async def fit_q(run: Run) -> None:
    """Judge all snapshots that lack it by fitted Q evaluation, and keep what comes of it.

    Raises:
        ActorLost: a judge does not stay alive.
    """
    evaluation = Evaluation(run, tests=False, fits=True)
    populations = range(len(run.plan.populations))
    total = sum(len(evaluation._lacking(population, sys.maxsize)) for population in populations)
    run.progress.stage("fitted Q", total, "snapshots")
    evaluation.watch = lambda: run.progress.advance(
        total - len(evaluation.at_work), evaluation.newest
    )
    await evaluation.finish()
    run.dismiss("fitted_q")
    run.progress.finish(evaluation.newest)


async def evaluate_again(run: Run, episodes: int) -> list[Row]:
    """Test on the same fresh episodes the random policy, the teacher if it is in this run, and each
    population's last snapshot; rows as in evaluations.jsonl, nothing is written.

    Raises:
        ActorLost: an evaluator does not stay alive.
    """
    policies: list[tuple[bytes | None, list[Row]]] = []
    policies.append((None, [{"policy": "random", "member": None, "updates": None}]))
    if (best := best_of_teacher(run)) is not None:
        policies.append((best, [{"policy": "teacher", "member": None, "updates": None}]))
    for population, members in enumerate(run.plan.populations):
        last, path = run.directory.last_snapshot(population)
        keys: list[Row] = [{"policy": "student", "member": m, "updates": last} for m in members]
        policies.append((path.read_bytes(), keys))
    try:
        stories = (_rows_of(run, snapshot, keys, episodes) for snapshot, keys in policies)
        found = await results(stories, at_once=len(policies))
    except Lost as error:
        raise died("an evaluator", error) from None
    rows = [row for part in found for row in part]
    return sorted(rows, key=lambda row: -1 if row["member"] is None else row["member"])


async def _rows_of(run: Run, snapshot: bytes | None, keys: list[Row], episodes: int) -> list[Row]:
    reference = None if snapshot is None else put(snapshot)
    rows = await test(run, reference, "evaluate-again", episodes)
    return [{**key, **row} for key, row in zip(keys, rows, strict=True)]


def best_of_teacher(run: Run) -> bytes | None:
    """The teacher's best snapshot; None where there is no teacher, or its files were removed."""
    if not (run.directory / TEACHER).is_file():
        return None
    path = run.directory / run.directory.best_teacher_snapshot()
    return path.read_bytes() if path.is_file() else None
