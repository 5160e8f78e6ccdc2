"""Learner: trains its population of members with CQL from a dataset that never changes.

It knows no environment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cqlray import seeding
from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql
from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.algorithms.networks import product_dtype
from cqlray.algorithms.population import Gather, NoiseStream, Population, TransitionTable
from cqlray.algorithms.snapshot import snapshot_arrays
from cqlray.config.schema import CQLConfig, Member, Precision
from cqlray.data import normalizer
from cqlray.data.dataset import Columns, discounted_returns, read_description
from cqlray.data.episode import Array, Shard
from cqlray.data.loading import fill_columns, iterate_shards, load_columns
from cqlray.data.store import (
    ColumnFile,
    HostColumns,
    data_bytes,
    fingerprint,
    where_data_lives,
    write_store,
)
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.storage import checkpoint
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import SharedDirectory, finite
from cqlray.storage.writer import Writer
from cqlray.workers.files import StoredData, checkpoint_name, snapshot_name
from cqlray.workers.staging import StagedBatches

# Members are checked for non-finite numbers, and the device is waited for, once in so many updates.
CHUNK = 100


@dataclass(frozen=True)
class Advance:
    """What one call of `advance` brings back; a snapshot and its metrics only where an interval
    ended.
    """

    updates: int
    seconds: float
    frozen: dict[int, int]  # member index -> updates at its last good state
    metrics: dict[str, list[float]] | None = None
    snapshot: bytes | None = None
    saved: bytes | None = None


@dataclass(frozen=True)
class StudentFiles:
    """Where a learner writes what its population leaves, where the storage is shared."""

    place: SharedDirectory
    population: int


class Learner:
    """Holds a population on one device, and its data there, in memory or in a file."""

    def __init__(
        self,
        members: Sequence[Member],
        run_seed: int,
        scaling: ActionScaling,
        interval: int,
        device: str,
        threads: int,
        precision: Precision,
        saved: bytes | None,
        files: StudentFiles | None = None,
        *data: Shard | StoredData,
    ) -> None:
        """`saved` is a checkpoint of the same members, or None for fresh ones; `interval` is
        between snapshots.

        With `files` it writes them itself, and goes on from the checkpoint that is there. `data`
        are shards, or one StoredData.

        Raises:
            NotShared: this node does not have the directory of the data or of `files`.
        """
        if files is not None:
            files.place.require()
        keep_freed_memory()
        self.files, self.writer = files, Writer()
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self.members, self.interval, self.device = list(members), interval, torch.device(device)
        configs = [member.cql for member in members]
        self.num_updates = configs[0].num_updates
        self._load(data, scaling, configs[0].observation_normalization)
        observation_dim, action_dim = len(self.mean), len(scaling.low)
        self.scalars = agents.member_scalars(configs, action_dim, self.device)
        init_seeds = [
            seeding.integer_seed(run_seed, "student-init", member.seed) for member in members
        ]
        noise_seeds = [
            seeding.integer_seed(run_seed, "student-noise", member.seed) for member in members
        ]
        dtype = product_dtype(precision)
        agent = agents.initial_state(
            configs, init_seeds, observation_dim, action_dim, self.device, dtype
        )
        settings = cql.Settings.of(configs)
        noise = NoiseStream(
            noise_seeds,
            cql.noise_shapes(configs[0], action_dim),
            configs[0].batch_size,
            self.device,
        )
        self.population = Population(
            agent,
            lambda state, batch, noise: cql.update(state, batch, noise, self.scalars, settings),
            noise,
        )
        self.gather = self._batches(configs, noise)
        self.metric_sums: dict[str, list[float]] = {}
        if files is not None and (files.place.path / checkpoint_name(files.population)).exists():
            saved = files.place.read(checkpoint_name(files.population))
        if saved is not None:
            self._restore(saved)

    def _load(
        self, data: Sequence[Shard | StoredData], scaling: ActionScaling, normalize: bool
    ) -> None:
        """Fit the normaliser, and have the data as it is trained on, in memory or in a file."""
        self.rows: HostColumns | ColumnFile
        stored = data[0] if isinstance(data[0], StoredData) else None
        if stored is not None:
            stored.require()
        if stored is not None and stored.file is not None:
            self.rows, (self.mean, self.std) = _from_disk(
                stored.directory, stored.file, scaling, normalize
            )
            return
        columns = (
            _joined([shard for shard in data if isinstance(shard, Shard)])
            if stored is None
            else _read(stored)
        )
        width = columns.observations.shape[1]
        self.mean, self.std = (
            normalizer.fit([columns.observations]) if normalize else normalizer.identity(width)
        )
        self.rows = HostColumns(columns, self.mean, self.std, scaling.to_unit)

    def _batches(self, configs: Sequence[CQLConfig], noise: NoiseStream) -> Gather:
        """How a batch is made: looked up on the device where the data fits there, else sent there
        ahead of its turn.
        """
        if isinstance(self.rows, HostColumns) and _fits(self.rows.data, self.device):
            return transition_table(self.rows.data, configs, self.device).gather(self.scalars)
        if configs[0].calibrated:
            raise UserError(
                "cql.calibrated needs the data in the device's memory, and it does not fit there"
            )
        return StagedBatches(noise, self.rows, self.scalars).gather

    def updates(self) -> int:
        """Updates made so far."""
        return self.population.agent.updates

    def advance(self, seconds: float, save: bool) -> Advance:
        """Make updates up to the next snapshot, or for about `seconds`; `save` asks for a
        checkpoint also short of one.
        """
        started = time.monotonic()
        agent = self.population.agent
        goal = min(agent.updates - agent.updates % self.interval + self.interval, self.num_updates)
        while agent.updates < goal and time.monotonic() - started < seconds:
            # Chunks end where a fresh run's would, so that what is frozen when does not depend on
            # who called when.
            count = min(CHUNK - agent.updates % CHUNK, goal - agent.updates)
            self._accumulate(self.population.advance(count, self.gather), count)
        frozen = {
            self.members[place].index: updates for place, updates in self.population.frozen.items()
        }
        if agent.updates < goal:
            return Advance(
                agent.updates,
                time.monotonic() - started,
                frozen,
                saved=self._save() if save else None,
            )
        metrics = self._take_metrics()
        return Advance(
            agent.updates,
            time.monotonic() - started,
            frozen,
            metrics,
            self._snapshot(metrics),
            self._save(),
        )

    def step(self, seconds: float, save: bool) -> tuple[Advance, bytes | None, bytes | None]:
        """`advance`, in three: what it says, the snapshot, and the checkpoint where somebody else
        is to write it.

        With `files` of its own both are written in the background, the checkpoint last: what stands
        before it is then there.

        Raises:
            StorageFailure: what an earlier step left could not be written.
        """
        result = self.advance(seconds, save)
        said = replace(result, snapshot=None, saved=None)
        if self.files is None:
            return said, result.snapshot, result.saved
        if result.snapshot is not None:
            self._write(snapshot_name(self.files.population, result.updates), result.snapshot)
        if result.saved is not None:
            self._write(checkpoint_name(self.files.population), result.saved)
        if result.updates == self.num_updates:
            self.writer.flush()
        return said, result.snapshot, None

    def save(self) -> bytes | None:
        """A checkpoint of now: written, or given to somebody else to write.

        Raises StorageFailure.
        """
        saved = self._save()
        if self.files is None:
            return saved
        self._write(checkpoint_name(self.files.population), saved)
        self.writer.flush()
        return None

    def _write(self, name: str, data: bytes) -> None:
        assert self.files is not None
        self.writer.submit(partial(self.files.place.write, name, data), len(data))

    def _accumulate(self, metrics: dict[str, list[float]], count: int) -> None:
        for name, values in metrics.items():
            sums = self.metric_sums.setdefault(name, [0.0] * len(values))
            self.metric_sums[name] = [
                total + value * count for total, value in zip(sums, values, strict=True)
            ]

    def _take_metrics(self) -> dict[str, list[float]]:
        count = (self.updates() - 1) % self.interval + 1
        means = {name: [total / count for total in sums] for name, sums in self.metric_sums.items()}
        self.metric_sums = {}
        return means

    def _snapshot(self, metrics: dict[str, list[float]]) -> bytes:
        agent = self.population.agent
        arrays = snapshot_arrays(agent, self.scalars, self.mean, self.std)
        metadata = {
            "updates": agent.updates,
            "members": [m.index for m in self.members],
            "metrics": finite(metrics),
        }
        return checkpoint.encode(arrays, metadata)

    def _save(self) -> bytes:
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


def _joined(shards: Sequence[Shard]) -> Columns:
    transitions, episodes = (
        sum(s.num_transitions for s in shards),
        sum(s.num_episodes for s in shards),
    )
    return fill_columns(
        shards, transitions, episodes, shards[0].observations.shape[1], shards[0].actions.shape[1]
    )


def _read(data: StoredData) -> Columns:
    _, columns = load_columns(data.directory)
    return columns


def _from_disk(
    directory: AnyPath, file: Path, scaling: ActionScaling, normalize: bool
) -> tuple[ColumnFile, tuple[Array, Array]]:
    """The file, made if it is not there yet, and the normaliser; in memory is one shard at a time.

    Raises:
        UserError: the directory cannot be read here, or the file cannot be written.
    """
    description = read_description(directory)
    first = next(iterate_shards(directory, description))
    mean, std = normalizer.identity(first.observations.shape[1])
    if normalize:
        mean, std = normalizer.fit(
            shard.observations for shard in iterate_shards(directory, description)
        )
    of = fingerprint(description["digest"], mean, std, scaling.low, scaling.high)
    shards = iterate_shards(directory, description)
    return write_store(file, shards, of, mean, std, scaling.to_unit), (mean, std)


def _fits(data: Columns, device: torch.device) -> bool:
    """Whether the data, which is in memory, has room on the device."""
    if device.type == "cpu":
        return True
    episodes = int(data.ends.sum())
    size = data_bytes(
        len(data.rewards), episodes, data.observations.shape[1], data.actions.shape[1]
    )
    free, _ = torch.cuda.mem_get_info(device)
    return where_data_lives(size, free, sys.maxsize)[0] == "device"


def transition_table(
    data: Columns, configs: Sequence[CQLConfig], device: torch.device
) -> TransitionTable:
    """The dataset, observations and actions as trained on, on the device: on a CPU in the memory
    where it is.
    """

    def on_device(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    returns = None
    if configs[0].calibrated:
        keys = [(c.discount, c.reward_scale, c.reward_shift) for c in configs]
        by_key = {
            k: discounted_returns(
                data.rewards * np.float32(k[1]) + np.float32(k[2]), data.ends, k[0]
            )
            for k in set(keys)
        }
        returns = on_device(np.stack([by_key[key] for key in keys]))
    return TransitionTable(
        observations=on_device(data.observations),
        rows=on_device(data.rows),
        actions=on_device(data.actions),
        rewards=on_device(data.rewards),
        terminations=on_device(data.terminations.astype(np.float32)),
        data_returns=returns,
    )
