"""Files of a run directory that its actors write and read themselves, where the storage is
shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqlray.data import shards as shard_files
from cqlray.data.episode import Shard
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import SharedDirectory, not_shared


def round_name(index: int) -> str:
    """The episodes of a teacher's round."""
    return f"teacher/replay-{index:05d}.parquet"


def read_round(place: SharedDirectory, index: int) -> Shard:
    """The episodes of a round, as its file has them."""
    return shard_files.from_parquet(
        place.read(round_name(index)), f"{place.path}/{round_name(index)}"
    )


@dataclass(frozen=True)
class StoredData:
    """A dataset that learners read themselves.

    What exceeds memory has a `file`, which the learners of one machine make of the shards and
    share.
    """

    directory: AnyPath
    file: Path | None = None

    def require(self) -> None:
        """Raises NotShared unless this node has the directory."""
        try:
            there = (self.directory / "dataset.json").exists()
        except OSError:  # it is none of ours to read, or its server is gone
            there = False
        if not there:
            raise not_shared(self.directory)


def snapshot_name(population: int, updates: int) -> str:
    """Policies and critics of a population at an update count."""
    return f"snapshots/population-{population}/{updates:09d}.safetensors"


def checkpoint_name(population: int) -> str:
    """All that a population goes on from."""
    return f"checkpoints/population-{population}.safetensors"
