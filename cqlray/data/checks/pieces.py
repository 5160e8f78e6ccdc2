"""The checks of one piece of data: functions that note findings, vectorised over the steps."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cqlray.data.checks.findings import Place, Tally
from cqlray.data.episode import Array, Shard
from cqlray.data.moments import blocks, fits
from cqlray.data.source import Piece, number_names
from cqlray.errors import UserError

# What float32 arithmetic and conversion to text may add, relative to a number's size, and to
# numbers near 0.
ROUNDING = 1e-5
ABSOLUTE_ROUNDING = 1e-6

VALUES = ("observations", "actions", "rewards")
FLAGS = ("terminations", "truncations")


def action_bounds(environment: dict[str, Any]) -> tuple[Array, Array] | None:
    """Low and high, [A] float32 each; None where the environment gives no finite ones.

    Raises:
        UserError: it gives something that cannot be bounds.
    """
    low, high = environment.get("action_low"), environment.get("action_high")
    if low is None or high is None:
        return None
    try:
        bounds = np.array([low, high], np.float32)
    except (ValueError, TypeError, OverflowError):
        bounds = np.zeros(0, np.float32)
    if bounds.ndim != 2:
        raise UserError(f"the bounds of the actions are {low} and {high}")
    if not np.isfinite(bounds).all():
        return None
    if (bounds[0] >= bounds[1]).any():
        raise UserError(
            f"the lower bounds of the actions, {low}, are not all below the upper ones, {high}"
        )
    return bounds[0], bounds[1]


def rounding_of(low: Array, high: Array) -> Array:
    """[A] float32: by how much rounding may put an action outside its bounds."""
    allowed: Array = np.float32(ROUNDING) * np.maximum(
        high - low, np.maximum(np.abs(low), np.abs(high))
    )
    return allowed


def episode_hashes(shard: Shard) -> Iterator[bytes]:
    """A hash of each episode's bytes without the seed: equal for equal episodes."""
    for episode in shard.episodes():
        hasher = hashlib.blake2b(str(len(episode)).encode(), digest_size=16)
        for name in (*VALUES, *FLAGS):
            hasher.update(np.ascontiguousarray(getattr(episode, name)).data)
        yield hasher.digest()


def is_whole(shard: Shard) -> bool:
    """Whether lengths, shapes and dtypes fit together, so that the shard can be cut into
    episodes.
    """
    return not any(shape_mistakes(shard)) and not any(dtype_mistakes(shard))


def shape_mistakes(shard: Shard) -> Iterator[tuple[str, str, str]]:
    """(array, its shape, the right shape) of each array of the wrong shape."""
    steps, episodes = int(np.sum(shard.lengths)), np.size(shard.lengths)
    right: dict[str, tuple[int | str, ...]] = {
        "observations": (steps + episodes, "observation_dim"),
        "actions": (steps, "action_dim"),
        **dict.fromkeys(("rewards", *FLAGS), (steps,)),
        "seeds": (episodes,),
    }
    for name, expected in right.items():
        shape = getattr(shard, name).shape
        if len(shape) != len(expected) or shape[0] != expected[0]:
            expected_text = f"({', '.join(str(size) for size in expected)})"
            yield (
                name,
                str(shape),
                f"{expected_text} for {episodes:,} episodes with {steps:,} steps in all",
            )


def dtype_mistakes(shard: Shard) -> Iterator[tuple[str, str, str]]:
    """(array, its dtype, the right one) of each array of the wrong kind of values."""
    for name in (*VALUES, *FLAGS):
        dtype, kinds = getattr(shard, name).dtype, "b" if name in FLAGS else "fiu"
        if dtype.kind not in kinds:
            yield name, str(dtype), "true or false" if name in FLAGS else "numbers, float32"


class Steps:
    """A piece, with the place of each of its steps and observations."""

    def __init__(
        self, piece: Piece, first_episode: int, columns: Mapping[str, str | Sequence[str]]
    ) -> None:
        self.piece = piece
        self.shard = piece.shard
        self.first_episode = first_episode  # number of the piece's first episode in its file
        self.starts = piece.shard.starts
        self.last = piece.shard.last_steps
        self.is_last = np.zeros(piece.shard.num_transitions, bool)
        self.is_last[self.last] = True
        self.observation_rows = piece.shard.step_rows
        shard = piece.shard
        self.names = {  # of each number
            "observations": number_names(columns, "observation", shard.observations.shape[1]),
            "actions": number_names(columns, "action", shard.actions.shape[1]),
            "rewards": ["reward"],
        }

    def place(self, step: int, column: str = "") -> Place:
        """The place of a step of the piece."""
        episode = int(np.searchsorted(self.starts, step, side="right")) - 1
        row = None if self.piece.rows is None else int(self.piece.rows[step])
        return Place(
            self.piece.file,
            row,
            column,
            self.first_episode + episode,
            step - int(self.starts[episode]),
        )

    def observation_place(self, row: int, column: str) -> Place:
        """The place of a row of the observations; an episode's final one is placed at its last
        step.
        """
        step = int(np.searchsorted(self.observation_rows, row, side="right")) - 1
        if step < 0:  # the one observation of an episode without steps, which is reported as such
            return dataclasses.replace(self.episode_place(0), column=column)
        return self.place(step, column if self.observation_rows[step] == row else f"next {column}")

    def episode_place(self, episode: int) -> Place:
        """The place of an episode of the piece: its first row, where it has one."""
        rows = self.piece.rows
        row = (
            int(rows[self.starts[episode]])
            if rows is not None and self.shard.lengths[episode]
            else None
        )
        return Place(self.piece.file, row, episode=self.first_episode + episode)


