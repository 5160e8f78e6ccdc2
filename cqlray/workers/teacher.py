"""Teacher: SAC, trained online from the episodes that the rollout workers bring in rounds."""

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
from cqlray.storage.run_directory import SharedDirectory
from cqlray.workers.files import read_round, round_name


class Teacher:
    """Holds the agent and its pool; a round's episodes go in, updates follow."""

    def __init__(
        self,
        config: TeacherConfig,
        run_seed: int,
        scaling: ActionScaling,
        observation_dim: int,
        saved: bytes | None,
        place: SharedDirectory | None = None,
        *seen: Shard,
    ) -> None:
        """`saved` is a checkpoint and `seen` the shards of the rounds before it; neither for a
        fresh teacher.

        Where the storage is shared (`place`), those rounds are read there, and new ones are written
        there.
        """
        keep_freed_memory()
        torch.set_num_threads(1)
        self.config, self.scaling, self.observation_dim = config, scaling, observation_dim
        action_dim, device = len(scaling.low), torch.device("cpu")
        seed = seeding.integer_seed(run_seed, "teacher-init")
        agent = agents.initial_state([config], [seed], observation_dim, action_dim, device)
        self.scalars = agents.member_scalars([config], action_dim, device)
        self.population = Population(
            agent,
            lambda state, batch, noise: sac.update(state, batch, noise, self.scalars, config),
            NoiseStream(
                [seeding.integer_seed(run_seed, "teacher-noise")],
                sac.noise_shapes(config, action_dim),
                config.batch_size,
                device,
            ),
        )
        self.pool = ReplayPool(config.pool_capacity, observation_dim, action_dim)
        names = ("observations", "actions", "rewards", "next_observations", "terminations")
        self.columns = [torch.from_numpy(getattr(self.pool, name)) for name in names]
        self.steps, self.place = 0, place
        self.add(*seen)
        if saved is not None:
            arrays, metadata = checkpoint.decode(saved, "teacher checkpoint")
            agent.load(
                {name: torch.from_numpy(array) for name, array in arrays.items()},
                metadata["updates"],
            )
            if place is not None:
                self.add(*(read_round(place, index) for index in range(metadata["rounds"])))

    def add(self, *shards: Shard) -> None:
        """Put episodes into the pool."""
        for shard in shards:
            self.pool.add(shard, self.scaling.to_unit(shard.actions))
            self.steps += shard.num_transitions

    def learn(self, round_index: int, *shards: Shard) -> dict[str, Any]:
        """One round: its episodes, then its updates; metrics, steps and updates so far.

        Raises:
            StorageFailure: the round's file cannot be written.
        """
        if self.place is not None:
            self.place.write(round_name(round_index), shard_files.to_parquet(joined_round(shards)))
        before = self.steps
        self.add(*shards)
        report: dict[str, Any] = {"environment_steps": self.steps}
        rate = self.config.updates_per_step
        num_updates = int(self.steps * rate) - int(before * rate)
        if num_updates and round_index + 1 >= self.config.warmup_rounds:
            metrics = self.population.advance(num_updates, self._gather)
            report |= {name: values[0] for name, values in metrics.items()}
        return report | {
            "updates": self.population.agent.updates,
            "diverged": bool(self.population.frozen),
        }

    def _gather(self, positions: torch.Tensor) -> Batch:
        index = (positions * self.pool.size).long()
        observations, actions, rewards, next_observations, terminations = (
            column[index] for column in self.columns
        )
        scaled = rewards * self.config.reward_scale + self.config.reward_shift
        return Batch(observations, actions, scaled, next_observations, terminations)

    def snapshot(self) -> bytes:
        """What the rollout workers and evaluators play."""
        mean, std = identity(self.observation_dim)
        agent = self.population.agent
        return checkpoint.encode(
            snapshot_arrays(agent, self.scalars, mean, std), {"updates": agent.updates}
        )

    def save(self, progress: dict[str, Any]) -> bytes:
        """All that goes on from here, but for the pool, which is the episodes seen; `progress` is
        kept beside it.
        """
        agent = self.population.agent
        arrays = {name: tensor.numpy() for name, tensor in agent.tensors().items()}
        return checkpoint.encode(arrays, {**progress, "updates": agent.updates})


def joined_round(shards: Sequence[Shard]) -> Shard:
    """A round's episodes in one shard, as its file has them."""
    return Shard.of([episode for shard in shards for episode in shard.episodes()], "replay")
