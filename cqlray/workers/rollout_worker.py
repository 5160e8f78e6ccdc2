"""RolloutWorker: plays episodes with the teacher's policies, and makes shards of them.

It does not import torch, so it starts fast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias

from cqlray.algorithms.policy import Policy, StochasticActor, UniformActor
from cqlray.config.schema import EnvConfig
from cqlray.data import shards as shard_files
from cqlray.data.dataset import ShardSummary, shard_name
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvPool, EnvSpec
from cqlray.envs.rollout import Actor, rollout
from cqlray.storage import checkpoint
from cqlray.storage.outbox import Outbox, Source, contents
from cqlray.storage.run_directory import DATASET

Contribution: TypeAlias = tuple[ShardSummary, Shard, bytes | None]


@dataclass(frozen=True)
class ShardTask:
    """Determines a shard, with the snapshot: made again anywhere, it has the same bytes."""

    index: int
    tier: str
    seeds: tuple[int, ...]  # one for each episode: of its reset and its action noise


@dataclass(frozen=True)
class ReplayTask:
    """A shard of what the teacher saw: some episodes of one or several rounds, joined."""

    index: int
    first: int  # counted from the first of the rounds
    episodes: int


class RolloutWorker:
    """Holds environments; keeps nothing from one call to the next.

    Each method makes a shard, and its summary, which is all that the driver reads. Shards for the
    dataset also go to an outbox; the third result is the file if the driver has to write it.
    """

    def __init__(self, env: EnvConfig, spec: EnvSpec) -> None:
        self.spec = spec
        self.environment = {**dataclasses.asdict(spec), "kwargs": dict(env.kwargs)}
        self.envs = EnvPool(env)

    def collect(self, task: ShardTask, snapshot: bytes | None) -> Shard:
        """Play the task's episodes, with sampled actions of the snapshot's policy, or uniform ones
        without a snapshot.

        Raises:
            EnvironmentFailure: the environment raised.
        """
        actor: Actor = UniformActor(self.spec.action_dim, task.seeds)
        if snapshot is not None:
            actor = StochasticActor(Policy(checkpoint.decode(snapshot)[0]), task.seeds)
        envs = self.envs.take(len(task.seeds))
        return Shard.of(rollout(actor, envs, task.seeds, self.spec.scaling), task.tier)

    def play(self, task: ShardTask, snapshot: bytes | None) -> tuple[ShardSummary, Shard]:
        """A shard for a round of the teacher, which keeps the round's file itself."""
        shard = self.collect(task, snapshot)
        return ShardSummary.of(shard, self.environment), shard

    def contribute(self, task: ShardTask, snapshot: bytes | None, outbox: Outbox) -> Contribution:
        """Play a shard for the dataset.


        Raises:
            EnvironmentFailure: the environment raised. StorageFailure: the file cannot be written.
        """
        return self._left(task.index, self.collect(task, snapshot), outbox)

    def replay(self, task: ReplayTask, outbox: Outbox, *rounds: Source) -> Contribution:
        """Make a shard for the dataset from episodes that the teacher saw, read from its rounds."""
        shards = [shard_files.from_parquet(data, "a teacher's round") for data in contents(*rounds)]
        episodes = [episode for shard in shards for episode in shard.episodes()]
        chosen = episodes[task.first : task.first + task.episodes]
        return self._left(task.index, Shard.of(chosen, "replay"), outbox)

    def load(self, index: int, file: Source) -> Contribution:
        """Load a shard of the dataset from the file that an earlier session wrote."""
        (data,) = contents(file)
        shard = shard_files.from_parquet(data, shard_name(index))
        return ShardSummary.of(shard, self.environment), shard, None

    def _left(self, index: int, shard: Shard, outbox: Outbox) -> Contribution:
        handed_back = outbox.leave(f"{DATASET}/{shard_name(index)}", shard_files.to_parquet(shard))
        return ShardSummary.of(shard, self.environment), shard, handed_back
