"""Convert any source to native shards, in bounded memory.

dataset.json is written last: a directory without it is an interrupted conversion, and the next one
overwrites it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cqlray.data import dataset as datasets
from cqlray.data import shards as shard_files
from cqlray.data.episode import ARRAYS, Array, Shard
from cqlray.data.loading import iterate_shards
from cqlray.data.source import Source
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import write_bytes, write_json

# Large enough that a file's overhead does not matter, small enough to hold several in memory.
TRANSITIONS_PER_SHARD = 50_000
DTYPES = {"lengths": np.int64, "seeds": np.int64, "terminations": np.bool_, "truncations": np.bool_}


def native_shards(source: Source, transitions: int = TRANSITIONS_PER_SHARD) -> Iterator[Shard]:
    """The source's episodes in order, as float32 shards of about so many transitions, each of one
    tier.

    An episode whose last step has no flag is truncated there, which is how training treats it.

    Raises:
        UserError: an episode has no step, or the source cannot be read.
    """
    held: list[Shard] = []
    for piece in source.pieces():
        if (piece.shard.lengths == 0).any():
            raise UserError(
                f"{piece.file}: an episode without a step; `cqlray dataset convert --fix` leaves"
                " it out"
            )
        shard = _native(piece.shard).closed()
        if held and (
            held[0].tier != shard.tier
            or sum(s.num_transitions for s in held) + shard.num_transitions > transitions
        ):
            yield Shard.joined(held)
            held = []
        if shard.num_episodes:
            held.append(shard)
    if held:
        yield Shard.joined(held)


def _native(shard: Shard) -> Shard:
    arrays: dict[str, Array] = {
        name: np.ascontiguousarray(getattr(shard, name), DTYPES.get(name, np.float32))
        for name in ARRAYS
    }
    return Shard(tier=shard.tier, **arrays)


def write_dataset(source: Source, directory: AnyPath, append: bool = False) -> dict[str, Any]:
    """Write the source as a native dataset and return its description. With `append`, its episodes
    follow those that are there already.

    Raises:
        UserError: the directory holds a dataset and `append` is not set, or one that the new
            episodes do not belong to; the source cannot be read or holds no episode.
    """
    there = require_room(directory, append)
    description = datasets.Description(source.environment)
    before: dict[str, Any] = {}
    if there:
        before = datasets.read_description(directory)
        description.environment = _same_environment(before["environment"], source, directory)
        _require_same_order(before.get("columns", {}), source, directory)
        for shard in iterate_shards(directory, before):
            description.add(shard)
    for shard in native_shards(source):
        name = description.add(shard)
        write_bytes(directory / name, shard_files.to_parquet(shard))
    if not description.entries:
        raise UserError(f"dataset {source.name!r} holds no episode")
    provenance = [
        *before.get("provenance", []),
        {"source": source.name, "format": source.format, **source.provenance},
    ]
    origin = of_origin(source)
    if there:
        origin.pop("columns", None)  # they are not those of the episodes before
    written = {**origin, **before, **description.finish(), "provenance": provenance}
    write_json(directory / datasets.DESCRIPTION, written)
    return written


def require_room(directory: AnyPath, append: bool) -> bool:
    """Whether the directory holds a dataset. Raises UserError if so, unless `append` is set."""
    there = (directory / datasets.DESCRIPTION).exists()
    if there and not append:
        raise UserError(f"{directory} holds a dataset already; --append adds to it")
    return there


def of_origin(source: Source) -> dict[str, Any]:
    """Where the data is from, as dataset.json records it, or would after a conversion."""
    kept = {
        key: source.provenance[key] for key in datasets.KEPT_OF_ORIGIN if key in source.provenance
    }
    itself = [{"source": source.name, "format": source.format, **source.provenance}]
    return {
        **kept,
        "provenance": source.provenance.get("sources", []) if source.format == "cqlray" else itself,
    }


def _same_environment(before: dict[str, Any], source: Source, directory: AnyPath) -> dict[str, Any]:
    """The environment of the dataset that is there, which must be the source's.

    Raises:
        UserError: it is another one.
    """
    for key in ("id", "observation_dim", "action_dim", "action_low", "action_high"):
        old, new = before.get(key), source.environment.get(key)
        if old is not None and new is not None and list(np.ravel(old)) != list(np.ravel(new)):
            raise UserError(
                f"{directory} has {key} {old}, dataset {source.name!r} has {new}: they do not"
                " belong together"
            )
    return before


def _require_same_order(before: dict[str, Any], source: Source, directory: AnyPath) -> None:
    """Check that each number of a vector goes on meaning what it meant so far.

    Raises:
        UserError: the source has the same columns as the dataset that is there, in another order.
    """
    for option in ("observation", "action"):
        old, new = before.get(option, []), source.columns.get(option, [])
        if old != new and sorted(old) == sorted(new):
            raise UserError(
                f"{directory} has the {option} columns in the order {', '.join(old)}; dataset"
                f" {source.name!r} has them as {', '.join(new)}: name them in that order with"
                f" --columns.{option}"
            )
