"""Learner: trains a population with CQL on a dataset that never changes, without an environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cqlray import seeding
from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql
from cqlray.algorithms.agent import Scalars
from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.algorithms.networks import product_dtype
from cqlray.algorithms.population import NoiseStream, Population
from cqlray.algorithms.snapshot import snapshot_arrays
from cqlray.config.members import Member
from cqlray.config.schema import Precision
from cqlray.data.episode import Shard
from cqlray.envs.scaling import ActionScaling
from cqlray.storage import checkpoint
from cqlray.storage.outbox import HandedBack, Outbox, Source, contents
from cqlray.storage.run_directory import checkpoint_name, finite, snapshot_name
from cqlray.workers.files import StoredData
from cqlray.workers.training_data import load_training_data

# After this many updates the learner waits for the device and checks members for numbers that are
# not finite.
CHUNK = 100


@dataclass(frozen=True)
class Advance:
    """The result of one call of `advance`; with metrics and a snapshot if an interval ended."""

    updates: int
    seconds: float
    frozen: dict[int, int]  # member index -> updates at its last good state
    metrics: dict[str, list[float]] | None = None  # means over the interval, by member
    snapshot: bytes | None = None
    saved: bytes | None = None  # a checkpoint


@dataclass(frozen=True)
class StudentFiles:
    """Where a learner writes its population's files."""

    outbox: Outbox
    population: int


@dataclass(frozen=True)
class LearnerSpec:
    """The members that a learner trains, and how."""

    members: Sequence[Member]  # one population, so their networks have one structure
    run_seed: int
    scaling: ActionScaling  # between the environment's actions and [-1, 1]
    interval: int  # updates between snapshots
    device: str  # torch's name for it
    threads: int
    precision: Precision
    files: StudentFiles = StudentFiles(HandedBack(), 0)


