"""The second stage: workers play the teacher's snapshots and fill the dataset, shard by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from cqlray import seeding
from cqlray.data import dataset as datasets
from cqlray.data.dataset import ShardSummary, shard_name
from cqlray.runtime.cluster import put
from cqlray.runtime.event_loop import results
from cqlray.stages.run import Run
from cqlray.stages.teach import snapshot_of
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import (
    DATASET,
    EVALUATIONS,
    TEACHER,
    read_json,
    round_name,
    write_json,
)
from cqlray.workers.rollout_worker import ReplayTask, ShardTask

ROUNDS_AT_HAND = 64  # of the teacher's, where the driver sends the workers their files


class Call(NamedTuple):
    """A call to make on a rollout worker: the method and its arguments."""

    method: str
    args: tuple[Any, ...]


async def collect(run: Run) -> None:
    """Make the dataset from episodes that the teacher saw, and new ones by its snapshots."""
    if run.directory.has(f"{DATASET}/{datasets.DESCRIPTION}"):
        return
    line = "an actor died; going on from the last checkpoint"
    await run.restarting(
        "an actor", "teacher", lambda: len(_shards_there(run)), lambda: _collect(run), line
    )


async def _collect(run: Run) -> None:
    count = number_of_shards(run)
    run.progress.stage("collection", count, "shards")
    done: list[ShardSummary] = []

    async def contribution(index: int, call: Call) -> tuple[ShardSummary, Any]:
        summary, (shard, handed_back) = await run.play(call.method, *call.args, returns=3)
        await run.files.keep({f"{DATASET}/{shard_name(index)}": handed_back})
        done.append(summary)
        run.progress.advance(len(done))
        return summary, run.files.for_learners(shard)

    calls = (contribution(index, call) for index, call in enumerate(shard_calls(run)))
    contributions = await results(calls, at_once=2 * run.plan.rollout_workers)
    await _describe(run, [summary for summary, _ in contributions])
    run.data = [shard for _, shard in contributions if shard is not None]
    run.dismiss("rollout_worker")


async def _describe(run: Run, summaries: list[ShardSummary]) -> None:
    """Write dataset.json, after the shards and the tests of teacher and random policy."""
    described = datasets.Description(
        {**dataclasses.asdict(run.spec), "kwargs": dict(run.config.env.kwargs)}
    )
    for summary in summaries:
        described.add_summary(summary)
    description = described.finish()
    await run.journal.flush()
    rows = run.directory.rows(EVALUATIONS)
    references = {row["policy"]: row["returns"] for row in rows if row["member"] is None}
    description["reference_returns"] = references
    write_json(run.directory / DATASET / datasets.DESCRIPTION, description)
    run.journal.note(dataset_digest=description["digest"])
    run.progress.finish(
        f"{description['episodes']} episodes, {description['transitions']:,} steps,"
        f" mean return {description['returns']['mean']:.0f}"
    )


def _shards_there(run: Run) -> set[str]:
    """The names of shard files that earlier sessions wrote."""
    folder = Location.parse(run.directory / DATASET)
    return {path.name for path in folder.glob(datasets.SHARDS)}


def number_of_shards(run: Run) -> int:
    """How many shards the configured dataset has."""
    size, total = run.config.collection.episodes_per_shard, 0
    for tier, count in run.config.collection.episodes_by_tier().items():
        episodes = min(count, _episodes_seen(run)) if tier == "replay" else count
        total += -(-episodes // size)
    return total


def shard_calls(run: Run) -> Iterator[Call]:
    """The calls that make the shards, in the dataset's order."""
    config, index, there = run.config.collection, 0, run.files.readable(_shards_there(run))
    for tier, count in config.episodes_by_tier().items():
        calls = (
            _replay_calls(run, count, index)
            if tier == "replay"
            else _play_calls(run, tier, count, index)
        )
        for made_anew in calls:
            if shard_name(index) in there:
                file = run.files.sources([f"{DATASET}/{shard_name(index)}"])
                yield Call("load", (index, *file))
            else:
                yield made_anew
            index += 1


def _play_calls(run: Run, tier: str, count: int, index: int) -> Iterator[Call]:
    """Calls that play `count` episodes with a tier's policy; the first shard is number `index`."""
    size = run.config.collection.episodes_per_shard
    snapshot = None if tier == "random" else put({"medium": medium, "expert": expert}[tier](run))
    for place, first in enumerate(range(0, count, size)):
        episodes = min(size, count - first)
        seeds = seeding.integer_seeds(run.config.seed, f"collect-{tier}", first, count=episodes)
        task = ShardTask(index + place, tier, tuple(seeds))
        yield Call("contribute", (task, snapshot, run.files.outbox))


def _replay_calls(run: Run, count: int, index: int) -> Iterator[Call]:
    """Calls that make shards of the last `count` episodes the teacher saw, or of all there are."""
    per_round = run.config.teacher.episodes_per_round
    size, total = run.config.collection.episodes_per_shard, _episodes_seen(run)

    @lru_cache(ROUNDS_AT_HAND)
    def source(number: int) -> list[Any]:
        return run.files.sources([round_name(number)])

    for place, first in enumerate(range(max(0, total - count), total, size)):
        last = min(first + size, total) - 1
        rounds = tuple(range(first // per_round, last // per_round + 1))
        task = ReplayTask(index + place, first - rounds[0] * per_round, last + 1 - first)
        files = [argument for number in rounds for argument in source(number)]
        yield Call("replay", (task, run.files.outbox, *files))


def _episodes_seen(run: Run) -> int:
    """The number of episodes that the teacher saw."""
    rounds: int = read_json(run.directory / TEACHER)["rounds"]
    return rounds * run.config.teacher.episodes_per_round


def medium(run: Run) -> bytes:
    """The first snapshot past one third of the way from random to the teacher's best (D4RL's
    rule).
    """
    teacher = read_json(run.directory / TEACHER)
    rows = run.directory.rows(EVALUATIONS)
    random = [row for row in rows if row["policy"] == "random"][-1]
    lowest, best = sum(random["returns"]) / len(random["returns"]), teacher["best_return"]
    # A teacher that never got past the random policy has no such snapshot: then its best one.
    threshold = min(lowest + (best - lowest) / 3, best)
    rounds = next(test["round"] for test in teacher["tests"] if test["mean_return"] >= threshold)
    return snapshot_of(run, rounds)


def expert(run: Run) -> bytes:
    """The teacher's best snapshot."""
    return Location.parse(run.directory / run.directory.best_teacher_snapshot()).read_bytes()
