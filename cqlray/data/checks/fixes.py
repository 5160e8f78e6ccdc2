"""Fix mistakes that can be fixed safely, in a new source that fixes each piece as it is read. Files
are never changed.

Only what the report names is fixed. Left out are episodes with a value that is not finite, episodes
without steps, and the later of two equal ones. Where both flags are set, the termination stays; the
last step of an episode without an end becomes truncated; actions outside their bounds by at most
CLIPPED_SHARE of the range are clipped. What is further outside stays an error: no clip would make
it what was executed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from cqlray.data.checks.findings import Report
from cqlray.data.checks.pieces import action_bounds, episode_hashes, is_whole, rounding_of
from cqlray.data.episode import Array, Shard
from cqlray.data.moments import fits
from cqlray.data.source import Piece, Source

CLIPPED_SHARE = 0.01

_DONE = {
    "zero_length": "left out {n} without a step",
    "not_finite": "left out {n} with a value that is not finite",
    "duplicate_episode": "left out {n} equal to an earlier one",
    "both_ends": "cleared the truncation of {n} where termination was set too",
    "open_episode": "marked the last step of {n} without an end as truncated",
    "out_of_bounds": (
        f"clipped the actions of {{n}}, outside their bounds by at most {CLIPPED_SHARE:.0%} of the"
        " range"
    ),
}
_UNITS = {"both_ends": "step", "out_of_bounds": "step"}


def fix(source: Source, report: Report) -> tuple[Source, list[str]]:
    """The source with the mistakes fixed that its report names, as far as they can be, and a line
    for each thing done.

    The source is read once here, to count; each later reading fixes anew, in bounded memory.
    Validate the result: what cannot be fixed is still in it.

    Raises:
        UserError: from the reader, where the source cannot be read to its end.
    """
    codes = {"open_episode" if code == "no_ends" else code for code in report.codes} & _DONE.keys()
    if not codes:
        return source, []
    done: Counter[str] = Counter()
    for _ in _mended(source, codes, done):
        pass
    lines = [
        text.format(n=_counted(done[code], _UNITS.get(code, "episode")))
        for code, text in _DONE.items()
        if done[code]
    ]
    mended = dataclasses.replace(
        source,
        pieces=lambda: _mended(source, codes, Counter()),
        provenance={**source.provenance, "mended": lines},
    )
    return mended, lines


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'s' * (count != 1)}"


def _mended(source: Source, codes: set[str], done: Counter[str]) -> Iterator[Piece]:
    """The pieces, fixed; `done` counts what was changed, by code."""
    seen: set[bytes] = set()
    for piece in source.pieces():
        if not is_whole(piece.shard):
            yield piece
            continue
        mended = _without_bad_episodes(piece, codes, done)
        shard = mended.shard
        if "both_ends" in codes:
            shard = _one_end(shard, done)
        if "open_episode" in codes:
            shard = _closed(shard, done)
        if "out_of_bounds" in codes:
            shard = _clipped(shard, source, done)
        mended = dataclasses.replace(mended, shard=shard)
        if "duplicate_episode" in codes:
            mended = _without_duplicates(mended, seen, done)
        if mended.shard.num_episodes:
            yield mended


def _without_bad_episodes(piece: Piece, codes: set[str], done: Counter[str]) -> Piece:
    shard = piece.shard
    keep = np.ones(shard.num_episodes, bool)
    if "zero_length" in codes:
        keep &= shard.lengths > 0
        done["zero_length"] += int((~keep).sum())
    if "not_finite" in codes:
        bad = _not_finite_episodes(shard) & keep
        keep &= ~bad
        done["not_finite"] += int(bad.sum())
    return _kept(piece, keep)


def _not_finite_episodes(shard: Shard) -> Array:
    """[E] bool: episodes with a value that is not a finite float32."""
    step_episode = np.repeat(np.arange(shard.num_episodes), shard.lengths)
    row_episode = np.repeat(np.arange(shard.num_episodes), shard.lengths + 1)
    bad = np.zeros(shard.num_episodes, bool)
    bad[row_episode[~fits(shard.observations).all(axis=1)]] = True
    bad[step_episode[~(fits(shard.actions).all(axis=1) & fits(shard.rewards))]] = True
    return bad


def _without_duplicates(piece: Piece, seen: set[bytes], done: Counter[str]) -> Piece:
    keep = np.ones(piece.shard.num_episodes, bool)
    for episode, digest in enumerate(episode_hashes(piece.shard)):
        keep[episode] = digest not in seen
        seen.add(digest)
    done["duplicate_episode"] += int((~keep).sum())
    return _kept(piece, keep)


def _kept(piece: Piece, keep: Array) -> Piece:
    """The piece with the episodes where `keep`, [E] bool, is true."""
    if keep.all():
        return piece
    shard = piece.shard
    steps = np.repeat(keep, shard.lengths)
    following = piece.next_observations
    fits_steps = following is not None and len(following) == len(steps)
    return dataclasses.replace(
        piece,
        shard=shard.select(keep),
        rows=None if piece.rows is None else piece.rows[steps],
        next_observations=following[steps] if following is not None and fits_steps else following,
    )


def _one_end(shard: Shard, done: Counter[str]) -> Shard:
    both = shard.terminations & shard.truncations
    done["both_ends"] += int(both.sum())
    return (
        dataclasses.replace(shard, truncations=shard.truncations & ~both) if both.any() else shard
    )


def _closed(shard: Shard, done: Counter[str]) -> Shard:
    closed = shard.closed()
    done["open_episode"] += int((closed.truncations & ~shard.truncations).sum())
    return closed


def _clipped(shard: Shard, source: Source, done: Counter[str]) -> Shard:
    bounds = action_bounds(source.environment)
    if bounds is None or len(bounds[0]) != shard.actions.shape[1]:
        return shard
    low, high = bounds
    excess = np.maximum(low - shard.actions, shard.actions - high)
    mendable = (excess > rounding_of(low, high)) & (
        excess <= np.float32(CLIPPED_SHARE) * (high - low)
    )
    done["out_of_bounds"] += int(mendable.any(axis=1).sum())
    if not mendable.any():
        return shard
    actions = np.where(mendable, np.clip(shard.actions, low, high), shard.actions).astype(
        shard.actions.dtype
    )
    return dataclasses.replace(shard, actions=actions)
