"""A learner's training data: where it is (device, memory or file), and how batches are made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cqlray.algorithms.agent import Scalars
from cqlray.algorithms.population import Gather, NoiseStream, TransitionTable
from cqlray.config.schema import CQLConfig
from cqlray.data import normalizer
from cqlray.data.columns import Columns, discounted_returns, join_shards
from cqlray.data.dataset import read_description
from cqlray.data.episode import Array, Shard
from cqlray.data.loading import iterate_shards, load_columns
from cqlray.data.memory import data_bytes, where_data_lives
from cqlray.data.store import ColumnFile, HostColumns, fingerprint, write_store
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath
from cqlray.workers.files import StoredData
from cqlray.workers.staging import StagedBatches


@dataclass(frozen=True)
class TrainingData:
    """Transitions as they are trained on, and the mean and standard deviation that their
    observations were normalised by.
    """

    rows: HostColumns | ColumnFile
    mean: Array
    std: Array

    def batches(
        self,
        configs: Sequence[CQLConfig],
        noise: NoiseStream,
        scalars: Scalars,
        device: torch.device,
    ) -> Gather:
        """Choose how to make batches: on the device if the data fits there, else sent ahead."""
        if isinstance(self.rows, HostColumns) and _fits(self.rows.data, device):
            return transition_table(self.rows.data, configs, device).gather(scalars)
        if configs[0].calibrated:
            raise UserError(
                "cql.calibrated needs the data in the device's memory, and it does not fit there"
            )
        return StagedBatches(noise, self.rows, scalars).gather


def load_training_data(
    data: Sequence[Shard | StoredData], scaling: ActionScaling, normalize: bool
) -> TrainingData:
    """Load shards, or one StoredData, and fit the normaliser to their observations.

    Raises:
        NotShared: this node does not have the directory of the data.
        UserError: that directory cannot be read here, or the scratch file not be written.
    """
    stored = data[0] if isinstance(data[0], StoredData) else None
    if stored is not None:
        stored.require()
        if stored.scratch is not None:
            return _from_disk(stored.directory, stored.scratch.path(), scaling, normalize)
    columns = (
        join_shards([shard for shard in data if isinstance(shard, Shard)])
        if stored is None
        else load_columns(stored.directory)[1]
    )
    mean, std = (
        normalizer.fit([columns.observations])
        if normalize
        else normalizer.identity(columns.observations.shape[1])
    )
    return TrainingData(HostColumns(columns, mean, std, scaling.to_unit), mean, std)


def _from_disk(
    directory: AnyPath, file: Path, scaling: ActionScaling, normalize: bool
) -> TrainingData:
    """Open the file, written first if it does not exist; holds one shard in memory at a time.

    The shards are read only if the file must be written: twice, or once without normalisation.
    """
    description = read_description(directory)

    def moments() -> tuple[Array, Array]:
        observations = (shard.observations for shard in iterate_shards(directory, description))
        if normalize:
            return normalizer.fit(observations)
        return normalizer.identity(next(observations).shape[1])

    of = fingerprint(description["digest"], np.array(normalize), scaling.low, scaling.high)
    shards = iterate_shards(directory, description)
    store = write_store(file, shards, of, moments, scaling.to_unit)
    return TrainingData(store, store.mean, store.std)


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
    """The dataset on the device, observations and actions as trained on; on a CPU it shares the
    columns' memory.
    """

    def on_device(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    returns = returns_of = None
    if configs[0].calibrated:
        keys = [(c.discount, c.reward_scale, c.reward_shift) for c in configs]
        distinct = list(dict.fromkeys(keys))
        returns = torch.empty((len(distinct), len(data.rewards)), device=device)
        for row, (discount, scale, shift) in zip(returns, distinct, strict=True):
            rewards = data.rewards * np.float32(scale) + np.float32(shift)
            row.copy_(torch.from_numpy(discounted_returns(rewards, data.ends, discount)))
        returns_of = torch.tensor([distinct.index(key) for key in keys], device=device)
    return TransitionTable(
        observations=on_device(data.observations),
        rows=on_device(data.rows),
        actions=on_device(data.actions),
        rewards=on_device(data.rewards),
        terminations=on_device(data.terminations.astype(np.float32)),
        data_returns=returns,
        returns_of=returns_of,
    )
