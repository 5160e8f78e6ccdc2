"""A dataset: shards, and the description that stands beside them in dataset.json."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cqlray.config.secrets import masked_values
from cqlray.data.episode import Array, Shard
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.outside import read_json
from cqlray.storage.row_types import require
from cqlray.storage.rows import DatasetFacts

FORMAT = 1
# What a description keeps of where the data is from, beside its provenance.
KEPT_OF_ORIGIN = ("licence", "reference_returns", "reference_scores", "columns", "missing")
HISTOGRAM_BINS = 20
DESCRIPTION = "dataset.json"  # the description's file, written last: with it a dataset is whole


def dataset_digest(shard_digests: Sequence[str]) -> str:
    """SHA-256 over the shards' digests, in order."""
    return hashlib.sha256("\n".join(shard_digests).encode()).hexdigest()


@dataclass(frozen=True)
class ShardSummary:
    """What the description needs to know of a shard: the worker that has the shard makes it, the
    driver needs no more.
    """

    tier: str
    transitions: int
    digest: str
    returns: Array  # [E] float64
    used: Array  # [A, HISTOGRAM_BINS] bool: see used_bins

    @staticmethod
    def of(shard: Shard, environment: dict[str, Any]) -> ShardSummary:
        """Of a shard; `environment` is the EnvSpec as a dictionary."""
        used = used_bins(shard.actions, environment)
        return ShardSummary(
            shard.tier, shard.num_transitions, shard.digest(), shard.returns(), used
        )


SHARDS = "shard-*.parquet"  # what `shard_name` gives


def shard_name(index: int) -> str:
    """The file name of a dataset's shard."""
    return f"shard-{index:05d}.parquet"


class Description:
    """Builds a dataset's description (dataset.json) from its shards, one at a time."""

    def __init__(self, environment: dict[str, Any]) -> None:
        self.environment = environment
        self.returns: list[tuple[str, Array]] = []  # tier and returns of each shard
        self.entries: list[dict[str, Any]] = []
        self.used: Array | None = None  # [A, HISTOGRAM_BINS] bool, of all shards together

    def add(self, shard: Shard) -> str:
        """Add the next shard; returns the name of its file."""
        return self.add_summary(ShardSummary.of(shard, self.environment))

    def add_summary(self, summary: ShardSummary) -> str:
        """As `add`, for a shard on another machine."""
        name = shard_name(len(self.entries))
        self.returns.append((summary.tier, summary.returns))
        entry = {"file": name, "tier": summary.tier, "episodes": len(summary.returns)}
        self.entries.append({**entry, "transitions": summary.transitions, "digest": summary.digest})
        self.used = summary.used if self.used is None else self.used | summary.used
        return name

    def finish(self) -> dict[str, Any]:
        """The description of the shards added so far, at least one."""
        returns = np.concatenate([of_shard for _, of_shard in self.returns])
        # Returns that are not finite are validation's to report.
        counts, edges = np.histogram(returns[np.isfinite(returns)], bins=HISTOGRAM_BINS)
        assert self.used is not None
        return {
            "format": FORMAT,
            "environment": self.environment,
            "episodes": len(returns),
            "transitions": sum(entry["transitions"] for entry in self.entries),
            "digest": dataset_digest([entry["digest"] for entry in self.entries]),
            "tiers": {
                tier: self._tier(tier) for tier in dict.fromkeys(tier for tier, _ in self.returns)
            },
            "returns": {
                "mean": float(returns.mean()),
                "quantiles": {
                    str(q): float(np.quantile(returns, q)) for q in (0, 0.25, 0.5, 0.75, 1)
                },
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            },
            "action_coverage": (self.used.sum(axis=1) / HISTOGRAM_BINS).tolist(),
            "shards": self.entries,
        }

    def _tier(self, tier: str) -> dict[str, Any]:
        returns = np.concatenate(
            [of_shard for of_tier, of_shard in self.returns if of_tier == tier]
        )
        transitions = sum(entry["transitions"] for entry in self.entries if entry["tier"] == tier)
        return {
            "episodes": len(returns),
            "transitions": transitions,
            "mean_return": float(returns.mean()),
        }


