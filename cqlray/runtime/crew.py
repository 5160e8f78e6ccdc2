"""Who works on a run and what they leave: teams of actors, writes in the background, metrics, and
what happened when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cqlray import seeding
from cqlray.config.schema import RunConfig
from cqlray.data import shards as shard_files
from cqlray.data.dataset import ShardSummary
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvSpec
from cqlray.errors import NotShared
from cqlray.runtime.cluster import Loop, Lost, Team, describe, put, seen_by_all
from cqlray.runtime.metrics import RunMetrics
from cqlray.runtime.placement import Plan
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import RunDirectory, SharedDirectory, write_bytes, write_json
from cqlray.storage.writer import Writer
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.rollout_worker import RolloutWorker
from cqlray.workers.rows import merge_rows

# Episodes in one evaluator's call. A constant, so that results never depend on how many evaluators
# there are.
EPISODES_PER_CALL = 10
ROLES = {"RolloutWorker": "rollout worker", "Evaluator": "evaluator", "FittedQ": "fitted Q"}

Row = dict[str, Any]


class Crew:
    """What the stages of one run share."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        plan: Plan,
        spec: EnvSpec,
        loop: Loop,
        progress: ProgressDisplay,
    ) -> None:
        self.config, self.directory, self.plan, self.spec = config, directory, plan, spec
        self.loop, self.progress = loop, progress
        self.teams: dict[type[Any], Team] = {}
        self.writer = Writer(loop.check_hurry)
        self.metrics = RunMetrics(lambda: len(self.writer.waiting))
        self.stage, self.stage_began = "", 0.0

    def __enter__(self) -> Crew:
        self.loop.watches.append(self.writer.check)
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    # -- storage -----------------------------------------------------------------------------------

    @cached_property
    def place(self) -> SharedDirectory | None:
        """The run directory as actors write to it themselves, or None where not every node sees it:
        then the driver does.
        """
        run_id = self.directory.manifest().get("id")
        place = SharedDirectory(self.directory.path.absolute(), run_id or "")
        if not isinstance(place.path, Path) or self._one_node():
            return place
        return place if run_id and seen_by_all(place.is_here) else None

    def stop_sharing(self, error: NotShared) -> None:
        """Let the driver alone write and read files from now on: a node that came later does not
        have the directory.
        """
        self.progress.say(f"{error}; from now on all files go through the driver")
        self.event("not shared", what=str(error))
        for role in list(self.teams):
            self.dismiss(role)
        self.loop.close()
        self.writer.flush()
        self.place = None

    def seen_by_learners(self, path: AnyPath) -> bool:
        """Whether learners can read a directory themselves."""
        if not isinstance(path, Path) or (self.place is not None and self._one_node()):
            return True
        run = self.directory.path
        return (
            isinstance(run, Path)
            and path.absolute().is_relative_to(run.absolute())
            and self.place is not None
        )

    def on_all_nodes(self, dataset: AnyPath) -> bool:
        """Whether learners can read a dataset's directory themselves, also where they need not and
        it is not the run's.
        """
        description = dataset.absolute() / "dataset.json"
        if self.seen_by_learners(dataset):
            return True
        return description.exists() and seen_by_all(
            partial(_holds, description, description.read_bytes())
        )

    def _one_node(self) -> bool:
        return self.plan.cluster.nodes == 1 and not self.plan.cluster.grows

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, in its turn."""
        self.writer.submit(partial(write_bytes, self.directory / name, data), len(data))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, in its turn."""
        self.writer.submit(partial(write_json, self.directory / name, value))

    def write_now(self, name: str, data: bytes) -> None:
        """Write a file of the run; for what runs in its turn."""
        write_bytes(self.directory / name, data)

    def append(self, name: str, rows: list[Row]) -> None:
        """Append JSON lines, in their turn."""
        self.writer.submit(partial(self.directory.append, name, rows))

    def note(self, **values: Any) -> None:
        """Set keys of the manifest, in their turn."""
        self.writer.submit(partial(self.directory.update_manifest, **values))

    def relay(self, write: Callable[[], None]) -> None:
        """Have somebody's bytes fetched and written, in their turn: for storage that only the
        driver's machine has.
        """
        self.writer.submit(write)

    def event(self, event: str, **values: Any) -> None:
        """A line of events.jsonl, the run's time line."""
        self.append("events.jsonl", [{"at": round(time.time(), 3), "event": event, **values}])

    def died(self, role: str, error: Exception) -> None:
        """Note that a process is gone."""
        self.event("death", role=role, what=describe(error))

    def read_shard(self, name: str) -> Shard:
        """A shard of the run directory."""
        return shard_files.from_parquet(
            (self.directory / name).read_bytes(), str(self.directory / name)
        )

    # -- stages ------------------------------------------------------------------------------------

    def run_stage(self, name: str, work: Callable[[], None]) -> None:
        """Do a stage; note the seconds it took, over all sessions, and how busy its actors were.

        All is written then.
        """
        self.stage, self.stage_began = name, time.monotonic()
        self.event("stage", stage=name, what="began")
        try:
            work()
            self.event("stage", stage=name, what="ended")
        finally:
            for role in list(self.teams):
                self._note_busy(role)
            self.writer.submit(
                partial(self._add_seconds, name, time.monotonic() - self.stage_began)
            )
            self.writer.flush()

    def _add_seconds(self, stage: str, seconds: float) -> None:
        before = self.directory.manifest().get("stages", {})
        self.directory.update_manifest(
            stages={**before, stage: round(before.get(stage, 0.0) + seconds, 2)}
        )

    def note_learners(self, busy_seconds: float) -> None:
        """How busy the learners were in this stage."""
        self._busy("learner", self.plan.learners, busy_seconds)

    def _note_busy(self, role: type[Any]) -> None:
        team = self.teams[role]
        self._busy(ROLES[role.__name__], len(team.actors), team.busy_seconds)
        team.busy_seconds = 0.0

    def _busy(self, role: str, processes: int, busy_seconds: float) -> None:
        seconds = round(time.monotonic() - self.stage_began, 3)
        busy = round(busy_seconds, 3)
        self.event(
            "busy",
            stage=self.stage,
            role=role,
            processes=processes,
            busy_seconds=busy,
            seconds=seconds,
        )

    # -- teams -------------------------------------------------------------------------------------

    def team(self, role: type[Any], size: int, share: str, *args: Any) -> Team:
        """The role's actors, made with `args`, started when first needed."""
        if role not in self.teams:
            cpus = self.plan.cpus[share]
            actors = [
                self.loop.create(
                    role, *args, cpus=cpus, retried=True, spread=True, name=f"{share} {number}"
                )
                for number in range(size)
            ]
            self.teams[role] = Team(self.loop, actors, partial(self.metrics.team, share))
        return self.teams[role]

    def dismiss(self, role: type[Any]) -> None:
        """End the role's actors, if there are any."""
        if role in self.teams:
            self._note_busy(role)
            self.teams.pop(role).dismiss()

    def play(
        self,
        calls: Sequence[Callable[[Any], Any]],
        then: Callable[[int, ShardSummary, Any], None] = lambda place, summary, shard: None,
    ) -> list[Any]:
        """Have the rollout workers make shards; references to them in the calls' order, `then` told
        as each arrives.

        A call makes the request of the worker it is given, whose two results are a shard's summary
        and the shard.
        """
        shards: dict[int, Any] = {}

        def arrived(place: int, summary: ShardSummary, references: Sequence[Any]) -> None:
            shards[place] = references[1]
            self.metrics.shards.inc()
            self.metrics.played("rollout_worker", summary.transitions)
            then(place, summary, references[1])

        team = self.team(
            RolloutWorker, self.plan.rollout_workers, "rollout_worker", self.config.env, self.spec
        )
        for place, call in enumerate(calls):
            team.call(call, partial(arrived, place))
        self.loop.run()
        return [shards[place] for place in range(len(calls))]

    # -- tests -------------------------------------------------------------------------------------

    def test(self, snapshot: bytes | None, purpose: str, episodes: int) -> list[Row]:
        """Rows of one test, waited for."""
        results: list[list[Row]] = []
        self.begin_test(
            None if snapshot is None else put(snapshot), purpose, episodes, results.append
        )
        self.loop.run()
        return results[0]

    def begin_test(
        self,
        snapshot: Any,
        purpose: str,
        episodes: int,
        then: Callable[[list[Row]], None],
        lost: Callable[[Lost], None] | None = None,
    ) -> None:
        """Share a test's episodes out among the evaluators; `then` gets a row for each member.

        `snapshot` is a reference, or None for uniform actions; `lost` is told when what it refers
        to is gone.
        """
        seeds = seeding.integer_seeds(self.config.seed, purpose, count=episodes)
        parts = [
            tuple(seeds[first : first + EPISODES_PER_CALL])
            for first in range(0, episodes, EPISODES_PER_CALL)
        ]
        results: dict[int, list[Row]] = {}

        def arrived(part: int, rows: list[Row], _: Sequence[Any]) -> None:
            results[part] = rows
            self.metrics.played("evaluator", sum(sum(row["lengths"]) for row in rows))
            if len(results) == len(parts):
                then(merge_rows([results[index] for index in range(len(parts))]))

        team = self.team(Evaluator, self.plan.evaluators, "evaluator", self.config.env, self.spec)
        for index, part in enumerate(parts):
            team.call(
                lambda evaluator, part=part: evaluator.evaluate.remote(snapshot, part),  # type: ignore[misc]
                partial(arrived, index),
                lost,
            )


def _holds(file: AnyPath, content: bytes) -> bool:
    """Whether a file is there and the same."""
    return file.exists() and file.read_bytes() == content
