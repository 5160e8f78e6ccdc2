"""The main stage: learners train the students, while each snapshot is evaluated.

Files are written in this order: a learner's snapshot, its checkpoint, then (by the driver) the
snapshot's metrics and evaluations. If the driver died before these, the next session adds them for
all snapshots up to the checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, NamedTuple, cast

from cqlray.config.members import Member, members
from cqlray.errors import Lost, UserError
from cqlray.runtime.cluster import Actor, Reply
from cqlray.runtime.event_loop import group
from cqlray.stages.data import give_back, provide_data
from cqlray.stages.evaluate import Evaluation
from cqlray.stages.run import STOPPING, Run
from cqlray.storage import checkpoint
from cqlray.storage.rows import Metrics, StudentMetrics
from cqlray.storage.run_directory import MEMBERS, METRICS, checkpoint_name, snapshot_name
from cqlray.workers.learner import Advance, Learner, LearnerSpec, StudentFiles

SECONDS_PER_ADVANCE = 2.0


class Step(NamedTuple):
    """The result of a learner's call: numbers, a snapshot, and a checkpoint to be written."""

    reply: Reply
    saves: bool  # a checkpoint was requested, even without a snapshot


class Training:
    """The populations of a run, their learners, and the progress of each."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.plan = run, run.config, run.plan
        self.members = members(run.config)
        self.populations = range(len(run.plan.populations))
        self.done = [self._updates_saved(population) for population in self.populations]
        frozen = run.directory.manifest().get("frozen", {})
        self.frozen = {int(member): updates for member, updates in frozen.items()}
        self.busy_seconds = 0.0
        evaluation = run.config.evaluation
        self.evaluation = Evaluation(run, evaluation.episodes > 0, bool(evaluation.fitted_q))

    async def train(self) -> None:
        """Train all populations, one for each learner at a time, and evaluate every snapshot."""
        run = self.run
        listed = [{"member": m.index, "seed": m.seed, "swept": m.swept} for m in self.members]
        run.journal.write_json(MEMBERS, listed)
        total = sum(self._goal(p) * len(self.plan.populations[p]) for p in self.populations)
        run.progress.stage("students", total, "updates", self._member_updates())
        seats = asyncio.Semaphore(self.plan.learners)
        try:
            async with group() as tasks:
                self.evaluation.tasks = tasks
                for population in self.populations:
                    tasks.create_task(self._train_population(population, seats))
            await self.evaluation.finish(lambda population: self.done[population])
        finally:
            run.journal.busy("learner", self.plan.learners, self.busy_seconds)
            await give_back(run)
        run.dismiss("evaluator", "fitted_q")
        run.progress.finish(self.evaluation.newest)

    def _goal(self, population: int) -> int:
        return self._members_of(population)[0].cql.num_updates

    def _members_of(self, population: int) -> list[Member]:
        return [self.members[index] for index in self.plan.populations[population]]

    def _member_updates(self) -> int:
        return sum(self.done[p] * len(self.plan.populations[p]) for p in self.populations)

    def _updates_saved(self, population: int) -> int:
        """The update count of the population's checkpoint."""
        directory, name = self.run.directory, checkpoint_name(population)
        if not directory.has(name):
            return 0
        return int(checkpoint.read_metadata(directory / name)["updates"])

    # -- one population ----------------------------------------------------------------------------

    async def _train_population(self, population: int, seats: asyncio.Semaphore) -> None:
        """Train a population to its last update; replace its learner whenever that dies."""
        async with seats:
            await self.run.restarting(
                "a learner",
                "learner",
                lambda: self._updates_saved(population),
                lambda: self._live(population),
                f"a learner died and is replaced (population {population})",
            )

    async def _live(self, population: int) -> None:
        """Run one learner, from the population's checkpoint if there is one."""
        self.done[population] = self._updates_saved(population)
        self._catch_up(population)
        if self.done[population] >= self._goal(population):
            return  # also if the previous learner died after its last checkpoint
        await provide_data(self.run)
        learner = self._start(population)
        try:
            await self._learn(population, learner)
        finally:
            learner.kill()

    def _start(self, population: int) -> Actor:
        run, saved = self.run, []
        if self.done[population]:
            saved = run.files.sources([checkpoint_name(population)])
        spec = LearnerSpec(
            members=self._members_of(population),
            run_seed=self.config.seed,
            scaling=run.spec.scaling,
            interval=self.config.evaluation.interval,
            device="cuda" if self.plan.gpu else "cpu",
            threads=self.plan.threads,
            precision=self.config.precision,
            files=StudentFiles(run.files.outbox, population),
        )
        return run.cluster.start(
            Learner,
            spec,
            *(saved or [None]),
            *run.data,
            cpus=self.plan.cpus["learner"],
            gpus=int(self.plan.gpu),
            spread=not self.plan.gpu,
            name=f"learner of population {population}",
        )

    async def _learn(self, population: int, learner: Actor) -> None:
        """Make a learner's calls; each result is stored while the learner makes the next call."""
        saved_at = time.monotonic()
        steps = deque([self._ask(learner, saved_at)])
        answered = False
        try:
            while steps:
                result = await steps[0].reply
                answered = True
                if result.metrics is not None or steps[0].saves:
                    saved_at = time.monotonic()
                if result.updates < self._goal(population) and len(steps) == 1:
                    steps.append(self._ask(learner, saved_at))
                await self._keep(population, steps[0], result)
                steps.popleft()
        except asyncio.CancelledError:
            if answered and self.run.stop.requested:
                await self._stop(population, learner, steps)
            raise

    def _ask(self, learner: Actor, saved_at: float) -> Step:
        saves = self.run.is_checkpoint_due(learner, saved_at)
        return Step(learner.ask("step", SECONDS_PER_ADVANCE, saves, returns=3), saves)

    async def _stop(self, population: int, learner: Actor, steps: deque[Step]) -> None:
        """Let a learner finish its call and save a last checkpoint.

        A second request to stop does not wait for it.
        """
        self.run.stop.check_hurry()
        self.run.stop.announce(STOPPING)
        try:
            for step in steps:
                await self._keep(population, step, await step.reply)
            if self.done[population] < self._goal(population):
                last = learner.ask("save")
                await last
                await self.run.files.keep({checkpoint_name(population): last.references[0]})
        except Lost:  # the previous checkpoint remains
            pass

    # -- a call's result ---------------------------------------------------------------------------

    async def _keep(self, population: int, step: Step, result: Advance) -> None:
        """Store the snapshot, the checkpoint, then the rows: all of them, or none if cancelled."""
        snapshot, handed_back = step.reply.references[1:]
        left = {}
        if result.metrics is not None:
            left[snapshot_name(population, result.updates)] = snapshot
        if result.metrics is not None or step.saves:
            left[checkpoint_name(population)] = handed_back
        await self.run.files.keep(left)
        made = (result.updates - self.done[population]) * len(self.plan.populations[population])
        self.run.metrics.advanced(population, made, result.seconds)
        self.busy_seconds += result.seconds
        self.done[population] = result.updates
        if result.metrics is not None:
            # The row is there if a learner died after it and before its checkpoint.
            if self.run.lacking(METRICS, population, [result.updates]):
                self._append_metrics(population, result.updates, result.metrics)
            if not self.run.stop.requested:
                self.evaluation.evaluate(population, result.updates, snapshot)
        self._report_frozen(result.frozen)
        self.run.progress.advance(self._member_updates(), self.evaluation.newest)

    def _append_metrics(
        self, population: int, updates: int, metrics: dict[str, list[float]]
    ) -> None:
        rows: list[StudentMetrics] = []
        for place, member in enumerate(self.plan.populations[population]):
            means = cast(Metrics, {name: values[place] for name, values in metrics.items()})
            rows.append({"stage": "students", "member": member, "updates": updates, **means})
        self.run.journal.append(METRICS, rows)

    def _report_frozen(self, frozen: dict[int, int]) -> None:
        fresh = {member: at for member, at in frozen.items() if member not in self.frozen}
        for member, at in fresh.items():
            why = f"member {member} became non-finite and is frozen as it was after {at} updates"
            self.run.progress.say(why)
            self.run.journal.event("frozen", member=member, updates=at)
        if not fresh:
            return
        self.frozen |= fresh
        self.run.journal.note(frozen={str(member): at for member, at in self.frozen.items()})
        if self.config.non_finite == "fail":
            raise UserError(
                f"member {min(fresh)} became non-finite (non_finite: fail);"
                " lower cql.critic_learning_rate"
            )

    def _catch_up(self, population: int) -> None:
        """Add metrics and evaluations, up to the checkpoint, that an earlier session missed."""
        snapshots = self.run.snapshots(population, self.done[population])
        for updates in self.run.lacking(METRICS, population, snapshots):
            metrics: dict[str, Any] = checkpoint.read_metadata(snapshots[updates])["metrics"]
            self._append_metrics(population, updates, metrics)
        self.evaluation.catch_up(population, self.done[population])
