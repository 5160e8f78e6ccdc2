"""Datasets described and read whole, for tests of everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cqlray.data.dataset import Description, dataset_directory, read_description
from cqlray.data.episode import Shard
from cqlray.data.loading import iterate_shards
from cqlray.storage.locations import AnyPath


def describe(shards: Iterable[Shard], environment: dict[str, Any]) -> dict[str, Any]:
    """What dataset.json holds of these shards."""
    description = Description(environment)
    for shard in shards:
        description.add(shard)
    return description.finish()


def read_dataset(path: AnyPath) -> tuple[dict[str, Any], list[Shard]]:
    """Description and shards of a dataset or run directory, the digests checked.

    Raises:
        UserError: something is missing, damaged or not what the description says.
    """
    description = read_description(path)
    return description, list(iterate_shards(dataset_directory(path), description))
