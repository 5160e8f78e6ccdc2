"""The file to read first: a run, stage by stage, from top to bottom.

Each stage leaves its result in the run directory before the next begins, and begins by looking for
what an earlier session left there. So a fresh run, a resumed run and a replaced actor are one and
the same code: read the directory, go on. Episodes pass from worker to learner through Ray's object
store; the driver holds their references. Files are written by those who have the bytes, or by the
driver in the background where its machine alone has the directory.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cqlray import seeding
from cqlray.config.schema import RunConfig
from cqlray.data import dataset as datasets
from cqlray.data import shards as shard_files
from cqlray.data.convert import write_dataset
from cqlray.data.dataset import ShardSummary, is_native, shard_name
from cqlray.data.loading import iterate_shards
from cqlray.data.memory import data_bytes, where_data_lives
from cqlray.envs.make import EnvSpec
from cqlray.envs.recorded import open_configured
from cqlray.errors import Interrupted, NotShared, UserError
from cqlray.results.policies import last_snapshot
from cqlray.runtime.cluster import LOST, Loop, describe, fetch, kill, put
from cqlray.runtime.crew import Crew, Row
from cqlray.runtime.placement import Plan
from cqlray.runtime.progress import ProgressDisplay
from cqlray.stages.evaluate import Judges
from cqlray.stages.train import DEATHS_IN_A_ROW, STOPPING, Students, is_due, lost, unjudged
from cqlray.storage import checkpoint
from cqlray.storage.locations import AnyPath, Location, any_path
from cqlray.storage.run_directory import RunDirectory, read_json, write_json
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.files import StoredData, round_name
from cqlray.workers.fitted_q import FittedQ
from cqlray.workers.rollout_worker import ReplayTask, RolloutWorker, ShardTask
from cqlray.workers.teacher import Teacher, joined_round


class Driver:
    """One run: its config, directory and plan, its crew, and the stages."""

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
        self.crew = Crew(config, directory, plan, spec, loop, progress)
        self.data: list[
            Any
        ] = []  # references to the shards in the dataset's order, or one StoredData

    def run(self) -> None:
        """All stages, from wherever the directory stands.

        Raises:
            Interrupted: asked to stop. StorageFailure: the run directory cannot be written.
                ActorLost: an actor does not
            stay alive. EnvironmentFailure, UserError: raised in an actor.
        """
        self._require_disk()
        if self.config.dataset is None:
            self.make_dataset()
        else:
            self.crew.run_stage("dataset", self.adopt_dataset)
        self.crew.run_stage("students", self.train)

    def make_dataset(self) -> None:
        """The first two stages; all there is to `cqlray collect`."""
        self.crew.run_stage(
            "teacher", lambda: self._shared_or_not(partial(self._replacing_the_dead, self.teach))
        )
        self.crew.run_stage(
            "collection",
            lambda: self._shared_or_not(partial(self._replacing_the_dead, self.collect)),
        )

    # -- 1. teacher --------------------------------------------------------------------------------

    def teach(self) -> None:
        """SAC, online: in each round the workers play the newest policy and the teacher learns from
        what they bring.
        """
        config, crew = self.config.teacher, self.crew
        if (self.directory / "teacher" / "teacher.json").exists():
            return
        saved, before, tests, learnt = self._teacher_checkpoint()
        done = before
        seen = (
            [put(crew.read_shard(round_name(index))) for index in range(done)]
            if crew.place is None
            else []
        )
        dimension, seed = self.spec.observation_dim, self.config.seed
        teacher = self.loop.create(
            Teacher,
            config,
            seed,
            self.spec.scaling,
            dimension,
            saved,
            crew.place,
            *seen,
            cpus=self.plan.cpus["teacher"],
            name="teacher",
        )
        self.progress.stage("teacher", config.rounds, "rounds", done)
        saved_at = time.monotonic()
        while learnt or (
            done < config.rounds and not _reached(tests, config.stop_return, config.stop_tests)
        ):
            try:
                if learnt is None:
                    learnt = self._teacher_round(teacher, done, self._play_round(teacher, done))
                    done += 1
                tested = done % config.evaluation_interval == 0 or done == config.rounds
                if tested:
                    tests.append(self._test_teacher(teacher, done, learnt))
            except (
                Interrupted
            ):  # the teacher stands between two rounds, unless asked not to wait for that
                if done > before and not self.loop.hurry.is_set():
                    self._save_teacher(teacher, done, tests, learnt)
                raise
            learnt = None
            if tested or is_due(self.loop, teacher, saved_at):
                self._save_teacher(teacher, done, tests)
                saved_at = time.monotonic()
            self.progress.advance(
                done, f"mean return {tests[-1]['mean_return']:.0f}" if tests else ""
            )
        kill(teacher)
        crew.writer.flush()
        best = max(tests, key=lambda test: test["mean_return"])
        self._test_references(self._teacher_snapshot(best["round"]))
        last = {name: tests[-1][name] for name in ("environment_steps", "updates")}
        result = {
            "rounds": done,
            **last,
            "best_round": best["round"],
            "best_return": best["mean_return"],
            "tests": tests,
        }
        crew.write_json("teacher/teacher.json", result)
        self.progress.finish(
            f"mean return {best['mean_return']:.0f} after {last['environment_steps']:,} steps"
        )

    def _teacher_checkpoint(self) -> tuple[bytes | None, int, list[Row], Row | None]:
        """The checkpoint, its rounds and tests, and the last round's report where its test is still
        to come.
        """
        path = self.directory / "teacher" / "checkpoint.safetensors"
        if not path.exists():
            return None, 0, [], None
        saved = path.read_bytes()
        _, metadata = checkpoint.decode(saved, str(path))
        return saved, metadata["rounds"], metadata["tests"], metadata.get("untested")

    def _save_teacher(
        self, teacher: Any, rounds: int, tests: list[Row], untested: Row | None = None
    ) -> None:
        progress = {"rounds": rounds, "tests": tests} | (
            {} if untested is None else {"untested": untested}
        )
        state = fetch(teacher.save.remote(progress))
        self.crew.write("teacher/checkpoint.safetensors", state)

    def _play_round(self, teacher: Any, index: int) -> list[Any]:
        """References to the episodes of a round."""
        config = self.config.teacher
        policy = None if index < config.warmup_rounds else teacher.snapshot.remote()
        seeds = seeding.integer_seeds(
            self.config.seed, "teacher-round", index, count=config.episodes_per_round
        )
        tasks = [ShardTask(index, "replay", (seed,)) for seed in seeds]
        return self.crew.play([partial(_request, "play", task, policy) for task in tasks])

    def _teacher_round(self, teacher: Any, index: int, episodes: list[Any]) -> Row:
        """Episodes into the pool and the directory; then the round's updates."""
        if self.crew.place is None:
            joined = joined_round([fetch(shard) for shard in episodes])
            self.crew.write(round_name(index), shard_files.to_parquet(joined))
        report = self._learn(teacher, index, episodes)
        if report.pop("diverged"):
            raise UserError(
                f"the teacher became non-finite in round {index + 1}; lower"
                " teacher.critic_learning_rate"
            )
        self.crew.append("metrics.jsonl", [{"stage": "teacher", "round": index + 1, **report}])
        return report

    def _learn(self, teacher: Any, index: int, episodes: list[Any]) -> Row:
        """The round's updates; also once asked to stop, as there is nothing to save before their
        end.
        """
        reports: list[Row] = []
        updates = teacher.learn.remote(index, *episodes)
        self.loop.on(updates, reports.append)
        try:
            self.loop.run()
        except Interrupted:
            self.progress.say(STOPPING)
            self.loop.see_out([updates])
        return reports[0]

    def _test_teacher(self, teacher: Any, rounds: int, report: Row) -> Row:
        """Test the newest policy and keep it as a snapshot."""
        snapshot = self.loop.get(teacher.snapshot.remote())
        self.crew.write(f"teacher/snapshot-{rounds:05d}.safetensors", snapshot)
        (row,) = self.crew.test(snapshot, "teacher-test", self.config.teacher.evaluation_episodes)
        mean = sum(row["returns"]) / len(row["returns"])
        return {
            "round": rounds,
            **{k: report[k] for k in ("environment_steps", "updates")},
            "mean_return": mean,
        }

    def _teacher_snapshot(self, rounds: int) -> bytes:
        return (self.directory / "teacher" / f"snapshot-{rounds:05d}.safetensors").read_bytes()

    def _test_references(self, best: bytes) -> None:
        """Teacher and random policy on the students' own episode seeds, which chose neither of
        them.
        """
        episodes = self.config.evaluation.episodes or self.config.teacher.evaluation_episodes
        for policy, snapshot in (("teacher", best), ("random", None)):
            (row,) = self.crew.test(snapshot, "evaluation", episodes)
            self.crew.append(
                "evaluations.jsonl", [{"policy": policy, "member": None, "updates": None, **row}]
            )

    # -- 2. collection -----------------------------------------------------------------------------

    def collect(self) -> None:
        """The dataset: what the teacher saw, and its snapshots played by the workers, shard by
        shard.
        """
        folder = self.directory / "dataset"
        if (folder / "dataset.json").exists():
            self._provide(folder, datasets.read_description(folder))
            return
        requests = self._shard_requests(
            {path.name for path in Location.parse(folder).glob("shard-*.parquet")}
        )
        self.progress.stage("collection", len(requests), "shards")
        summaries: dict[int, ShardSummary] = {}

        def arrived(index: int, summary: ShardSummary, shard: Any) -> None:
            summaries[index] = summary
            if self.crew.place is None:
                self.crew.relay(lambda: self._write_shard(index, shard))
            self.progress.advance(len(summaries))

        self.data = self.crew.play(requests, arrived)
        environment = {**dataclasses.asdict(self.spec), "kwargs": dict(self.config.env.kwargs)}
        described = datasets.Description(environment)
        for index in range(len(requests)):
            described.add_summary(summaries[index])
        description = described.finish()
        self.crew.writer.flush()  # the shards, and the tests of teacher and random policy
        description["reference_returns"] = {
            row["policy"]: row["returns"]
            for row in self.directory.rows("evaluations.jsonl")
            if row["member"] is None
        }
        write_json(folder / "dataset.json", description)
        self.crew.note(dataset_digest=description["digest"])
        if self._exceeds_memory(description)[0]:
            self._provide(folder, description)
        self.crew.dismiss(RolloutWorker)
        mean = description["returns"]["mean"]
        self.progress.finish(
            f"{description['episodes']} episodes, {description['transitions']:,} steps, mean return"
            f" {mean:.0f}"
        )

    def _write_shard(self, index: int, shard: Any) -> None:
        self.crew.write_now(f"dataset/{shard_name(index)}", shard_files.to_parquet(fetch(shard)))

    def _shard_requests(self, there: set[str]) -> list[Callable[[Any], Any]]:
        """What to ask a worker for, for all shards in the dataset's order; `there` are the files of
        earlier sessions.
        """
        config = self.config.collection
        snapshots: dict[str, Callable[[], bytes | None]] = {
            "medium": self._medium,
            "expert": self._expert,
            "random": lambda: None,
        }
        requests: list[Callable[[Any], Any]] = []
        for tier, count in config.episodes_by_tier().items():
            if tier == "replay":
                requests += self._replay_requests(count, len(requests), there)
                continue
            reference = None if tier == "random" else put(snapshots[tier]())
            for first in range(0, count, config.episodes_per_shard):
                index, episodes = len(requests), min(config.episodes_per_shard, count - first)
                if self.crew.place is not None and shard_name(index) in there:
                    requests.append(partial(_request, "load", index, self.crew.place))
                    continue
                seeds = seeding.integer_seeds(
                    self.config.seed, f"collect-{tier}", first, count=episodes
                )
                task = ShardTask(index, tier, tuple(seeds))
                requests.append(partial(_request, "contribute", task, reference, self.crew.place))
        return requests

    def _replay_requests(
        self, count: int, start: int, there: set[str]
    ) -> list[Callable[[Any], Any]]:
        """For shards of the last `count` episodes that the teacher saw, or all there are."""
        rounds = read_json(self.directory / "teacher" / "teacher.json")["rounds"]
        per_round, size = (
            self.config.teacher.episodes_per_round,
            self.config.collection.episodes_per_shard,
        )
        total, place = rounds * per_round, self.crew.place
        seen: dict[int, Any] = {}  # where the driver alone has the files
        requests: list[Callable[[Any], Any]] = []
        for first in range(max(0, total - count), total, size):
            index, last = start + len(requests), min(first + size, total) - 1
            if place is not None and shard_name(index) in there:
                requests.append(partial(_request, "load", index, place))
                continue
            indices = tuple(range(first // per_round, last // per_round + 1))
            task = ReplayTask(index, indices, first - indices[0] * per_round, last + 1 - first)
            if place is None:
                seen |= {
                    i: put(self.crew.read_shard(round_name(i))) for i in indices if i not in seen
                }
            requests.append(
                partial(
                    _request, "replay", task, place, *(seen[i] for i in indices if place is None)
                )
            )
        return requests

    def _medium(self) -> bytes:
        """The first snapshot past one third of the way from random to the teacher's best (D4RL's
        rule).
        """
        teacher = read_json(self.directory / "teacher" / "teacher.json")
        (random,) = [
            row for row in self.directory.rows("evaluations.jsonl") if row["policy"] == "random"
        ][-1:]
        lowest = sum(random["returns"]) / len(random["returns"])
        # A teacher that never got past the random policy has no such snapshot: then its best one.
        threshold = min(lowest + (teacher["best_return"] - lowest) / 3, teacher["best_return"])
        return self._teacher_snapshot(
            next(test["round"] for test in teacher["tests"] if test["mean_return"] >= threshold)
        )

    def _best_snapshot(self) -> bytes | None:
        """The teacher's best; None where there is no teacher, or its files were removed."""
        if not (self.directory / "teacher" / "teacher.json").is_file():
            return None
        try:
            return self._expert()
        except FileNotFoundError:
            return None

    def _expert(self) -> bytes:
        return self._teacher_snapshot(
            read_json(self.directory / "teacher" / "teacher.json")["best_round"]
        )

    # -- or: a dataset that exists -----------------------------------------------------------------

    def adopt_dataset(self) -> None:
        """Somebody's dataset: cqlray's own is read and never written, other data becomes shards in
        the run directory.
        """
        place = self._native_dataset()
        description = datasets.read_description(place)
        before = self.directory.manifest().get("dataset_digest", description["digest"])
        if description["digest"] != before:
            raise UserError(
                f"dataset {self.config.dataset!r} has changed since the run began; make a new run"
            )
        self._provide(place, description)
        if "dataset_digest" in self.directory.manifest():
            return
        rows = [
            {"policy": policy, "member": None, "updates": None, "returns": returns}
            for policy, returns in description.get("reference_returns", {}).items()
        ]
        self.crew.append("evaluations.jsonl", rows)
        self.crew.write_json("dataset/dataset.json", description)
        self.crew.note(dataset_digest=description["digest"])

    def _native_dataset(self) -> AnyPath:
        """The directory of the dataset's shards."""
        assert self.config.dataset is not None
        if is_native(self.config.dataset):
            return datasets.dataset_directory(any_path(self.config.dataset))
        converted = self.directory / "dataset"
        if not (converted / "dataset.json").exists():
            write_dataset(open_configured(self.config), converted)
        return converted

    def _provide(self, place: AnyPath, description: Row) -> None:
        """Have the learners' data, which is on disk: the word to read it there, or else its shards
        in the object store.
        """
        on_disk, why = self._exceeds_memory(description)
        if on_disk:
            self._require_on_nodes(place, why)
            run = self.directory.path
            local = (
                run.absolute() / "dataset"
                if isinstance(run, Path)
                else Path(tempfile.gettempdir(), description["digest"])
            )
            self.data = [StoredData(place.absolute(), local / "records.bin")]
            self.progress.say(f"data         {why}")
        elif self.crew.seen_by_learners(place):
            self.data = [StoredData(place.absolute())]
        else:
            self.data = [put(shard) for shard in iterate_shards(place, description)]

    def _require_disk(self) -> None:
        """Raises UserError where data that is to be made could not be read from disk, though it is
        to be.
        """
        if self.config.dataset is None and self.config.resources.data == "disk":
            self._require_on_nodes(self.directory / "dataset", "resources.data disk")

    def _require_on_nodes(self, place: AnyPath, why: str) -> None:
        """Raises UserError unless every node sees a directory whose data learners are to read from
        disk.
        """
        if not self.crew.on_all_nodes(place):
            raise UserError(
                f"{place} is not on every node, and learners cannot have the data otherwise"
                f" ({why}): have it at s3:// or gs://, share the disk, or have data that fits into"
                " memory there (resources.data memory)"
            )

    def _exceeds_memory(self, description: Row) -> tuple[bool, str]:
        chosen = self.config.resources.data
        if chosen != "auto":
            return chosen == "disk", "read from a file on disk, as resources.data asks"
        environment = description["environment"]
        sizes = (
            description["transitions"],
            description["episodes"],
            environment["observation_dim"],
            environment["action_dim"],
        )
        where, why = where_data_lives(
            data_bytes(*sizes), None, int(min(self.plan.memory_per_learner, sys.maxsize))
        )
        return where == "disk", why

    # -- 3 and 4. students, and their tests meanwhile ----------------------------------------------

    def train(self) -> None:
        """Each learner trains its population; each snapshot is tested by whichever evaluator is
        free.
        """
        self._shared_or_not(lambda: Students(self.crew, self.data, self._data_again).train())

    def _data_again(self) -> list[Any]:
        """The data once more, from its files: what was in a lost node's object store is gone."""
        if not isinstance(self.data[0], StoredData):
            self._provide_from_files()
        return self.data

    def _provide_from_files(self) -> None:
        place = (
            self._native_dataset()
            if self.config.dataset is not None
            else self.directory / "dataset"
        )
        self._provide(place, datasets.read_description(place))

    def evaluate(self, episodes: int) -> list[Row]:
        """Test on the same fresh episodes the random policy, the teacher if it is in this run, and
        each population's last snapshot; rows as in evaluations.jsonl, nothing is written.

        Raises:
            ActorLost: an evaluator does not stay alive.
        """
        snapshots = [
            last_snapshot(self.directory.path, population)
            for population in range(len(self.plan.populations))
        ]
        collected: list[Row] = []

        def test(snapshot: bytes | None, keys: list[Row]) -> None:
            def tested(rows: list[Row]) -> None:
                collected.extend({**key, **row} for key, row in zip(keys, rows, strict=True))

            self.crew.begin_test(
                None if snapshot is None else put(snapshot), "evaluate-again", episodes, tested
            )

        test(None, [{"policy": "random", "member": None, "updates": None}])
        if (best := self._best_snapshot()) is not None:
            test(best, [{"policy": "teacher", "member": None, "updates": None}])
        for path, own in zip(snapshots, self.plan.populations, strict=True):
            test(
                path.read_bytes(),
                [{"policy": "student", "member": m, "updates": int(path.stem)} for m in own],
            )
        try:
            self.loop.run()
        except LOST as error:
            raise lost("an evaluator", error) from None
        return sorted(collected, key=lambda row: -1 if row["member"] is None else row["member"])

    def fit_q(self) -> None:
        """Judge all snapshots that lack it by fitted Q evaluation, and keep what comes of it.

        Raises:
            ActorLost: a judge does not stay alive.
        """
        self._provide_from_files()
        self._shared_or_not(self._fit_q)

    def _fit_q(self) -> None:
        judges = Judges(self.crew, lambda: self.data, tests=False, fits=True)
        for population in range(len(self.plan.populations)):
            judges.make_up_for(population, sys.maxsize)
        judges.fit_what_is_there()
        total = len(judges.at_work)
        self.progress.stage("fitted Q", total, "snapshots")
        judges.watch = lambda: self.progress.advance(total - len(judges.at_work), judges.newest)
        self.loop.run()
        self.crew.writer.flush()
        for population in range(len(self.plan.populations)):
            judges.make_up_for(population, sys.maxsize)
        if judges.at_work:
            raise unjudged(judges, self.loop)
        self.crew.dismiss(FittedQ)
        self.progress.finish(judges.newest)

    # -- what the stages share ---------------------------------------------------------------------

    def _shared_or_not(self, stage: Callable[[], None]) -> None:
        """Begin a stage again, without a shared directory, when it meets a node that does not have
        it.
        """
        try:
            stage()
            return
        except NotShared as error:
            if self.crew.place is None:
                raise
            self.crew.stop_sharing(error)
        self._require_disk()
        if self.data and isinstance(self.data[0], StoredData):
            self._provide_from_files()
        stage()

    def _replacing_the_dead(self, stage: Callable[[], None]) -> None:
        """Begin a stage again, from what it left on disk, when one of its actors died for good."""
        deaths, left = 0, self._left()
        while True:
            try:
                stage()
                return
            except LOST as error:
                self.crew.died("teacher", error)
                self.crew.dismiss(RolloutWorker)
                self.crew.dismiss(Evaluator)
                self.crew.writer.flush()
                before, left = left, self._left()
                deaths = deaths + 1 if left == before else 1
                if deaths > DEATHS_IN_A_ROW:
                    raise lost("an actor", error) from None
                self.progress.say(
                    f"an actor died; going on from the last checkpoint: {describe(error)}"
                )

    def _left(self) -> tuple[int, int]:
        """Rounds of the teacher's checkpoint and shards of the dataset, from which another attempt
        would go on.
        """
        path = self.directory / "teacher" / "checkpoint.safetensors"
        rounds = checkpoint.read_metadata(path)["rounds"] if path.exists() else 0
        return rounds, len(list((self.directory / "dataset").glob("shard-*")))


def _request(method: str, *args: Any) -> Any:
    """Ask a worker, the last argument, for a shard: references to its summary and to itself."""
    *rest, worker = args
    return getattr(worker, method).options(num_returns=2).remote(*rest)


def _reached(tests: Sequence[Row], stop_return: float, count: int) -> bool:
    """Whether the last `count` tests all reached the return to stop at."""
    return len(tests) >= count and all(
        test["mean_return"] >= stop_return for test in tests[-count:]
    )
