"""Convert any source to native shards, in bounded memory.

dataset.json is written last: a directory without it is an interrupted conversion, and the next one
goes on from its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cqlray.data import dataset as datasets
from cqlray.data import shards as shard_files
from cqlray.data.episode import ARRAYS, Array, Shard
from cqlray.data.loading import iterate_shards
from cqlray.data.source import Source, listed
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


def write_dataset(
    source: Source,
    directory: AnyPath,
    append: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Do all of a conversion and return the dataset's description. Raises as `conversion`."""
    for _ in conversion(source, directory, append, say):
        pass
    return datasets.read_description(directory)


def conversion(
    source: Source, directory: AnyPath, append: bool, say: Callable[[str], None]
) -> Iterator[None]:
    """Write the source as a native dataset, a shard at each step. With `append`, its episodes
    follow those that are there already.

    It may be left at any step, or killed: the next one keeps the shards that hold what the source
    holds, and ends with the same dataset. `say` tells how many those were.

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
        _require_same_meaning(before, source, directory)
        for shard in iterate_shards(directory, before):
            description.add(shard)
    yield from _write_shards(source, directory, description, say)
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


def _write_shards(
    source: Source,
    directory: AnyPath,
    description: datasets.Description,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Write the shards that an interrupted conversion did not leave there."""
    first, kept, goes_on = len(description.entries), 0, True
    for shard in native_shards(source):
        file = directory / description.add(shard)
        digest = description.entries[-1]["digest"]
        found = _digest_of(file) if goes_on else None
        if found == digest:
            kept += 1
        else:
            if goes_on and kept:
                say(f"{directory}: going on after {kept} shards of an interrupted conversion")
            if goes_on and found is not None:
                say(
                    f"{directory}: dataset {source.name!r} has changed since that conversion, or"
                    f" another one was begun there; written anew from {file.name} on"
                )
            goes_on = False
            write_bytes(file, shard_files.to_parquet(shard))
        yield
    if goes_on and kept and len(description.entries) > first:
        say(f"{directory}: all {kept} shards of an interrupted conversion are kept")


def _digest_of(file: AnyPath) -> str | None:
    """The digest of a shard that an interrupted conversion left; None where it left none."""
    try:
        return shard_files.from_parquet(file.read_bytes(), str(file)).digest()
    except (FileNotFoundError, UserError):
        return None


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


def _require_same_meaning(before: dict[str, Any], source: Source, directory: AnyPath) -> None:
    """Check that each number of a vector goes on meaning what it meant so far.

    Raises:
        UserError: the source has the same columns as the dataset that is there, in another order;
            or other categories, indicators or rules for missing values.
    """
    columns = before.get("columns", {})
    made = [
        [name for name in of.get("observation", []) if "=" in name or name.endswith(" missing")]
        for of in (columns, source.columns)
    ]
    if columns and source.columns and made[0] != made[1]:
        raise UserError(
            f"{directory} has the columns {listed(made[0]) or 'of no category'}, dataset"
            f" {source.name!r} has {listed(made[1]) or 'none such'}: the same number would mean"
            " something else; convert all files together"
        )
    rules, others = before.get("missing"), source.provenance.get("missing")
    if rules is not None and others is not None and rules != others:
        raise UserError(
            f"{directory} had its missing values treated by {listed(rules['rules'])}, dataset"
            f" {source.name!r} by {listed(others['rules'])}; give both the same --columns.missing"
        )
    for option in ("observation", "action"):
        old, new = columns.get(option, []), source.columns.get(option, [])
        if old != new and sorted(old) == sorted(new):
            raise UserError(
                f"{directory} has the {option} columns in the order {', '.join(old)}; dataset"
                f" {source.name!r} has them as {', '.join(new)}: name them in that order with"
                f" --columns.{option}"
            )
