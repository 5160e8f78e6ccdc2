"""D4RL's HDF5 files: observations, actions, rewards, terminals, timeouts, with or without
next_observations.

An episode ends at a row with `terminals` or `timeouts`. What a transition is follows
`d4rl.qlearning_dataset` where there are no next_observations: row i with the observation of row i +
1 as its next one, so that

- a row with `timeouts` is no transition, because the next row is another episode's (nor is it where
  `terminals` is set as well);
- the last row of the file is no transition, because nothing follows it;
- a row with `terminals` is a transition; its next observation is the next episode's first, which no
  target looks at.

The step before a row with `timeouts` is then the last of its episode, is marked truncated, and has
that row's observation for its final one. An episode of which nothing is left is left out. A
recording that was stopped has no end.

Where there are next_observations they are used: every row is a transition, rows with `timeouts` and
the last one too. Where there are no `timeouts`, an episode also ends where a row's next observation
is not the observation of the next row; where there are no next_observations either,
max_episode_steps must be given, and ends it. infos/ and everything else is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.formats.files import DataPath, readable
from cqlray.data.formats.hdf5 import opened_hdf5, probe_hdf5, read_part
from cqlray.data.formats.rows import Rows
from cqlray.data.source import PIECE_SIZE, Piece, Source, describe_environment, narrow, tier_of
from cqlray.errors import UserError

SUFFIXES = (".hdf5", ".h5")
_NEEDED = ("observations", "actions", "rewards", "terminals")


def open_d4rl(name: str, file: DataPath, environment: Mapping[str, Any] | None = None) -> Source:
    """A D4RL file, local or remote. Two flags for each row are held in memory; the rest is read
    piece by piece.

    Raises:
        UserError: it is not one, h5py is missing, or where episodes end cannot be known.
    """
    limit = (environment or {}).get("max_episode_steps")
    with readable(file.name, "HDF5 file"):
        probe_hdf5(file)
    with opened_hdf5(file) as arrays:
        _check(arrays, file)
        terminals, timeouts = _flags(arrays, file, limit)
        tier = tier_of(file.path.rpartition("/")[2])
        layout = _Layout(terminals, timeouts, "next_observations" in arrays, tier)
        known = describe_environment(_width(arrays["observations"]), _width(arrays["actions"]))
        provenance = _metadata(arrays)

    def pieces() -> Iterator[Piece]:
        with opened_hdf5(file) as arrays:
            for first, last in _groups(terminals | timeouts):
                piece = _piece(arrays, first, last, layout, file.name)
                if piece.shard.num_episodes:
                    yield piece

    return Source(name, "d4rl", known, pieces, provenance)


@dataclass(frozen=True)
class _Layout:
    """What is known of a file before its episodes are read."""

    terminals: Array  # [rows] bool
    timeouts: Array  # [rows] bool
    has_next: bool  # there are next_observations
    tier: str


def _check(arrays: Any, file: DataPath) -> None:
    """Check that the arrays needed are there, flat, and of one length."""
    if "episode_0" in arrays:
        raise UserError(f"{file.name} is the data of a Minari dataset; name its directory")
    missing = [key for key in _NEEDED if key not in arrays]
    if missing:
        raise UserError(
            f"{file.name}: no {', '.join(missing)}; a D4RL file has {', '.join(_NEEDED)} and"
            " timeouts"
        )
    rows = len(arrays["rewards"])
    if rows == 0:
        raise UserError(f"{file.name} has no rows")
    for key in (*_NEEDED, "timeouts", "next_observations"):
        if key not in arrays:
            continue
        shape, dtype = tuple(arrays[key].shape), arrays[key].dtype
        if shape[0] != rows:
            raise UserError(f"{file.name}, {key}: {shape[0]} rows; rewards has {rows}")
        is_vector = key not in ("rewards", "terminals", "timeouts")
        flat = len(shape) <= 2 if is_vector else shape[1:] in ((), (1,))
        if not flat or dtype.kind not in "fiub":
            right = "flat vectors of numbers (no images)" if is_vector else "one number a row"
            raise UserError(f"{file.name}, {key}: shape {shape} of {dtype}; it should be {right}")
    if (
        "next_observations" in arrays
        and arrays["next_observations"].shape != arrays["observations"].shape
    ):
        found, right = arrays["next_observations"].shape, arrays["observations"].shape
        raise UserError(f"{file.name}, next_observations: shape {found}; observations have {right}")


def _flags(arrays: Any, file: DataPath, limit: int | None) -> tuple[Array, Array]:
    """terminals and timeouts, [rows] bool each; timeouts found by the rules above where the file
    has none.
    """
    terminals = _flag(arrays, "terminals", file)
    if "timeouts" in arrays:
        return terminals, _flag(arrays, "timeouts", file)
    if limit is not None:
        return terminals, _at_limit(terminals, limit)
    if "next_observations" not in arrays:
        raise UserError(
            f"{file.name}: neither timeouts nor next_observations, so where a time limit ended an"
            " episode cannot be known; name the limit with --max-episode-steps (in train"
            " --env.max-episode-steps), or add timeouts"
        )
    timeouts = np.zeros(len(terminals), bool)
    for start in range(0, len(terminals) - 1, PIECE_SIZE):
        stop = min(start + PIECE_SIZE, len(terminals) - 1)
        following = read_part(arrays["observations"], file.name, slice(start + 1, stop + 1))
        differs = read_part(arrays["next_observations"], file.name, slice(start, stop)) != following
        breaks = differs.reshape(stop - start, -1).any(axis=1)
        timeouts[start:stop] = breaks & ~terminals[start:stop]
    return terminals, timeouts


def _flag(arrays: Any, key: str, file: DataPath) -> Array:
    values = read_part(arrays[key], f"{file.name}, {key}").reshape(-1)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise UserError(
            f"{file.name}, row {wrong[0]}, {key}: {values[wrong[0]]}; it should be true or false"
        )
    flags: Array = values.astype(bool)
    return flags


def _at_limit(terminals: Array, limit: int) -> Array:
    """[rows] bool: the rows that are their episode's step number `limit`."""
    timeouts = np.zeros(len(terminals), bool)
    starts = np.concatenate([[0], np.flatnonzero(terminals) + 1, [len(terminals)]])
    for start, stop in pairwise(starts):
        timeouts[start + limit - 1 : stop : limit] = True
    return timeouts


