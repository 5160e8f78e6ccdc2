"""Source: a dataset opened from anywhere, with its metadata and its episodes, piece by piece.

Readers (`formats/`) make a Source; `checks/` validates one; `convert.py` writes one as native
shards. A reader keeps values as they are in the file, wrong ones too: judging them is validation's
work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cqlray.data.episode import Array, Shard

_MOST_LISTED = 30
# Transitions in a piece, roughly: large enough that the overhead of a piece does not matter, small
# enough that several fit in memory.
PIECE_SIZE = 65_536
# The tier of data that names none.
UNKNOWN_TIER = "logged"
_TIERS = ("random", "medium", "expert", "replay")


@dataclass(frozen=True)
class Piece:
    """Some whole episodes of a source, and where they stood in it."""

    shard: Shard
    file: str  # what messages call the place: a file's path, or path and episode group
    rows: Array | None = None  # [N] int64: each transition's row in that file, where it has rows
    # [N, observation_dim], where the file has them beside the observations
    next_observations: Array | None = None


@dataclass(frozen=True)
class Source:
    """A dataset opened for reading.

    `pieces` opens the files anew each time it is called, and takes bounded memory.
    """

    name: str  # as the user wrote it
    format: str  # cqlray, minari, d4rl, parquet, csv, dataframe
    # Keys as in dataset.json: id (None where the data does not say), observation_dim, action_dim,
    # action_low, action_high (lists of float; None where the data does not say), max_episode_steps
    # (or None), kwargs.
    environment: dict[str, Any]
    pieces: Callable[[], Iterator[Piece]]
    # Other metadata, for dataset.json: author, licence, algorithm, description,
    # reference_scores ..., and of a log its columns.
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str | list[str]]:
        """For a log, the columns that each option of --columns stands for, in their order; else
        empty.
        """
        columns: dict[str, str | list[str]] = self.provenance.get("columns", {})
        return columns

    @property
    def reading(self) -> list[str]:
        """What was found out about a log and is done to it as it is read, a line each."""
        lines: list[str] = self.provenance.get("reading", [])
        return lines


def columns_in_words(columns: Mapping[str, str | Sequence[str]]) -> str:
    """A log's columns in one line: `observation x, y; action u; reward r`."""
    named = {key: [value] if isinstance(value, str) else value for key, value in columns.items()}
    return "; ".join(f"{option} {listed(names)}" for option, names in named.items())


def number_names(columns: Mapping[str, str | Sequence[str]], option: str, count: int) -> list[str]:
    """What each of the `count` numbers of an option's vector is called, by a log's columns:
    `name[0]` where one column holds them all, `observation[0]` where the data has no names.
    """
    named = columns.get(option) or []
    names = [named] if isinstance(named, str) else list(named)
    if len(names) == count:
        return names
    vector = names[0] if len(names) == 1 else option
    return [f"{vector}[{index}]" for index in range(count)]


def listed(names: Sequence[str]) -> str:
    """The names, the first of them where they are many."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def describe_environment(observation_dim: int, action_dim: int, **known: Any) -> dict[str, Any]:
    """A source's environment; what `known` does not hold is None."""
    unknown = dict.fromkeys(("id", "action_low", "action_high", "max_episode_steps"))
    return {
        **unknown,
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "kwargs": {},
        **known,
    }


def tier_of(name: str) -> str:
    """The tier in a name such as hopper_medium_replay-v2, else `logged`."""
    words = re.split(r"[^a-z]+", name.lower())
    return "-".join(word for word in words if word in _TIERS) or UNKNOWN_TIER


def narrow(values: Array) -> Array:
    """Numbers as float32, rounded; unchanged where some are beyond its range, or where they are no
    numbers.
    """
    if values.dtype == np.float32 or values.dtype.kind not in "fiu":
        return values
    with np.errstate(over="ignore"):
        narrowed = values.astype(np.float32)
    lost = np.isinf(narrowed) & np.isfinite(values)
    return values if lost.any() else narrowed
