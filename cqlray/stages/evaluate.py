"""Evaluate policies: by episodes in the environment, and by fitted Q evaluation from data alone.

Snapshots are evaluated while the learners continue. One that was lost with a node or process is
evaluated from its file in the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Literal

from cqlray import seeding
from cqlray.algorithms.fqe import FQEConfig
from cqlray.errors import ActorLost, Lost
from cqlray.runtime.cluster import put
from cqlray.runtime.event_loop import group, results
from cqlray.stages.data import provide_data
from cqlray.stages.run import DEATHS_IN_A_ROW, Run, died
from cqlray.storage.locations import Location
from cqlray.storage.rows import EvaluationRow, FittedQRow, Played, ReferenceTest, StudentTest
from cqlray.storage.run_directory import EVALUATIONS, FITTED_Q, TEACHER, snapshot_name
from cqlray.workers.fitted_q import POLICIES_AT_ONCE, FittedQ
from cqlray.workers.rows import merge_rows

# Episodes in one evaluator's call. A constant, so that results never depend on how many evaluators
# there are.
EPISODES_PER_CALL = 10
# How many waiting snapshots stay in the object store, for each file of rows: each has some hundred
# kilobytes a member.
MOST_HELD = 64


async def test(run: Run, snapshot: Any, purpose: str, episodes: int) -> list[Played]:
    """Run one test, its episodes divided among the evaluators; returns a row for each member.

    `snapshot` is a reference, or None for uniform actions. Raises Lost if the snapshot is gone.
    """
    seeds = seeding.integer_seeds(run.config.seed, purpose, count=episodes)
    parts = [
        tuple(seeds[at : at + EPISODES_PER_CALL]) for at in range(0, episodes, EPISODES_PER_CALL)
    ]
    calls = (run.evaluators().call("evaluate", snapshot, part) for part in parts)
    rows = merge_rows(await results(calls, at_once=len(parts)))
    run.metrics.played("evaluator", sum(sum(row["lengths"]) for row in rows))
    return rows


async def test_reference(
    run: Run, policy: Literal["teacher", "random"], snapshot: Any, purpose: str, episodes: int
) -> list[ReferenceTest]:
    """Test the teacher or the random policy, whose `snapshot` is None; returns one row."""
    (played,) = await test(run, snapshot, purpose, episodes)
    return [{"policy": policy, "member": None, "updates": None, **played}]


async def test_students(
    run: Run, population: int, updates: int, snapshot: Any, purpose: str, episodes: int
) -> list[StudentTest]:
    """Test a population's snapshot; a row for each member. Raises Lost if the snapshot is gone."""
    played = await test(run, snapshot, purpose, episodes)
    return [
        {"policy": "student", "member": member, "updates": updates, **row}
        for member, row in zip(run.plan.populations[population], played, strict=True)
    ]