class Learner:
    """Holds a population on one device; its data is there too, or in memory, or in a file."""

    def __init__(
        self, spec: LearnerSpec, saved: Source | None = None, *data: Shard | StoredData
    ) -> None:
        """`saved` is a checkpoint of the same members, or None for fresh ones. `data` are shards,
        or one StoredData.

        Raises:
            NotShared: this node does not have the directory of the data, of `saved` or of
                `spec.files`.
        """
        self.outbox, self.number = spec.files.outbox.in_background(), spec.files.population
        keep_freed_memory()
        torch.set_num_threads(spec.threads)
        torch.backends.cuda.matmul.allow_tf32 = spec.precision == "tf32"
        self.members, self.interval, self.device = spec.members, spec.interval, spec.device
        configs = [member.cql for member in spec.members]
        self.num_updates = configs[0].num_updates
        device = torch.device(spec.device)
        self.data = load_training_data(data, spec.scaling, configs[0].observation_normalization)
        self.scalars = agents.member_scalars(configs, len(spec.scaling.low), device)
        self.population = fresh_population(spec, len(self.data.mean), self.scalars)
        self.gather = self.data.batches(configs, self.population.noise, self.scalars, device)
        self.metric_sums: dict[str, list[float]] = {}
        if saved is not None:
            self._restore(next(contents(saved)))

    def updates(self) -> int:
        """Updates made so far."""
        return self.population.agent.updates

    def advance(self, seconds: float, save: bool) -> Advance:
        """Make updates up to the next snapshot, but for no longer than about `seconds`. There is a
        checkpoint with each snapshot, and with `save` in any case.
        """
        started, agent = time.monotonic(), self.population.agent
        goal = min(agent.updates - agent.updates % self.interval + self.interval, self.num_updates)
        while agent.updates < goal and time.monotonic() - started < seconds:
            # Chunks end at the same updates however the calls fall, so that the update at which a
            # member is frozen does not depend on the calls.
            count = min(CHUNK - agent.updates % CHUNK, goal - agent.updates)
            self._accumulate(self.population.advance(count, self.gather), count)
        result = Advance(
            agent.updates,
            time.monotonic() - started,
            {self.members[place].index: at for place, at in self.population.frozen.items()},
        )
        if agent.updates < goal:
            return replace(result, saved=self._save()) if save else result
        metrics = self._take_metrics()
        return replace(
            result, metrics=metrics, snapshot=self._snapshot(metrics), saved=self._save()
        )

    def step(self, seconds: float, save: bool) -> tuple[Advance, bytes | None, bytes | None]:
        """Call `advance`; returns its numbers, its snapshot, and the checkpoint if the driver must
        write it.

        The checkpoint is written last: if it exists, everything before it does, too.

        Raises:
            StorageFailure: an earlier step's file could not be written.
        """
        result, handed_back = self.advance(seconds, save), None
        if result.snapshot is not None:
            self.outbox.leave(snapshot_name(self.number, result.updates), result.snapshot)
        if result.saved is not None:
            handed_back = self.outbox.leave(checkpoint_name(self.number), result.saved)
        if result.updates == self.num_updates:
            self.outbox.flush()
        return replace(result, snapshot=None, saved=None), result.snapshot, handed_back

    def save(self) -> bytes | None:
        """Save a checkpoint; return its bytes if the driver must write. Raises StorageFailure."""
        handed_back = self.outbox.leave(checkpoint_name(self.number), self._save())
        self.outbox.flush()
        return handed_back

    def _accumulate(self, metrics: dict[str, list[float]], count: int) -> None:
        """Add the means over `count` updates to the interval's sums."""
        for name, values in metrics.items():
            sums = self.metric_sums.setdefault(name, [0.0] * len(values))
            self.metric_sums[name] = [
                total + value * count for total, value in zip(sums, values, strict=True)
            ]

    def _take_metrics(self) -> dict[str, list[float]]:
        """The interval's means; the next interval starts from zero."""
        count = (self.updates() - 1) % self.interval + 1
        means = {name: [total / count for total in sums] for name, sums in self.metric_sums.items()}
        self.metric_sums = {}
        return means

    def _snapshot(self, metrics: dict[str, list[float]]) -> bytes:
        """Policies and critics, for workers without torch."""
        agent = self.population.agent
        arrays = snapshot_arrays(agent, self.scalars, self.data.mean, self.data.std)
        metadata = {
            "updates": agent.updates,
            "members": [m.index for m in self.members],
            "metrics": finite(metrics),
        }
        return checkpoint.encode(arrays, metadata)

    def _save(self) -> bytes:
        """A checkpoint: everything that training needs to go on from here."""
        agent = self.population.agent
        metadata: dict[str, Any] = {
            "updates": agent.updates,
            "members": [member.index for member in self.members],
            "frozen": list(self.population.frozen.items()),
            "metric_sums": self.metric_sums,
        }
        return checkpoint.encode(
            {name: tensor.cpu().numpy() for name, tensor in agent.tensors().items()}, metadata
        )

    def _restore(self, saved: bytes) -> None:
        arrays, metadata = checkpoint.decode(saved, "student checkpoint")
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        self.population.agent.load(tensors, metadata["updates"])
        self.population.frozen = dict(metadata["frozen"])
        self.metric_sums = metadata["metric_sums"]


def fresh_population(spec: LearnerSpec, observation_dim: int, scalars: Scalars) -> Population:
    """The members before their first update, with the random numbers that they will draw."""
    configs, action_dim = [member.cql for member in spec.members], len(spec.scaling.low)
    device = torch.device(spec.device)

    def seeds(purpose: str) -> list[int]:
        return [seeding.integer_seed(spec.run_seed, purpose, m.seed) for m in spec.members]

    agent = agents.initial_state(
        configs,
        seeds("student-init"),
        observation_dim,
        action_dim,
        device,
        product_dtype(spec.precision),
    )
    noise = NoiseStream(
        seeds("student-noise"),
        cql.noise_shapes(configs[0], action_dim),
        configs[0].batch_size,
        device,
    )
    common = cql.PopulationConfig.of(configs)
    return Population(
        agent, lambda state, batch, noise: cql.update(state, batch, noise, scalars, common), noise
    )