def check_finite(steps: Steps, tally: Tally) -> None:
    """Values that are not finite as float32, by column."""
    for name in VALUES:
        values = getattr(steps.shard, name)
        at = steps.observation_place if name == "observations" else steps.place
        for start, block in blocks(values[:, None] if values.ndim == 1 else values):
            wrong = ~fits(block)
            for column in np.flatnonzero(wrong.any(axis=0)):
                row = int(wrong[:, column].argmax())
                label = steps.names[name][column]
                value = float(block[row, column])
                tally.add(
                    "not_finite", at(start + row, label), int(wrong[:, column].sum()), value=value
                )


def check_bounds(steps: Steps, low: Array, high: Array, tally: Tally) -> Array:
    """Actions out of bounds, by column. Returns how many stand at a bound or beyond, [A] int64."""
    at_bound = np.zeros(len(low), np.int64)
    allowed = rounding_of(low, high)
    for start, block in blocks(steps.shard.actions):
        # How far outside; values that are not finite are check_finite's to report.
        excess = np.maximum(low - block, block - high)
        at_bound += (excess >= -allowed).sum(axis=0)
        wrong = (excess > allowed) & fits(block)
        for column in np.flatnonzero(wrong.any(axis=0)):
            count = int(wrong[:, column].sum())
            worst = float(excess[wrong[:, column], column].max())
            place = steps.place(
                start + int(wrong[:, column].argmax()), steps.names["actions"][column]
            )
            tally.add("out_of_bounds", place, count, worst, low=low[column], high=high[column])
    return at_bound


def check_ends(steps: Steps, tally: Tally) -> None:
    """Flags that are both set or stand inside an episode, episodes without an end or without a
    step.
    """
    shard = steps.shard
    ends = shard.terminations | shard.truncations
    marked = {
        "both_ends": shard.terminations & shard.truncations,
        "end_inside": ends & ~steps.is_last,
    }
    for code, wrong in marked.items():
        if wrong.any():
            tally.add(code, steps.place(int(wrong.argmax())), int(wrong.sum()))
    open_ends = steps.last[~ends[steps.last]]
    if len(open_ends):
        tally.add("open_episode", steps.place(int(open_ends[0])), len(open_ends))
    empty = np.flatnonzero(shard.lengths == 0)
    if len(empty):
        tally.add("zero_length", steps.episode_place(int(empty[0])), len(empty))


def check_next_observations(steps: Steps, tally: Tally) -> None:
    """Where the file has next observations: whether they are those of the following step."""
    shard, following = steps.shard, steps.piece.next_observations
    if following is None:
        return
    right = (shard.num_transitions, shard.observations.shape[1])
    if following.shape != right:
        place = Place(steps.piece.file, column="next_observations")
        tally.add("shape", place, found=str(following.shape), expected=str(right))
        return
    for start, found in blocks(following):
        rows = slice(start, start + len(found))
        expected = shard.observations[steps.observation_rows[rows] + 1]
        wrong = _differs(found, expected) & ~steps.is_last[rows, None]
        for column in np.flatnonzero(wrong.any(axis=0)):
            row = int(wrong[:, column].argmax())
            place = steps.place(start + row, f"next {steps.names['observations'][column]}")
            values: dict[str, Any] = {
                "found": found[row, column],
                "expected": expected[row, column],
            }
            tally.add("next_observation", place, int(wrong[:, column].sum()), **values)


def _differs(found: Array, expected: Array) -> Array:
    """Where two arrays of one shape differ by more than rounding.

    Two NaN are equal: check_finite reports them.
    """
    differs: Array = found != expected
    if differs.any():
        a, b = found.astype(np.float64), expected.astype(np.float64)
        differs &= ~(np.abs(a - b) <= ABSOLUTE_ROUNDING + ROUNDING * np.abs(b)) & ~(
            np.isnan(a) & np.isnan(b)
        )
    return differs
