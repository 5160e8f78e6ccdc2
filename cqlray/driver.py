"""The file to read first: a run, stage by stage, from top to bottom.

Each stage leaves its result in the run directory before the next begins, and begins by looking for what an earlier
session left there. So a fresh run, a resumed run and a replaced actor are one and the same code: read the directory, go
on. Episodes pass from worker to learner through Ray's object store; the driver holds their references and writes files.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from cqlray import checkpoint, seeding
from cqlray.actors import Loop, Team
from cqlray.config import Member, RunConfig, members
from cqlray.data import dataset as datasets
from cqlray.data import shards as shard_files
from cqlray.data.convert import write_dataset
from cqlray.data.episode import Episode, Shard
from cqlray.data.loading import iterate_shards
from cqlray.data.store import data_bytes, where_data_lives
from cqlray.datasets import is_native, open_configured
from cqlray.envs.make import EnvSpec
from cqlray.errors import ActorLost, UserError
from cqlray.evaluation.rows import merge_rows
from cqlray.filesystem import AnyPath, Location, any_path
from cqlray.metrics import RunMetrics
from cqlray.placement import Plan
from cqlray.policies import last_snapshot
from cqlray.reporting.progress import ProgressDisplay
from cqlray.storage import RunDirectory, read_json, write_bytes, write_json
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.learner import Advance, DataOnDisk, Learner
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask
from cqlray.workers.teacher import Teacher

# Episodes in one evaluator's call. A constant, so that results never depend on how many evaluators there are.
EPISODES_PER_CALL = 10
SECONDS_PER_ADVANCE = 2.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0
DEATHS_IN_A_ROW = 3  # of one actor, without progress between them

Row = dict[str, Any]


class Driver:
    """One run: its config, directory and plan, the calls in flight, and the stages."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, plan: Plan, spec: EnvSpec, loop: Loop, progress: ProgressDisplay
    ) -> None:
        self.config, self.directory, self.plan, self.spec = config, directory, plan, spec
        self.loop, self.progress = loop, progress
        self.members = members(config)
        self.data: list[Any] = []  # references to the shards in the dataset's order, or one DataOnDisk
        self.teams: dict[type[Any], Team] = {}
        self.done = [0] * len(plan.populations)  # updates of each population
        self.deaths = [0] * len(plan.populations)  # of its learners, since the last progress
        self.queue: deque[int] = deque()  # populations that no learner has yet
        self.newest = "no test yet"
        self.metrics = RunMetrics()

    def run(self) -> None:
        """All stages, from wherever the directory stands."""
        if self.config.dataset is None:
            self.make_dataset()
        else:
            self._stage("dataset", self.adopt_dataset)
        self._stage("students", self.train)

    def make_dataset(self) -> None:
        """The first two stages; all there is to `cqlray collect`."""
        self._stage("teacher", lambda: self._replacing_the_dead(self.teach))
        self._stage("collection", lambda: self._replacing_the_dead(self.collect))

    # -- 1. teacher -----------------------------------------------------------------------------------------------------

    def teach(self) -> None:
        """SAC, online: in each round the workers play the newest policy and the teacher learns from what they bring."""
        config, folder = self.config.teacher, self.directory / "teacher"
        if (folder / "teacher.json").exists():
            return
        saved, done, tests = self._teacher_checkpoint()
        seen = [ray.put(self._read_shard(f"teacher/replay-{index:05d}.parquet")) for index in range(done)]
        dimension, seed = self.spec.observation_dim, self.config.seed
        teacher = self.loop.create(
            Teacher, config, seed, self.spec.scaling, dimension, saved, *seen, cpus=self.plan.cpus["teacher"], name="teacher"
        )
        self.progress.stage("teacher", config.rounds, "rounds", done)
        while done < config.rounds and not _reached(tests, config.stop_return, config.stop_tests):
            report = self._teacher_round(teacher, done)
            done += 1
            if done % config.evaluation_interval == 0 or done == config.rounds:
                tests.append(self._test_teacher(teacher, done, report))
                state = self.loop.get(teacher.save.remote({"rounds": done, "tests": tests}))
                write_bytes(folder / "checkpoint.safetensors", state)
            self.progress.advance(done, f"mean return {tests[-1]['mean_return']:.0f}" if tests else "")
        ray.kill(teacher)
        best = max(tests, key=lambda test: test["mean_return"])
        self._test_references(self._teacher_snapshot(best["round"]))
        last = {name: tests[-1][name] for name in ("environment_steps", "updates")}
        result = {"rounds": done, **last, "best_round": best["round"], "best_return": best["mean_return"], "tests": tests}
        write_json(folder / "teacher.json", result)
        self.progress.finish(f"mean return {best['mean_return']:.0f} after {last['environment_steps']:,} steps")

    def _teacher_checkpoint(self) -> tuple[bytes | None, int, list[Row]]:
        path = self.directory / "teacher" / "checkpoint.safetensors"
        if not path.exists():
            return None, 0, []
        saved = path.read_bytes()
        _, metadata = checkpoint.decode(saved, str(path))
        return saved, metadata["rounds"], metadata["tests"]

    def _teacher_round(self, teacher: Any, index: int) -> Row:
        """Episodes from the workers, into the pool and the directory; then the round's updates."""
        config = self.config.teacher
        policy = None if index < config.warmup_rounds else teacher.snapshot.remote()
        seeds = seeding.integer_seeds(self.config.seed, "teacher-round", index, count=config.episodes_per_round)
        episodes = self._play([(ShardTask(index, "replay", (seed,)), policy) for seed in seeds])
        joined = Shard.of([e for shard in ray.get(episodes) for e in shard.episodes()], "replay")
        write_bytes(self.directory / "teacher" / f"replay-{index:05d}.parquet", shard_files.to_parquet(joined))
        report: Row = self.loop.get(teacher.learn.remote(index, *episodes))
        if report.pop("diverged"):
            raise UserError(f"the teacher became non-finite in round {index + 1}; lower teacher.critic_learning_rate")
        self.directory.append("metrics.jsonl", [{"stage": "teacher", "round": index + 1, **report}])
        return report

    def _test_teacher(self, teacher: Any, rounds: int, report: Row) -> Row:
        """Test the newest policy and keep it as a snapshot."""
        snapshot = self.loop.get(teacher.snapshot.remote())
        write_bytes(self.directory / "teacher" / f"snapshot-{rounds:05d}.safetensors", snapshot)
        (row,) = self._test(snapshot, "teacher-test", self.config.teacher.evaluation_episodes)
        mean = sum(row["returns"]) / len(row["returns"])
        return {"round": rounds, **{k: report[k] for k in ("environment_steps", "updates")}, "mean_return": mean}

    def _teacher_snapshot(self, rounds: int) -> bytes:
        return (self.directory / "teacher" / f"snapshot-{rounds:05d}.safetensors").read_bytes()

    def _test_references(self, best: bytes) -> None:
        """Teacher and random policy on the students' own episode seeds, which chose neither of them."""
        episodes = self.config.evaluation.episodes or self.config.teacher.evaluation_episodes
        for policy, snapshot in (("teacher", best), ("random", None)):
            (row,) = self._test(snapshot, "evaluation", episodes)
            self.directory.append("evaluations.jsonl", [{"policy": policy, "member": None, "updates": None, **row}])

    # -- 2. collection --------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """The dataset: what the teacher saw, and its snapshots played by the workers, shard by shard."""
        if (self.directory / "dataset" / "dataset.json").exists():
            place = self.directory / "dataset"
            self._provide(place, datasets.read_description(place))
            return
        wanted = self._shard_tasks()
        self.progress.stage("collection", len(wanted), "shards")
        references: dict[int, Any] = {}
        missing = []
        for index, (work, snapshot) in enumerate(wanted):
            name = f"dataset/shard-{index:05d}.parquet"
            if (self.directory / name).exists():
                references[index] = ray.put(self._read_shard(name))
            elif isinstance(work, Shard):
                references[index] = self._keep(index, work, ray.put(work))
            else:
                missing.append((work, snapshot))

        def arrived(task: ShardTask, shard: Shard, reference: Any) -> None:
            references[task.index] = self._keep(task.index, shard, reference)
            self.progress.advance(len(references))

        self._play(missing, arrived)
        self.data = [references[index] for index in range(len(wanted))]
        description = datasets.describe(map(ray.get, self.data), self._environment())
        description["reference_returns"] = {
            row["policy"]: row["returns"] for row in self.directory.rows("evaluations.jsonl") if row["member"] is None
        }
        write_json(self.directory / "dataset" / "dataset.json", description)
        self.directory.update_manifest(dataset_digest=description["digest"])
        if self._exceeds_memory(description)[0]:
            self._provide(self.directory / "dataset", description)
        self._dismiss(RolloutWorker)
        mean = description["returns"]["mean"]
        self.progress.finish(
            f"{description['episodes']} episodes, {description['transitions']:,} steps, mean return {mean:.0f}"
        )

    def _keep(self, index: int, shard: Shard, reference: Any) -> Any:
        write_bytes(self.directory / "dataset" / f"shard-{index:05d}.parquet", shard_files.to_parquet(shard))
        return reference

    def _shard_tasks(self) -> list[tuple[ShardTask | Shard, Any]]:
        """All shards in the dataset's order: for replay the shard itself, else what to play and with which snapshot."""
        config = self.config.collection
        snapshots: dict[str, Callable[[], bytes | None]] = {
            "medium": self._medium,
            "expert": self._expert,
            "random": lambda: None,
        }
        wanted: list[tuple[ShardTask | Shard, Any]] = []
        for tier, count in config.episodes_by_tier().items():
            if tier == "replay":
                replayed = self._replayed(count)
                size = config.episodes_per_shard
                wanted += [(Shard.of(replayed[i : i + size], tier), None) for i in range(0, len(replayed), size)]
                continue
            reference = None if tier == "random" else ray.put(snapshots[tier]())
            for first in range(0, count, config.episodes_per_shard):
                episodes = min(config.episodes_per_shard, count - first)
                index = len(wanted)
                seeds = seeding.integer_seeds(self.config.seed, f"collect-{tier}", first, count=episodes)
                wanted.append((ShardTask(index, tier, tuple(seeds)), reference))
        return wanted

    def _replayed(self, count: int) -> list[Episode]:
        """The last `count` episodes that the teacher saw, or all there are."""
        rounds = read_json(self.directory / "teacher" / "teacher.json")["rounds"]
        episodes: list[Episode] = []
        for index in reversed(range(rounds)):
            if len(episodes) >= count:
                break
            episodes = [*self._read_shard(f"teacher/replay-{index:05d}.parquet").episodes(), *episodes]
        return episodes[-count:]

    def _medium(self) -> bytes:
        """The first snapshot past one third of the way from random to the teacher's best (D4RL's rule)."""
        teacher = read_json(self.directory / "teacher" / "teacher.json")
        (random,) = [row for row in self.directory.rows("evaluations.jsonl") if row["policy"] == "random"][-1:]
        lowest = sum(random["returns"]) / len(random["returns"])
        # A teacher that never got past the random policy has no such snapshot: then its best one.
        threshold = min(lowest + (teacher["best_return"] - lowest) / 3, teacher["best_return"])
        return self._teacher_snapshot(next(test["round"] for test in teacher["tests"] if test["mean_return"] >= threshold))

    def _expert(self) -> bytes:
        return self._teacher_snapshot(read_json(self.directory / "teacher" / "teacher.json")["best_round"])

    # -- or: a dataset that exists -----------------------------------------------------------------------------------------

    def adopt_dataset(self) -> None:
        """Somebody's dataset: cqlray's own is read and never written, other data becomes shards in the run directory."""
        place = self._native_dataset()
        description = datasets.read_description(place)
        before = self.directory.manifest().get("dataset_digest", description["digest"])
        if description["digest"] != before:
            raise UserError(f"dataset {self.config.dataset!r} has changed since the run began; make a new run")
        self._provide(place, description)
        if "dataset_digest" in self.directory.manifest():
            return
        rows = [
            {"policy": policy, "member": None, "updates": None, "returns": returns}
            for policy, returns in description.get("reference_returns", {}).items()
        ]
        self.directory.append("evaluations.jsonl", rows)
        write_json(self.directory / "dataset" / "dataset.json", description)
        self.directory.update_manifest(dataset_digest=description["digest"])

    def _provide(self, place: AnyPath, description: Row) -> None:
        """Have the learners' data: the shards in the object store, or where they exceed memory the word to read a file."""
        on_disk, why = self._exceeds_memory(description)
        if on_disk:
            run = self.directory.path
            local = run.absolute() / "dataset" if isinstance(run, Path) else Path(tempfile.gettempdir(), description["digest"])
            self.data = [DataOnDisk(place.absolute(), local / "records.bin")]
            self.progress.say(f"data         {why}")
        else:
            self.data = [ray.put(shard) for shard in iterate_shards(place, description)]

    def _exceeds_memory(self, description: Row) -> tuple[bool, str]:
        chosen = self.config.resources.data
        if chosen != "auto":
            return chosen == "disk", "read from a file on disk, as resources.data asks"
        environment = description["environment"]
        sizes = description["transitions"], description["episodes"], environment["observation_dim"], environment["action_dim"]
        where, why = where_data_lives(data_bytes(*sizes), None, int(min(self.plan.memory_per_learner, sys.maxsize)))
        return where == "disk", why

    def _native_dataset(self) -> AnyPath:
        """The directory of the dataset's shards."""
        assert self.config.dataset is not None
        if is_native(self.config.dataset):
            return datasets.dataset_directory(any_path(self.config.dataset))
        converted = self.directory / "dataset"
        if not (converted / "dataset.json").exists():
            write_dataset(open_configured(self.config), converted)
        return converted

    # -- 3 and 4. students, and their tests meanwhile ------------------------------------------------------------------------

    def train(self) -> None:
        """Each learner trains its population; each snapshot is tested by whichever evaluator is free."""
        listed = [{"member": m.index, "seed": m.seed, "swept": m.swept} for m in self.members]
        write_json(self.directory / "members.json", listed)
        total = sum(len(self.members_of(p)) * self.members_of(p)[0].cql.num_updates for p in range(len(self.done)))
        self.queue = deque(range(len(self.done)))
        self.progress.stage("students", total, "updates", sum(self._resumable(p)[1] for p in self.queue))
        for _ in range(self.plan.learners):
            self._next_population()
        self.loop.run()
        self._dismiss(Evaluator)
        self.progress.finish(self.newest)

    def members_of(self, population: int) -> list[Member]:
        """The members of a population."""
        return [self.members[index] for index in self.plan.populations[population]]

    def _resumable(self, population: int) -> tuple[bytes | None, int]:
        """The population's checkpoint and the member updates that it holds."""
        path = self.directory / "checkpoints" / f"population-{population}.safetensors"
        if not path.exists():
            return None, 0
        saved = path.read_bytes()
        self.done[population] = checkpoint.decode(saved, str(path))[1]["updates"]
        return saved, self.done[population] * len(self.plan.populations[population])

    def _next_population(self) -> None:
        if self.queue:
            self._start_learner(self.queue.popleft())

    def _start_learner(self, population: int) -> None:
        """A learner for the population, from its checkpoint if there is one; tests that are missing are made up for."""
        own = self.members_of(population)
        saved, _ = self._resumable(population)
        for path in self._untested(population):
            self._test_students(population, path.read_bytes())
        if self.done[population] == own[0].cql.num_updates:
            self._next_population()
            return
        learner = self.loop.create(
            Learner, own, self.config.seed, self.spec.scaling, self.config.evaluation.interval,
            "cuda" if self.plan.gpu else "cpu", self.plan.threads, self.config.precision, saved, *self.data,
            cpus=self.plan.cpus["learner"], gpus=int(self.plan.gpu), name=f"learner of population {population}",
        )  # fmt: skip
        self._advance(population, learner, time.monotonic())

    def _advance(self, population: int, learner: Any, saved_at: float) -> None:
        """The learner's next call; what it brings is written, tested, and followed by the call after."""
        due = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS

        def advanced(result: Advance) -> None:
            members = len(self.plan.populations[population])
            self.metrics.advanced(population, (result.updates - self.done[population]) * members, result.seconds)
            self.done[population] = result.updates
            self.deaths[population] = 0
            if result.updates < self.members_of(population)[0].cql.num_updates:
                self._advance(population, learner, saved_at if result.saved is None else time.monotonic())
            else:
                ray.kill(learner)
            self._record(population, result)
            if result.updates == self.members_of(population)[0].cql.num_updates:
                self._next_population()

        def died(error: RayActorError) -> None:
            self.deaths[population] += 1
            if self.deaths[population] > DEATHS_IN_A_ROW:
                raise _lost("a learner", error)
            self.progress.say(f"a learner died and is replaced (population {population}): {_first_line(error)}")
            self._start_learner(population)

        self.loop.on(learner.advance.remote(SECONDS_PER_ADVANCE, due), advanced, died)

    def _record(self, population: int, result: Advance) -> None:
        """Write what an advance brought. The checkpoint comes last: what stands before it is then on disk."""
        name = f"population-{population}"
        if result.snapshot is not None and result.metrics is not None:
            write_bytes(self.directory / "snapshots" / name / f"{result.updates:09d}.safetensors", result.snapshot)
            self.directory.append("metrics.jsonl", self._metric_rows(population, result))
        if result.saved is not None:
            write_bytes(self.directory / "checkpoints" / f"{name}.safetensors", result.saved)
        if result.snapshot is not None:
            self._test_students(population, result.snapshot)
        if result.frozen:
            self._report_frozen(result.frozen)
        self.progress.advance(sum(d * len(p) for d, p in zip(self.done, self.plan.populations, strict=True)), self.newest)

    def _metric_rows(self, population: int, result: Advance) -> list[Row]:
        assert result.metrics is not None
        return [
            {"stage": "students", "member": member, "updates": result.updates}
            | {name: values[place] for name, values in result.metrics.items()}
            for place, member in enumerate(self.plan.populations[population])
        ]

    def _report_frozen(self, frozen: dict[int, int]) -> None:
        known = self.directory.manifest().get("frozen", {})
        fresh = {str(member): updates for member, updates in frozen.items() if str(member) not in known}
        for member, updates in fresh.items():
            self.progress.say(f"member {member} became non-finite and is frozen as it was after {updates} updates")
        if fresh:
            self.directory.update_manifest(frozen=known | fresh)

    # -- tests ------------------------------------------------------------------------------------------------------------

    def _test_students(self, population: int, snapshot: bytes) -> None:
        """Hand a snapshot to the evaluators; its rows are written when the last of its episodes is played."""
        if self.config.evaluation.episodes == 0:
            return
        updates = checkpoint.decode(snapshot)[1]["updates"]

        def tested(rows: list[Row]) -> None:
            places = zip(self.plan.populations[population], rows, strict=True)
            keyed = [{"policy": "student", "member": member, "updates": updates, **row} for member, row in places]
            self.directory.append("evaluations.jsonl", keyed)
            for row in keyed:
                self.metrics.tested(str(row["member"]), row["returns"])
            returns = [value for row in rows for value in row["returns"]]
            self.newest = f"mean return {sum(returns) / len(returns):.0f} at {updates:,}"

        self._begin_test(snapshot, "evaluation", self.config.evaluation.episodes, tested)

    def _untested(self, population: int) -> list[Any]:
        """Snapshots up to the checkpoint that an earlier session did not get to test."""
        if self.config.evaluation.episodes == 0:
            return []
        first = self.plan.populations[population][0]
        rows = self.directory.rows("evaluations.jsonl")
        tested = {row["updates"] for row in rows if row["policy"] == "student" and row["member"] == first}
        folder = Location.parse(self.directory / "snapshots" / f"population-{population}")
        snapshots = {int(path.stem): path for path in folder.glob("*.safetensors")}
        return [p for updates, p in snapshots.items() if updates not in tested and updates <= self.done[population]]

    def _test(self, snapshot: bytes | None, purpose: str, episodes: int) -> list[Row]:
        """Rows of one test, waited for."""
        results: list[list[Row]] = []
        self._begin_test(snapshot, purpose, episodes, results.append)
        self.loop.run()
        return results[0]

    def _begin_test(self, snapshot: bytes | None, purpose: str, episodes: int, then: Callable[[list[Row]], None]) -> None:
        """Share a test's episodes out among the evaluators; `then` gets a row for each member."""
        seeds = seeding.integer_seeds(self.config.seed, purpose, count=episodes)
        parts = [tuple(seeds[first : first + EPISODES_PER_CALL]) for first in range(0, episodes, EPISODES_PER_CALL)]
        reference = None if snapshot is None else ray.put(snapshot)
        results: dict[int, list[Row]] = {}

        def arrived(part: int, rows: list[Row]) -> None:
            results[part] = rows
            self.metrics.played("evaluator", sum(sum(row["lengths"]) for row in rows))
            if len(results) == len(parts):
                then(merge_rows([results[index] for index in range(len(parts))]))

        for index, part in enumerate(parts):
            self._team(Evaluator, self.plan.evaluators, "evaluator").call(
                lambda evaluator, part=part: evaluator.evaluate.remote(reference, part),  # type: ignore[misc]
                lambda rows, _, index=index: arrived(index, rows),  # type: ignore[misc]
            )

    def evaluate(self, episodes: int) -> list[Row]:
        """Test every population's last snapshot on fresh episodes; rows as in evaluations.jsonl, nothing is written."""
        collected: list[Row] = []
        for population, own in enumerate(self.plan.populations):
            path = last_snapshot(self.directory.path, population)
            snapshot = path.read_bytes()

            def tested(rows: list[Row], own: tuple[int, ...] = own, updates: int = int(path.stem)) -> None:
                keys = [{"policy": "student", "member": member, "updates": updates} for member in own]
                collected.extend({**key, **row} for key, row in zip(keys, rows, strict=True))

            self._begin_test(snapshot, "evaluate-again", episodes, tested)
        self.loop.run()
        return sorted(collected, key=lambda row: row["member"])

    # -- what the stages share ----------------------------------------------------------------------------------------------

    def _play(
        self, tasks: Sequence[tuple[ShardTask, Any]], then: Callable[[ShardTask, Shard, Any], None] | None = None
    ) -> list[Any]:
        """Have the workers play; references to the shards in the tasks' order, `then` called as each arrives."""
        references: dict[int, Any] = {}

        def arrived(place: int, shard: Shard, reference: Any) -> None:
            references[place] = reference
            self.metrics.shards.inc()
            self.metrics.played("rollout_worker", shard.num_transitions)
            if then is not None:
                then(tasks[place][0], shard, reference)

        for place, (task, snapshot) in enumerate(tasks):
            self._team(RolloutWorker, self.plan.rollout_workers, "rollout_worker").call(
                lambda worker, task=task, snapshot=snapshot: worker.collect.remote(task, snapshot),  # type: ignore[misc]
                lambda shard, reference, place=place: arrived(place, shard, reference),  # type: ignore[misc]
            )
        self.loop.run()
        return [references[place] for place in range(len(tasks))]

    def _team(self, role: type[Any], size: int, share: str) -> Team:
        """The role's actors, started when first needed."""
        if role not in self.teams:
            cpus = self.plan.cpus[share]
            actors = [
                self.loop.create(role, self.config.env, self.spec, cpus=cpus, retried=True, name=f"{share} {number}")
                for number in range(size)
            ]
            self.teams[role] = Team(self.loop, actors, partial(self.metrics.team, share))
        return self.teams[role]

    def _dismiss(self, role: type[Any]) -> None:
        if role in self.teams:
            self.teams.pop(role).dismiss()

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        """Do a stage and note the seconds it took, over all sessions."""
        started = time.monotonic()
        try:
            work()
        finally:
            stages = self.directory.manifest().get("stages", {})
            seconds = stages.get(name, 0.0) + time.monotonic() - started
            self.directory.update_manifest(stages={**stages, name: round(seconds, 2)})

    def _replacing_the_dead(self, stage: Callable[[], None]) -> None:
        """Begin a stage again, from what it left on disk, when one of its actors died for good."""
        for attempt in range(DEATHS_IN_A_ROW + 1):
            try:
                stage()
                return
            except RayActorError as error:
                if attempt == DEATHS_IN_A_ROW:
                    raise _lost("an actor", error) from None
                self.progress.say(f"an actor died; going on from the last checkpoint: {_first_line(error)}")
                self._dismiss(RolloutWorker)
                self._dismiss(Evaluator)

    def _read_shard(self, name: str) -> Shard:
        return shard_files.from_parquet((self.directory / name).read_bytes(), str(self.directory / name))

    def _environment(self) -> Row:
        return {**dataclasses.asdict(self.spec), "kwargs": dict(self.config.env.kwargs)}


def _reached(tests: Sequence[Row], stop_return: float, count: int) -> bool:
    """Whether the last `count` tests all reached the return to stop at."""
    return len(tests) >= count and all(test["mean_return"] >= stop_return for test in tests[-count:])


def _lost(who: str, error: RayActorError) -> ActorLost:
    times = DEATHS_IN_A_ROW + 1
    return ActorLost(f"{who} died {times} times in a row: {_first_line(error)} (Ray's logs: /tmp/ray/session_latest/logs)")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
