"""The first stage: a teacher learns with SAC, online and in rounds, from the workers' episodes."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

from cqlray import seeding
from cqlray.errors import UserError
from cqlray.runtime.cluster import Actor, put
from cqlray.runtime.event_loop import results
from cqlray.stages.evaluate import test, test_reference
from cqlray.stages.run import STOPPING, Run
from cqlray.storage import checkpoint
from cqlray.storage.locations import Location
from cqlray.storage.rows import RoundReport, TeacherMetrics, TeacherTest
from cqlray.storage.run_directory import (
    EVALUATIONS,
    METRICS,
    TEACHER,
    TEACHER_CHECKPOINT,
    round_name,
    teacher_snapshot_name,
)
from cqlray.workers.rollout_worker import ShardTask
from cqlray.workers.teacher import Teacher


async def teach(run: Run) -> None:
    """Train with SAC online: each round, workers play the newest policy and the teacher learns."""
    if run.directory.has(TEACHER):
        return
    line = "an actor died; going on from the last checkpoint"
    await run.restarting(
        "an actor", "teacher", lambda: Lessons(run).rounds, lambda: Lessons(run).teach(), line
    )


class Lessons:
    """The teacher's rounds, continued from its checkpoint."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.teacher
        self.saved, self.rounds = False, 0  # rounds that the teacher has learnt from
        self.tests: list[TeacherTest] = []
        self.untested: RoundReport | None = None  # the last round's report, until its test
        if run.directory.has(TEACHER_CHECKPOINT):
            progress = checkpoint.read_metadata(run.directory / TEACHER_CHECKPOINT)
            self.saved, self.rounds = True, progress["rounds"]
            self.tests, self.untested = progress["tests"], progress.get("untested")

    async def teach(self) -> None:
        """Make all rounds, then write the teacher's result."""
        run = self.run
        run.progress.stage("teacher", self.config.rounds, "rounds", self.rounds)
        teacher = self._start()
        try:
            await self._go_on(teacher)
        finally:
            teacher.kill()
        await run.journal.flush()
        run.stop.check()
        best, last = max(self.tests, key=lambda row: row["mean_return"]), self.tests[-1]
        await self._test_references(snapshot_of(run, best["round"]))
        result = {
            "rounds": self.rounds,
            "environment_steps": last["environment_steps"],
            "updates": last["updates"],
            "best_round": best["round"],
            "best_return": best["mean_return"],
            "tests": self.tests,
        }
        run.journal.write_json(TEACHER, result)
        steps = f"{last['environment_steps']:,} steps"
        run.progress.finish(f"mean return {best['mean_return']:.0f} after {steps}")

    def _start(self) -> Actor:
        run = self.run
        saved = run.files.sources([TEACHER_CHECKPOINT])[0] if self.saved else None
        return run.cluster.start(
            Teacher,
            self.config,
            run.config.seed,
            run.spec.scaling,
            run.spec.observation_dim,
            saved,
            run.files.outbox,
            *run.files.sources([round_name(index) for index in range(self.rounds)]),
            cpus=run.plan.cpus["teacher"],
            name="teacher",
        )

    async def _go_on(self, teacher: Actor) -> None:
        """Make rounds, with tests and checkpoints when due, and a last checkpoint if stopped."""
        before, saved_at = self.rounds, time.monotonic()
        try:
            while self.untested is not None or not self._is_over():
                if self.untested is None:
                    self.untested = await self._round(teacher)
                    self.rounds += 1
                    self.run.stop.check()
                tested = self._is_test_due()
                if tested:
                    self.tests.append(await self._test(teacher, self.untested))
                self.untested = None
                if tested or self.run.is_checkpoint_due(teacher, saved_at):
                    await self._save(teacher)
                    saved_at = time.monotonic()
                newest = f"mean return {self.tests[-1]['mean_return']:.0f}" if self.tests else ""
                self.run.progress.advance(self.rounds, newest)
        except asyncio.CancelledError:
            if self.run.stop.requested and self.rounds > before:
                self.run.stop.check_hurry()
                await self._save(teacher)
            raise

    def _is_over(self) -> bool:
        """Whether all rounds are made, or the latest tests all reached the return to stop at."""
        goal, tests = self.config.stop_return, self.tests[-self.config.stop_tests :]
        reached = all(test["mean_return"] >= goal for test in tests)
        return self.rounds >= self.config.rounds or (
            len(self.tests) >= self.config.stop_tests and reached
        )

    def _is_test_due(self) -> bool:
        last = self.rounds == self.config.rounds
        return last or self.rounds % self.config.evaluation_interval == 0

    async def _round(self, teacher: Actor) -> RoundReport:
        """Play episodes with the newest policy, then make updates; a request to stop waits for
        these, since nothing can be saved before.
        """
        episodes = await self._play(teacher)
        reply = teacher.ask("learn", self.rounds, *episodes, returns=2)
        report = await self.run.stop.see_out(reply, STOPPING)
        await self._keep_round(reply.references[1])
        number = self.rounds + 1
        if report.pop("diverged"):
            raise UserError(
                f"the teacher became non-finite in round {number};"
                " lower teacher.critic_learning_rate"
            )
        found: RoundReport = report
        row: TeacherMetrics = {"stage": "teacher", "round": number, **found}
        self.run.journal.append(METRICS, [row])
        return found

    async def _keep_round(self, episodes: Any) -> None:
        """The file of the round that the teacher has just learnt, also once asked to stop: without
        it the checkpoint would not count that round.
        """
        file = {round_name(self.rounds): episodes}
        try:
            await self.run.files.keep(file)
        except asyncio.CancelledError:  # nothing of it is kept
            if not self.run.stop.requested:
                raise
            self.run.stop.check_hurry()
            await self.run.files.keep(file)

    async def _play(self, teacher: Actor) -> list[Any]:
        """Have a round's episodes played; returns references to them."""
        index, count = self.rounds, self.config.episodes_per_round
        policy = None
        if index >= self.config.warmup_rounds:
            policy = teacher.ask("snapshot").references[0]
        seeds = seeding.integer_seeds(self.run.config.seed, "teacher-round", index, count=count)
        tasks = [ShardTask(index, "replay", (seed,)) for seed in seeds]
        plays = (self.run.play("play", task, policy, returns=2) for task in tasks)
        return [shard for _, (shard,) in await results(plays, at_once=count)]

    async def _test(self, teacher: Actor, report: RoundReport) -> TeacherTest:
        """Test the newest policy and keep it as a snapshot."""
        snapshot = await teacher.ask("snapshot")
        await self.run.journal.write(teacher_snapshot_name(self.rounds), snapshot)
        episodes = self.config.evaluation_episodes
        (row,) = await test(self.run, put(snapshot), "teacher-test", episodes)
        mean = sum(row["returns"]) / len(row["returns"])
        return {
            "round": self.rounds,
            "environment_steps": report["environment_steps"],
            "updates": report["updates"],
            "mean_return": mean,
        }

    async def _save(self, teacher: Actor) -> None:
        progress = {"rounds": self.rounds, "tests": self.tests}
        if self.untested is not None:
            progress["untested"] = self.untested
        await self.run.journal.write(TEACHER_CHECKPOINT, await teacher.ask("save", progress))

    async def _test_references(self, best: bytes) -> None:
        """Test teacher and random policy on the students' episode seeds, which selected neither."""
        run = self.run
        episodes = run.config.evaluation.episodes or self.config.evaluation_episodes
        policies: tuple[tuple[Literal["teacher", "random"], Any], ...]
        policies = ("teacher", put(best)), ("random", None)
        for policy, snapshot in policies:
            rows = await test_reference(run, policy, snapshot, "evaluation", episodes)
            run.journal.append(EVALUATIONS, rows)


def snapshot_of(run: Run, rounds: int) -> bytes:
    """The bytes of the teacher's snapshot after `rounds` rounds. Raises FileNotFoundError."""
    return Location.parse(run.directory / teacher_snapshot_name(rounds)).read_bytes()