class Evaluation:
    """Evaluates a run's snapshots, in tests and by fitted Q, and records the rows.

    Any number of snapshots may wait, since a limit would delay learners: a waiting one takes some
    kilobytes of this process. MOST_HELD of them stay in Ray's object store as the learners returned
    them, for each file of rows; the others are read from their files when their turn comes, a few
    at a time.

    Several policies cost fitted Q little more than one, so consecutive snapshots share a call: a
    block. How numbers round depends on the block, so it follows from the update counts alone, and
    is the same however a run went.
    """

    def __init__(self, run: Run, tests: bool, fits: bool) -> None:
        """`tests` and `fits`: whether snapshots are tested, and evaluated by fitted Q."""
        self.run = run
        self.files = [file for file, wanted in ((EVALUATIONS, tests), (FITTED_Q, fits)) if wanted]
        # In which snapshots are evaluated: set by the caller, before anything is evaluated, and by
        # `finish`, before which the caller's has ended.
        self.tasks: asyncio.TaskGroup | None = None
        # File, population and updates of what has begun and has not ended.
        self.at_work: set[tuple[str, int, int]] = set()
        # Blocks of fits, until their snapshots have arrived or `finish` takes them as they are.
        self.blocks: dict[tuple[int, int], dict[int, Any]] = {}
        self.newest = "no test yet"
        self.loss: Lost | None = None  # the newest death
        self.held: set[tuple[str, int, int]] = set()  # those that keep a learner's snapshot
        self.readers = asyncio.Semaphore(2 * max(run.plan.evaluators, run.plan.fitted_q))
        self.watch: Callable[[], None] = lambda: None  # called when rows arrive

    def evaluate(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin all evaluations of a snapshot, given as a reference. Those that have a row or have
        begun are left out: a learner that was replaced makes the same snapshots again.
        """
        path = Location.parse(self.run.directory / snapshot_name(population, updates))
        for file in self.files:
            key = (file, population, updates)
            if key in self.at_work or not self.run.lacking(file, population, [updates]):
                continue
            if sum(held[0] == file for held in self.held) < MOST_HELD:
                self.held.add(key)
                self._begin(*key, snapshot)
            else:
                self._begin(*key, path)

    def catch_up(self, population: int, done: int) -> None:
        """Begin the evaluations that an earlier session or learner missed, up to update `done`."""
        for file, updates, path in self._lacking(population, done):
            if (file, population, updates) not in self.at_work:
                self._begin(file, population, updates, path)

    async def finish(self, done: Callable[[int], int] = lambda population: sys.maxsize) -> None:
        """Evaluate from files all snapshots that still lack a row; repeat if processes die.

        `done` is the update count up to which a population's snapshots count. Blocks of fits that
        will not fill up are fitted as they are; if the run continues and completes such a block, it
        is fitted anew: readers take the last of several rows.

        Raises:
            ActorLost: processes keep dying before they finish.
        """
        for _ in range(DEATHS_IN_A_ROW + 1):
            for waiting in (self.at_work, self.held, self.blocks):
                waiting.clear()
            async with group() as self.tasks:
                for population in range(len(self.run.plan.populations)):
                    self.catch_up(population, done(population))
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
            raise self._still_missing(sorted(lacking))

    def _lacking(self, population: int, done: int) -> list[tuple[str, int, Location]]:
        """Row file, updates and location of each snapshot to evaluate; for fits, whole blocks."""
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

    def _end(self, ended: set[tuple[str, int, int]]) -> None:
        self.at_work -= ended
        self.held -= ended

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self.tasks is not None
        self.tasks.create_task(work)

    @asynccontextmanager
    async def _in_store(self, *snapshots: Any) -> AsyncIterator[list[Any]]:
        """Yield references to snapshots, some of them files; only a few of these at a time."""
        files = any(isinstance(snapshot, Location) for snapshot in snapshots)
        async with self.readers if files else nullcontext():
            references = []
            for snapshot in snapshots:
                is_file = isinstance(snapshot, Location)
                # In a thread: while storage is slow, the loop goes on with the learners' replies.
                reference = (
                    put(await asyncio.to_thread(snapshot.read_bytes)) if is_file else snapshot
                )
                references.append(reference)
            yield references

    # -- tests -------------------------------------------------------------------------------------

    async def _test(self, population: int, updates: int, snapshot: Any) -> None:
        run, episodes = self.run, self.run.config.evaluation.episodes
        try:
            async with self._in_store(snapshot) as (reference,):
                rows = await test_students(
                    run, population, updates, reference, "evaluation", episodes
                )
        except Lost as error:
            self.loss = error
            return
        except FileNotFoundError:  # its learner has not written it yet: `finish` evaluates it
            return
        finally:
            self._end({(EVALUATIONS, population, updates)})
        for row in rows:
            run.metrics.tested(str(row["member"]), row["returns"])
        run.journal.append(EVALUATIONS, rows)
        returns = [value for row in rows for value in row["returns"]]
        self.newest = f"mean return {sum(returns) / len(returns):.0f} at {updates:,}"
        self.watch()

    # -- fitted Q ----------------------------------------------------------------------------------

    def _block(self, population: int, updates: int) -> tuple[int, int]:
        """The population and block number of a snapshot."""
        index = -(-updates // self.run.config.evaluation.interval) - 1
        return population, index // self._per_block(population)

    def _per_block(self, population: int) -> int:
        return max(1, POLICIES_AT_ONCE // len(self.run.plan.populations[population]))

    def _gather(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin a block's fits once all its snapshots have arrived; the last block may be small."""
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
                await provide_data(self.run)
                rows: list[FittedQRow] = await self._fitted_q_pool().call("evaluate", *references)
        except Lost as error:
            self.loss = error
            if error.for_good:  # perhaps because the data that it was made with is gone
                self.run.dismiss("fitted_q")
                self.run.forget_lost_data()
            return
        except FileNotFoundError:  # its learner has not written it yet: `finish` evaluates it
            return
        finally:
            self._end({(FITTED_Q, population, updates) for updates in block})
        self.run.journal.append(FITTED_Q, rows)
        if EVALUATIONS not in self.files:
            newest = max(block)
            own = [row["fqe_return"] for row in rows if row["updates"] == newest]
            found = [estimate for estimate in own if estimate is not None]
            mean = sum(found) / max(1, len(found))
            self.newest = f"estimated return {mean:.1f} at {newest:,}"
        self.watch()

    def _fitted_q_pool(self) -> Any:
        run = self.run
        if "fitted_q" in run.pools:
            return run.pools["fitted_q"]
        settings = (run.config.seed, run.spec.scaling, run.config.cql.discount, 1, FQEConfig())
        size = max(1, run.plan.fitted_q)
        return run.pool(FittedQ, "fitted_q", size, *settings, *run.data)

    def _still_missing(self, lacking: list[tuple[str, int, int]]) -> ActorLost:
        """The error to raise when processes keep dying on the same snapshots."""
        file, population, updates = lacking[0]
        why = "" if self.loss is None else f": {self.loss}"
        return ActorLost(
            f"evaluations missing: {len(lacking)}, the first in {file} of population {population}"
            f" after {updates:,} updates; the processes that were to evaluate died{why}"
        )


async def fit_q(run: Run) -> None:
    """Run fitted Q evaluation on all snapshots that lack it, and record the results.

    Raises:
        ActorLost: a fitted Q process keeps dying.
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


async def evaluate_again(run: Run, episodes: int) -> list[EvaluationRow]:
    """Test the random policy, this run's teacher if it has one, and each population's last snapshot
    on the same new episodes; returns rows as in evaluations.jsonl and writes nothing.

    Raises:
        ActorLost: an evaluator keeps dying.
    """
    try:
        tests = _tests_again(run, episodes)
        found = await results(tests, at_once=2 * run.plan.evaluators)
    except Lost as error:
        raise died("an evaluator", error) from None
    rows = [row for part in found for row in part]
    return sorted(rows, key=lambda row: -1 if row["member"] is None else row["member"])


def _tests_again(run: Run, episodes: int) -> Iterator[Coroutine[Any, Any, Sequence[EvaluationRow]]]:
    purpose = "evaluate-again"
    yield test_reference(run, "random", None, purpose, episodes)
    if (best := best_of_teacher(run)) is not None:
        yield test_reference(run, "teacher", put(best), purpose, episodes)
    for population in range(len(run.plan.populations)):
        updates, path = run.directory.last_snapshot(population)
        snapshot = put(path.read_bytes())
        yield test_students(run, population, updates, snapshot, purpose, episodes)


def best_of_teacher(run: Run) -> bytes | None:
    """The teacher's best snapshot; None if there is no teacher, or its files were removed."""
    if not run.directory.has(TEACHER):
        return None
    name = run.directory.best_teacher_snapshot()
    found = Location.parse(run.directory / name)
    return found.read_bytes() if run.directory.has(name) else None
