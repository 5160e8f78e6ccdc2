"""The stages that a run is for: learners train the students, and each snapshot is judged meanwhile.

What a learner leaves, in this order: the snapshot, then the checkpoint, then (by the driver) the
metrics and judgements of the snapshot. A driver that died before the last two finds the snapshots
up to the checkpoint, and makes up for them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from cqlray.config.schema import Member, members
from cqlray.errors import ActorLost, Interrupted, UserError
from cqlray.runtime.cluster import LOST, Loop, Lost, describe, fetch, kill
from cqlray.runtime.crew import Crew, Row
from cqlray.stages.evaluate import Judges, missing, snapshots_of
from cqlray.storage import checkpoint
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.files import checkpoint_name, snapshot_name
from cqlray.workers.fitted_q import FittedQ
from cqlray.workers.learner import Advance, Learner, LearnerSpec, StudentFiles

SECONDS_PER_ADVANCE = 2.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0
SECONDS_BETWEEN_LAST_CHECKPOINTS = 5.0  # on a node that is being drained
DEATHS_IN_A_ROW = 3  # of one actor, without progress between them
STOPPING = "stopping after a last checkpoint (Ctrl-C again: without it)"


class Students:
    """The populations of a run, their learners, and where each stands."""

    def __init__(self, crew: Crew, data: list[Any], data_again: Callable[[], list[Any]]) -> None:
        """`data` are references to the shards or one StoredData; `data_again` gives it anew when a
        node is gone.
        """
        self.crew, self.config, self.plan = crew, crew.config, crew.plan
        self.loop, self.progress = crew.loop, crew.progress
        self.data, self.data_again = data, data_again
        self.members = members(self.config)
        self.done = [0] * len(self.plan.populations)  # updates of each population
        self.began_at = [0] * len(
            self.plan.populations
        )  # updates that its present learner went on from
        self.deaths = [0] * len(
            self.plan.populations
        )  # of its learners, since its checkpoint last rose
        self.queue: deque[int] = deque()  # populations that no learner has yet
        self.at_work: dict[
            int, tuple[Any, Any]
        ] = {}  # population -> learner, and the reference of its call
        self.answered: set[int] = set()  # populations whose learner is there
        self.frozen: dict[int, int] = {}  # member -> updates at its last good state
        self.not_fetched: dict[
            int, Lost
        ] = {}  # population -> why what its learner left last is gone with it
        self.busy_seconds = 0.0
        self.stopping = False
        evaluation = self.config.evaluation
        self.judges = Judges(
            crew, lambda: self.data, evaluation.episodes > 0, bool(evaluation.fitted_q)
        )

    def train(self) -> None:
        """Train all populations, as many at a time as there are learners, and have every snapshot
        tested.
        """
        listed = [{"member": m.index, "seed": m.seed, "swept": m.swept} for m in self.members]
        self.crew.write_json("members.json", listed)
        frozen = self.crew.directory.manifest().get("frozen", {})
        self.frozen = {int(member): updates for member, updates in frozen.items()}
        total = sum(self._goal(p) * len(self.plan.populations[p]) for p in range(len(self.done)))
        self.queue = deque(range(len(self.done)))
        for population in self.queue:
            self._look_at_checkpoint(population)
        self.progress.stage("students", total, "updates", self._member_updates())
        try:
            for _ in range(self.plan.learners):
                self._next_population()
            self.loop.run()
            self._test_what_was_lost()
        except Interrupted:
            self._last_checkpoints()
            raise
        finally:
            self.crew.note_learners(self.busy_seconds)
        for role in (Evaluator, FittedQ):
            self.crew.dismiss(role)
        self.progress.finish(self.judges.newest)

    def _goal(self, population: int) -> int:
        return self._members_of(population)[0].cql.num_updates

    def _members_of(self, population: int) -> list[Member]:
        return [self.members[index] for index in self.plan.populations[population]]

    def _member_updates(self) -> int:
        return sum(
            done * len(own) for done, own in zip(self.done, self.plan.populations, strict=True)
        )

    # -- learners ----------------------------------------------------------------------------------

    def _next_population(self) -> None:
        while self.queue:
            population = self.queue.popleft()
            self._make_up_for(population)
            if self.done[population] < self._goal(population):
                self._start_learner(population)
                return

    def _start_learner(self, population: int) -> None:
        """A learner for the population, from its checkpoint if there is one."""
        place, saved, path = (
            self.crew.place,
            None,
            self.crew.directory / checkpoint_name(population),
        )
        if place is None and path.exists():
            saved = path.read_bytes()
        spec = LearnerSpec(
            members=self._members_of(population),
            run_seed=self.config.seed,
            scaling=self.crew.spec.scaling,
            interval=self.config.evaluation.interval,
            device="cuda" if self.plan.gpu else "cpu",
            threads=self.plan.threads,
            precision=self.config.precision,
            files=None if place is None else StudentFiles(place, population),
        )
        learner = self.loop.create(
            Learner,
            spec,
            saved,
            *self.data,
            cpus=self.plan.cpus["learner"],
            gpus=int(self.plan.gpu),
            spread=not self.plan.gpu,
            name=f"learner of population {population}",
        )
        self.began_at[population] = self.done[population]
        self._advance(population, learner, time.monotonic())

    def _advance(self, population: int, learner: Any, saved_at: float) -> None:
        """The learner's next call; what it brings is written, tested, and followed by the call
        after.
        """
        due = is_due(self.loop, learner, saved_at)
        said, snapshot, saved = learner.step.options(num_returns=3).remote(SECONDS_PER_ADVANCE, due)

        def advanced(result: Advance) -> None:
            own = self.plan.populations[population]
            self.crew.metrics.advanced(
                population, (result.updates - self.done[population]) * len(own), result.seconds
            )
            self.busy_seconds += result.seconds
            self.done[population] = result.updates
            del self.at_work[population]
            self.answered.add(population)
            finished = result.updates == self._goal(population)
            if self.stopping and not finished:
                self._save(population, learner)
            elif not finished:
                self._advance(
                    population,
                    learner,
                    time.monotonic() if result.metrics is not None or due else saved_at,
                )
            self._record(
                population, result, snapshot, saved if result.metrics is not None or due else None
            )
            if finished:
                self._dismiss(population, learner)

        self.at_work[population] = learner, said
        self.loop.on(said, advanced, partial(self._died, population))

    def _dismiss(self, population: int, learner: Any) -> None:
        """End a learner that is done, once what it left is written, and give its place to the next
        population.
        """
        if (
            self.crew.place is None
        ):  # then its last files are on its node alone until the driver has them
            self.crew.writer.flush()
            self._look_at_checkpoint(population)
        kill(learner)
        if self.done[population] < self._goal(population):
            self._died(population, self.not_fetched[population])
            return
        if not self.stopping:
            self._next_population()

    def _died(self, population: int, error: Lost) -> None:
        self.at_work.pop(population, None)
        self.answered.discard(population)
        if self.stopping:
            return
        self.crew.writer.flush()
        self._look_at_checkpoint(population)
        rose = (
            self.done[population] > self.began_at[population]
        )  # calls that returned keep nothing by themselves
        self.deaths[population] = 1 if rose else self.deaths[population] + 1
        if self.deaths[population] > DEATHS_IN_A_ROW:
            raise lost("a learner", error)
        self.progress.say(
            f"a learner died and is replaced (population {population}): {describe(error)}"
        )
        self.crew.died("learner", error)
        self.data = self.data_again()
        self._make_up_for(population)
        if self.done[population] < self._goal(population):
            self._start_learner(population)
        else:  # it died between its last checkpoint and its last word
            self._next_population()

    def _look_at_checkpoint(self, population: int) -> None:
        path = self.crew.directory / checkpoint_name(population)
        self.done[population] = checkpoint.read_metadata(path)["updates"] if path.exists() else 0

    def _last_checkpoints(self) -> None:
        """Asked to stop: let each learner end its call and leave a checkpoint.

        A second request does not wait for it.
        """
        self.stopping = True
        there = [
            said for population, (_, said) in self.at_work.items() if population in self.answered
        ]
        if not there:
            return
        self.progress.say(STOPPING)
        self.loop.see_out(there)

    def _save(self, population: int, learner: Any) -> None:
        def kept(saved: bytes | None) -> None:
            if saved is not None:
                self.crew.write(checkpoint_name(population), saved)

        self.loop.on(learner.save.remote(), kept, lambda _: None)

    # -- what they bring ---------------------------------------------------------------------------

    def _record(self, population: int, result: Advance, snapshot: Any, saved: Any) -> None:
        """Keep what a call brought, the checkpoint after the snapshot."""
        if self.crew.place is None and saved is not None:
            name = snapshot_name(population, result.updates) if result.metrics is not None else None
            self.crew.relay(partial(self._relay, population, name, snapshot, saved))
        if result.metrics is not None:
            self.crew.append(
                "metrics.jsonl", self._metric_rows(population, result.updates, result.metrics)
            )
            if not self.stopping:
                self.judges.judge(population, result.updates, snapshot)
        if result.frozen:
            self._report_frozen(result.frozen)
        self.progress.advance(self._member_updates(), self.judges.newest)

    def _relay(self, population: int, name: str | None, snapshot: Any, saved: Any) -> None:
        """Fetch and write for a learner whose machine does not have the directory; runs in the
        writer's thread.
        """
        try:
            files = [(name, fetch(snapshot)), (checkpoint_name(population), fetch(saved))]
        except LOST as error:  # with its learner, which goes on from the checkpoint before
            self.not_fetched[population] = error
            return
        for file, data in files:
            if file is not None:
                self.crew.write_now(file, data)

    def _metric_rows(
        self, population: int, updates: int, metrics: dict[str, list[float]]
    ) -> list[Row]:
        return [
            {"stage": "students", "member": member, "updates": updates}
            | {name: values[place] for name, values in metrics.items()}
            for place, member in enumerate(self.plan.populations[population])
        ]

    def _report_frozen(self, frozen: dict[int, int]) -> None:
        fresh = {member: updates for member, updates in frozen.items() if member not in self.frozen}
        for member, updates in fresh.items():
            self.progress.say(
                f"member {member} became non-finite and is frozen as it was after {updates} updates"
            )
            self.crew.event("frozen", member=member, updates=updates)
        if fresh:
            self.frozen |= fresh
            self.crew.note(frozen={str(member): updates for member, updates in self.frozen.items()})
            if self.config.non_finite == "fail":
                raise UserError(
                    f"member {min(fresh)} became non-finite (non_finite: fail); lower"
                    " cql.critic_learning_rate"
                )

    # -- judgements --------------------------------------------------------------------------------

    def _make_up_for(self, population: int) -> None:
        """Metrics and judgements of snapshots up to the checkpoint that an earlier session or
        learner did not get to.
        """
        snapshots = snapshots_of(self.crew, population, self.done[population])
        rows = [
            row for row in self.crew.directory.rows("metrics.jsonl") if row["stage"] == "students"
        ]
        for updates in missing(snapshots, self.plan.populations[population], rows):
            metrics = checkpoint.read_metadata(snapshots[updates])["metrics"]
            self.crew.append("metrics.jsonl", self._metric_rows(population, updates, metrics))
        self.judges.make_up_for(population, self.done[population])

    def _test_what_was_lost(self) -> None:
        """Snapshots that went with a node before anybody could test them, from their files.

        Raises:
            ActorLost: nobody lives long enough to test them.
        """
        for attempt in range(DEATHS_IN_A_ROW + 1):
            self.crew.writer.flush()
            for population in range(len(self.done)):
                self._make_up_for(population)
            if not self.loop.pending:
                return
            if attempt == DEATHS_IN_A_ROW:
                raise unjudged(self.judges, self.loop)
            self.loop.run()


def is_due(loop: Loop, actor: Any, saved_at: float) -> bool:
    """Whether an actor is to leave a checkpoint again."""
    seconds = time.monotonic() - saved_at
    if seconds > SECONDS_BETWEEN_CHECKPOINTS:
        return True
    return seconds > SECONDS_BETWEEN_LAST_CHECKPOINTS and loop.is_leaving(actor)


def lost(who: str, error: Lost) -> ActorLost:
    """What to say of an actor that does not stay alive."""
    times = DEATHS_IN_A_ROW + 1
    return ActorLost(
        f"{who} died {times} times in a row: {describe(error)} (Ray's logs:"
        " /tmp/ray/session_latest/logs)"
    )


def unjudged(judges: Judges, loop: Loop) -> ActorLost:
    """What to say where judges died of what they were given, again and again."""
    file, population, updates = min(judges.at_work)
    why = "" if loop.loss is None else f": {describe(loop.loss)}"
    return ActorLost(
        f"judgements missing: {len(judges.at_work)}, the first in {file} of population {population}"
        f" after {updates:,} updates; the processes that were to judge died{why}"
    )
