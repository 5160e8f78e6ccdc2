"""RolloutWorker: plays episodes with the teacher's policies. Loads no torch, so that it starts fast."""

from __future__ import annotations

from dataclasses import dataclass

from cqlray import checkpoint
from cqlray.algorithms.policy import Policy, StochasticActor, UniformActor
from cqlray.config import EnvConfig
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvPool, EnvSpec
from cqlray.envs.rollout import Actor, rollout


@dataclass(frozen=True)
class ShardTask:
    """What a shard is a pure function of, beside the snapshot: made again anywhere, it is the same bytes."""

    index: int
    tier: str
    seeds: tuple[int, ...]  # one an episode: seeds its reset and its action noise


class RolloutWorker:
    """Holds environments; keeps nothing from one call to the next."""

    def __init__(self, env: EnvConfig, spec: EnvSpec) -> None:
        self.spec = spec
        self.envs = EnvPool(env)

    def collect(self, task: ShardTask, snapshot: bytes | None) -> Shard:
        """Play the task's episodes, with sampled actions of the snapshot's policy, or uniform ones without a snapshot.

        Raises:
            EnvironmentFailure: the environment raised.
        """
        actor: Actor = UniformActor(self.spec.action_dim, task.seeds)
        if snapshot is not None:
            actor = StochasticActor(Policy(checkpoint.decode(snapshot)[0]), task.seeds)
        envs = self.envs.take(len(task.seeds))
        return Shard.of(rollout(actor, envs, task.seeds, self.spec.scaling), task.tier)