def _groups(ends: Array) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of whole episodes, about PIECE_SIZE rows together."""
    after = np.flatnonzero(ends) + 1
    if not len(after) or after[-1] != len(ends):
        after = np.append(after, len(ends))
    start = 0
    while start < len(ends):
        index = min(int(np.searchsorted(after, start + PIECE_SIZE)), len(after) - 1)
        yield start, int(after[index])
        start = int(after[index])


def _piece(arrays: Any, first: int, last: int, layout: _Layout, file: str) -> Piece:
    """The transitions of the rows of some whole episodes; perhaps there are none."""
    terminals, timeouts = layout.terminals[first:last].copy(), layout.timeouts[first:last]
    lasts = np.flatnonzero(terminals | timeouts)
    if not len(lasts) or lasts[-1] != last - first - 1:
        lasts = np.append(lasts, last - first - 1)
    # One row more, where there is one: the final observation of an episode that terminated.
    observations = _matrix(arrays["observations"], first, last + 1)
    if layout.has_next:
        following = _matrix(arrays["next_observations"], first, last)
        dropped, final = np.zeros(len(lasts), bool), following[lasts]
    else:
        following = None
        dropped = timeouts[lasts] | ~terminals[lasts]
        dropped[-1] |= last == len(layout.terminals)  # nothing follows the file's last row
        final = observations[np.minimum(lasts + 1, len(observations) - 1)]
        terminals[lasts[dropped]] = False  # a dropped row's timeout alone goes to the step before
    rows = Rows(
        observations=observations[: last - first],
        actions=_matrix(arrays["actions"], first, last),
        rewards=_matrix(arrays["rewards"], first, last)[:, 0],
        terminations=terminals,
        truncations=timeouts,
        lasts=lasts,
        dropped=dropped,
        final=final,
    )
    shard, is_step = rows.shard(layout.tier)
    kept = shard.select(shard.lengths > 0)
    return Piece(kept, file, np.arange(first, last)[is_step], following)


def _matrix(array: Any, first: int, last: int) -> Array:
    """[rows, width] of a slice of rows; fewer where the file ends before."""
    values: Array = read_part(array, array.name, slice(first, last))
    return narrow(values.reshape(len(values), -1))


def _width(array: Any) -> int:
    return int(array.shape[1]) if len(array.shape) == 2 else 1


def _metadata(arrays: Any) -> dict[str, Any]:
    """The words and numbers in metadata/."""
    found: dict[str, Any] = {}
    group = arrays.get("metadata")
    for key in group if hasattr(group, "keys") else ():
        # Strings of variable length are skipped: HDF5 hangs in damaged ones.
        if getattr(group[key], "shape", None) != () or group[key].dtype.kind == "O":
            continue
        value = group[key][()]
        if isinstance(value, bytes):
            found[key] = value.decode(errors="replace")
        elif isinstance(value, np.number | np.bool_):
            found[key] = value.item()
    algorithm = found.get("algorithm")
    named = {"algorithm": algorithm} if isinstance(algorithm, str) else {}
    return {**named, **({"metadata": found} if found else {})}