def used_bins(actions: Array, environment: dict[str, Any]) -> Array:
    """[A, HISTOGRAM_BINS] bool: each dimension's bounds are cut into equal bins; true where a bin
    holds an action. No rows where the bounds are not known.
    """
    if environment.get("action_low") is None or environment.get("action_high") is None:
        return np.zeros((0, HISTOGRAM_BINS), bool)
    low, high = np.array(environment["action_low"]), np.array(environment["action_high"])
    actions = actions[np.isfinite(actions).all(axis=1)]
    used = np.zeros((actions.shape[1], HISTOGRAM_BINS), bool)
    for dimension in range(actions.shape[1]):
        share = (actions[:, dimension] - low[dimension]) / (high[dimension] - low[dimension])
        used[dimension, np.clip((share * HISTOGRAM_BINS).astype(int), 0, HISTOGRAM_BINS - 1)] = True
    return used


def is_native(name: str) -> bool:
    """Whether a name is that of a dataset or run directory of cqlray."""
    return _find(any_path(name)) is not None


def dataset_directory(path: AnyPath) -> AnyPath:
    """The directory that holds dataset.json: `path`, or path/dataset when `path` is a run
    directory.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"dataset {str(path)!r}: no such directory")
    if (found := _find(path)) is not None:
        return found
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(
            f"dataset {str(path)!r} is empty; make one with: cqlray collect --out {path}"
        )
    raise UserError(
        f"dataset {str(path)!r} has no dataset.json; it should be a dataset or run directory made"
        " by cqlray"
    )


def _find(path: AnyPath) -> AnyPath | None:
    return next((d for d in (path, path / "dataset") if (d / DESCRIPTION).is_file()), None)


def absolute_name(data: str) -> str:
    """The name that means the same in any working directory: local paths in full, URIs and
    minari:ID as they are.
    """
    return data if ":" in data.partition("/")[0] else str(Path(data).resolve())


def read_description(path: AnyPath) -> dict[str, Any]:
    """Read dataset.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = dataset_directory(path) / DESCRIPTION
    return checked_description(read_json(file), str(file))


def checked_description(description: Any, file: str) -> dict[str, Any]:
    """The description, whose file messages call `file`.

    Raises:
        UserError: it lacks what loading needs, or its digest is not that of its shards.
    """
    if wrong := list(_wrong_keys(description)):
        raise UserError(
            f"{file}: {', '.join(wrong)} missing or of the wrong type; it should be as cqlray"
            " wrote it"
        )
    if description["digest"] != dataset_digest(
        [entry["digest"] for entry in description["shards"]]
    ):
        raise UserError(
            f"{file}: its digest is not that of its shards; a shard was replaced or left out, or"
            " the file was changed"
        )
    found: dict[str, Any] = require(description, DatasetFacts, file)
    known = {"provenance": found["provenance"]} if "provenance" in found else {}
    return {**found, **masked_values(known)}


def rows_of(entry: dict[str, Any]) -> int | None:
    """The rows that a shard's file should have, by the description's entry; None where it does not
    say.
    """
    transitions, episodes = entry.get("transitions"), entry.get("episodes")
    if not isinstance(transitions, int) or not isinstance(episodes, int):
        return None
    return transitions + episodes


def require_digest(shard: Shard, entry: dict[str, Any], file: str) -> None:
    """Raises UserError unless a shard from `file` is the one of the description's entry."""
    if shard.digest() != entry["digest"]:
        raise UserError(
            f"{file}: its content is not what dataset.json says; the file was changed or damaged"
        )


def _wrong_keys(description: Any) -> Iterator[str]:
    """The keys that loading needs and that are missing or not of their type."""
    if not isinstance(description, dict):
        yield "everything"
        return
    for key, kind in (
        ("environment", dict),
        ("digest", str),
        ("shards", list),
        ("transitions", int),
        ("episodes", int),
    ):
        value = description.get(key)
        if not isinstance(value, kind) or (key == "digest" and not _is_digest(value)):
            yield key
    if not are_columns(description.get("columns", {})):
        yield "columns"
    shards = description.get("shards")
    for index, entry in enumerate(shards if isinstance(shards, list) else []):
        found = entry if isinstance(entry, dict) else {}
        if not isinstance(found.get("file"), str):
            yield f"shards[{index}].file"
        if not _is_digest(found.get("digest")):
            yield f"shards[{index}].digest"


def _is_digest(value: Any) -> bool:
    """Whether it is a SHA-256 as Python writes it."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def are_columns(columns: Any) -> bool:
    """Whether it is as a description has it: each option has the name of a column, or a list."""
    if not isinstance(columns, dict):
        return False
    named = (names if isinstance(names, list) else [names] for names in columns.values())
    return all(isinstance(name, str) for names in named for name in names)
