"""Teacher: trained with SAC, online, on the episodes that rollout workers play in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cqlray import seeding
from cqlray.algorithms import agent as agents
from cqlray.algorithms import sac
from cqlray.algorithms.agent import Batch
from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.algorithms.population import NoiseStream, Population
from cqlray.algorithms.snapshot import snapshot_arrays
from cqlray.config.schema import TeacherConfig
from cqlray.data import shards as shard_files
from cqlray.data.episode import Shard
from cqlray.data.normalizer import identity
from cqlray.data.replay import ReplayPool
from cqlray.envs.scaling import ActionScaling
from cqlray.storage import checkpoint
from cqlray.storage.outbox import Outbox, Source, contents
from cqlray.storage.run_directory import round_name

CPU = torch.device("cpu")


class Teacher:
    """Holds an agent and its replay pool: in each round, episodes come in and updates follow."""

    def __init__(
        self,
        config: TeacherConfig,
        run_seed: int,
        scaling: ActionScaling,
        observation_dim: int,
        saved: Source | None,
        outbox: Outbox,
        *seen: Source,
    ) -> None:
        """To resume, `saved` is a checkpoint and `seen` are the files of the rounds before it; a
        new teacher has neither. Files of new rounds go to the outbox.
        """
        keep_freed_memory()
        torch.set_num_threads(1)
        self.config, self.scaling, self.observation_dim = config, scaling, observation_dim
        action_dim = len(scaling.low)
        self.scalars = agents.member_scalars([config], action_dim, CPU)
        self.population = self._fresh(run_seed, action_dim)
        self.pool = ReplayPool(config.pool_capacity, observation_dim, action_dim)
        names = ("observations", "actions", "rewards", "next_observations", "terminations")
        self.columns = [torch.from_numpy(getattr(self.pool, name)) for name in names]
        self.steps, self.outbox = 0, outbox
        self.add(*(shard_files.from_parquet(data, "a teacher's round") for data in contents(*seen)))
        if saved is not None:
            arrays, metadata = checkpoint.decode(next(contents(saved)), "teacher checkpoint")
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.population.agent.load(tensors, metadata["updates"])

    def _fresh(self, run_seed: int, action_dim: int) -> Population:
        """The agent before its first update, with the random numbers that it will draw."""
        config = self.config
        init, noise = (
            seeding.integer_seed(run_seed, f"teacher-{what}") for what in ("init", "noise")
        )
        return Population(
            agents.initial_state([config], [init], self.observation_dim, action_dim, CPU),
            lambda state, batch, noise: sac.update(state, batch, noise, self.scalars, config),
            NoiseStream([noise], sac.noise_shapes(config, action_dim), config.batch_size, CPU),
        )

    def add(self, *shards: Shard) -> None:
        """Put episodes into the pool."""
        for shard in shards:
            self.pool.add(shard, self.scaling.to_unit(shard.actions))
            self.steps += shard.num_transitions

    def learn(self, round_index: int, *shards: Shard) -> tuple[dict[str, Any], bytes | None]:
        """One round: take in its episodes, then make its updates. Returns metrics with the numbers
        of steps and updates so far, and the round's file if the driver must write it.

        Raises:
            StorageFailure: the round's file cannot be written.
        """
        data = shard_files.to_parquet(_joined(shards))
        handed_back = self.outbox.leave(round_name(round_index), data)
        before = self.steps
        self.add(*shards)
        report: dict[str, Any] = {"environment_steps": self.steps}
        rate = self.config.updates_per_step
        num_updates = int(self.steps * rate) - int(before * rate)
        if num_updates and round_index + 1 >= self.config.warmup_rounds:
            metrics = self.population.advance(num_updates, self._gather)
            report |= {name: values[0] for name, values in metrics.items()}
        report |= {"updates": self.population.agent.updates}
        report |= {"diverged": bool(self.population.frozen)}
        return report, handed_back

    def _gather(self, positions: torch.Tensor) -> Batch:
        index = (positions * self.pool.size).long()
        observations, actions, rewards, next_observations, terminations = (
            column[index] for column in self.columns
        )
        scaled = rewards * self.config.reward_scale + self.config.reward_shift
        return Batch(observations, actions, scaled, next_observations, terminations)

    def snapshot(self) -> bytes:
        """The policy that rollout workers and evaluators play."""
        mean, std = identity(self.observation_dim)
        agent = self.population.agent
        return checkpoint.encode(
            snapshot_arrays(agent, self.scalars, mean, std), {"updates": agent.updates}
        )

    def save(self, progress: dict[str, Any]) -> bytes:
        """A checkpoint, with `progress` as its metadata. It omits the pool, which is
        rebuilt from the rounds' files.
        """
        agent = self.population.agent
        arrays = {name: tensor.numpy() for name, tensor in agent.tensors().items()}
        return checkpoint.encode(arrays, {**progress, "updates": agent.updates})


def _joined(shards: Sequence[Shard]) -> Shard:
    """A round's episodes in one shard, as in its file."""
    return Shard.of([episode for shard in shards for episode in shard.episodes()], "replay")
