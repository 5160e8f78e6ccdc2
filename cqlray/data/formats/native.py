"""Datasets in cqlray's format, from local disk or a URI: shard by shard, each checked against its
digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cqlray.data.dataset import (
    DESCRIPTION,
    KEPT_OF_ORIGIN,
    checked_description,
    require_digest,
    rows_of,
)
from cqlray.data.formats.files import DataPath, readable
from cqlray.data.shards import from_parquet
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError


def open_native(name: str, directory: DataPath) -> Source:
    """A directory that holds dataset.json.

    Raises:
        UserError: dataset.json is damaged. Iterating raises it where a shard is missing, damaged or
            not the one that dataset.json names.
    """
    file = directory / DESCRIPTION
    description = checked_description(file.json(), file.name)
    environment = {"max_episode_steps": None, "kwargs": {}, **description["environment"]}
    for key, array in (("observation_dim", "observations"), ("action_dim", "actions")):
        if key not in environment and description["shards"]:
            environment[key] = getattr(
                _piece(directory, description["shards"][0]).shard, array
            ).shape[1]
        if not isinstance(environment.get(key), int):
            raise UserError(
                f"{file.name}: environment.{key} should be a number, as cqlray wrote it"
            )
    provenance = {key: description[key] for key in KEPT_OF_ORIGIN if key in description}
    if isinstance(description.get("provenance"), list):
        provenance["sources"] = description["provenance"]

    def pieces() -> Iterator[Piece]:
        for entry in description["shards"]:
            yield _piece(directory, entry)

    return Source(name, "cqlray", environment, pieces, provenance)


def _piece(directory: DataPath, entry: dict[str, Any]) -> Piece:
    file = directory / entry["file"].rpartition("/")[2]
    with readable(file.name, "shard of the dataset, though dataset.json names it"):
        data = file.read()
    shard = from_parquet(data, file.name, rows_of(entry))
    require_digest(shard, entry, file.name)
    return Piece(shard, file.name)
