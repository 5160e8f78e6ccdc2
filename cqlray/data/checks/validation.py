"""Check data before it is trained on: one pass over a source, piece by piece, in bounded memory.

Beside the current piece only sums for each column are kept, and 16 bytes and a place for each
episode. findings.KINDS lists what is looked for and what would be right; the thresholds are the
constants below.

An episode whose last step has neither flag is a warning: training bootstraps from its last
observation exactly as at a truncation, and recordings that were stopped look like this (D4RL's
files do; Minari and d3rlpy take such an end as a truncation). Where no episode at all has an end,
the flags were most likely not read, which is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cqlray.data.checks.actions import ActionSpread
from cqlray.data.checks.findings import Finding, Place, Report, Tally, require_valid
from cqlray.data.checks.gaps import Gaps
from cqlray.data.checks.pieces import (
    VALUES,
    Steps,
    action_bounds,
    check_bounds,
    check_ends,
    check_finite,
    check_next_observations,
    dtype_mistakes,
    episode_hashes,
    is_whole,
    shape_mistakes,
)
from cqlray.data.episode import Array, Shard
from cqlray.data.moments import Magnitudes, Moments
from cqlray.data.source import Piece, Source, number_names
from cqlray.errors import UserError

__all__ = ["Finding", "Place", "Report", "require_valid", "validate"]

# Ratio of the largest to the smallest standard deviation of observation columns; beyond it a
# network without normalised observations hardly sees the small columns.
SCALE_SPREAD = 1e4
# Ratio of |mean| to standard deviation; beyond it float32 has three of its seven digits left for
# what changes.
OFFSET_RATIO = 1e4
# Share of actions at a bound, and share of the bounds that actions use.
SATURATED_SHARE = 0.5
NARROW_SHARE = 0.1
# Ratio of the largest to the median reward, absolute values; sparse rewards (0 and one other value)
# have 1.
REWARD_TAIL = 1e4


def validate(source: Source, batch_size: int = 256) -> Report:
    """Check everything. Wrong data raises nothing: what the reader refuses is an error in the
    report too.
    """
    checks = _Checks(source)
    try:
        for piece in source.pieces():
            checks.piece(piece)
    except UserError as error:
        checks.tally.add("unreadable", Place(), message=str(error))
    checks.whole(batch_size)
    return Report(
        source.name,
        checks.episodes,
        checks.transitions,
        checks.tally.findings(),
        checks.tally.unlisted,
        checks.observations,
    )


@dataclass(frozen=True)
class _Layout:
    """How the arrays of the first piece look; the others must look the same."""

    file: str
    columns: dict[str, int]
    dtypes: dict[str, np.dtype[Any]]

    @staticmethod
    def of(piece: Piece) -> _Layout:
        arrays = {name: getattr(piece.shard, name) for name in VALUES}
        columns = {name: array.shape[1] for name, array in arrays.items() if array.ndim == 2}
        return _Layout(piece.file, columns, {name: array.dtype for name, array in arrays.items()})


class _Checks:
    """The sums of one pass over a source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.environment = source.environment
        self.tally = Tally()
        self.episodes = self.transitions = self.terminations = self.ended = 0
        self.first: _Layout | None = None
        self.file, self.file_episodes = "", 0
        self.gaps = Gaps(source.columns if source.format != "cqlray" else {})
        self.hashes: dict[bytes, tuple[str, int]] = {}
        self.rewards, self.magnitudes = Moments(1), Magnitudes()
        self.observations: Moments | None = None
        self.actions: Moments | None = None
        self.at_bound: Array | None = None
        self.spread: ActionSpread | None = None
        try:
            self.bounds = action_bounds(self.environment)
        except UserError as error:
            self.bounds = None
            self.tally.add("bounds", Place(), found=str(error))

    # A piece

    def piece(self, piece: Piece) -> None:
        """Check one piece and add it to the sums."""
        shard = piece.shard
        if piece.file != self.file:
            self.file, self.file_episodes = piece.file, 0
        if self._layout(piece):
            steps = Steps(piece, self.file_episodes, self.source.columns)
            check_finite(steps, self.tally)
            self.gaps.add(shard)
            check_ends(steps, self.tally)
            check_next_observations(steps, self.tally)
            self._bounds(steps)
            self._duplicates(steps)
            self._sums(shard)
        self.episodes += np.size(shard.lengths)
        self.file_episodes += np.size(shard.lengths)
        self.transitions += int(np.sum(shard.lengths))

    def _layout(self, piece: Piece) -> bool:
        """Shapes, dtypes and dimensions; False where no more can be checked."""
        shard, tally = piece.shard, self.tally
        for code, mistakes in (("shape", shape_mistakes(shard)), ("dtype", dtype_mistakes(shard))):
            for name, found, expected in mistakes:
                tally.add(code, Place(piece.file, column=name), found=found, expected=expected)
        if not is_whole(shard):
            return False
        layout = _Layout.of(piece)
        self.first = first = self.first or layout
        for name, key in (("observations", "observation_dim"), ("actions", "action_dim")):
            columns, of_environment = layout.columns[name], self.environment.get(key)
            if of_environment is not None and columns != of_environment:
                tally.add(
                    "dimension",
                    Place(piece.file, column=name),
                    found=columns,
                    expected=of_environment,
                )
            if columns != first.columns[name]:
                seen = f"those of {first.file} have {first.columns[name]}"
                tally.add(
                    "mixture",
                    Place(piece.file, column=name),
                    found=f"{columns} numbers a row",
                    first=seen,
                )
        for name, dtype in layout.dtypes.items():
            if dtype != first.dtypes[name]:
                right = f"{first.dtypes[name]} as in {first.file}; float32 everywhere is best"
                tally.add("dtype", Place(piece.file, column=name), found=str(dtype), expected=right)
        return layout.columns == first.columns

    def _bounds(self, steps: Steps) -> None:
        if self.bounds is None:
            return
        low, high = self.bounds
        if len(low) != steps.shard.actions.shape[1]:
            found = f"bounds of {len(low)} actions for data with {steps.shard.actions.shape[1]}"
            self.tally.add("bounds", Place(steps.piece.file), found=found)
            return
        self.spread = self.spread or ActionSpread(low, high)
        self.spread.add(steps.shard.actions)
        at_bound = check_bounds(steps, low, high, self.tally)
        self.at_bound = at_bound if self.at_bound is None else self.at_bound + at_bound

    def _duplicates(self, steps: Steps) -> None:
        for episode, digest in enumerate(episode_hashes(steps.piece.shard)):
            here = (steps.piece.file, steps.first_episode + episode)
            file, number = self.hashes.setdefault(digest, here)
            if (file, number) != here and steps.piece.shard.lengths[episode]:
                first = f"episode {number}" + (f" of {file}" if file != steps.piece.file else "")
                self.tally.add("duplicate_episode", steps.episode_place(episode), first=first)

    def _sums(self, shard: Shard) -> None:
        self.observations = self.observations or Moments(shard.observations.shape[1])
        self.actions = self.actions or Moments(shard.actions.shape[1])
        self.observations.add(shard.observations)
        self.actions.add(shard.actions)
        self.rewards.add(shard.rewards[:, None])
        self.magnitudes.add(shard.rewards)
        self.terminations += int(shard.terminations.sum())
        self.ended += int((shard.terminations | shard.truncations).sum())

    # The whole

    def whole(self, batch_size: int) -> None:
        """The checks that need the whole data."""
        tally = self.tally
        if self.transitions == 0:
            if "unreadable" not in tally.entries:
                tally.add("empty", Place(self.source.name))
            return
        if self.transitions < batch_size:
            tally.add(
                "too_few", Place(self.source.name), transitions=self.transitions, batch=batch_size
            )
        environments = list(dict.fromkeys(self.source.provenance.get("environments", ())))
        if len(environments) > 1:
            first = f"it also names {', '.join(map(str, environments[1:]))}"
            tally.add(
                "mixture",
                Place(self.source.name),
                found=f"the data names {environments[0]}",
                first=first,
            )
        if self.ended == 0 and "open_episode" in tally.entries:
            tally.rename("open_episode", "no_ends")
        if self.bounds is None and "bounds" not in tally.entries:
            tally.add("no_bounds", Place(self.source.name))
        if (gaps := self.gaps.details(self.episodes)) is not None:
            tally.add("gaps", Place(self.source.name), **gaps)
        self._whole_rewards()
        self._whole_observations()
        self._whole_actions()

    def _whole_rewards(self) -> None:
        rewards, place = self.rewards, Place(column="reward")
        if rewards.count > 1 and rewards.minimum[0] == rewards.maximum[0]:
            value = rewards.minimum[0]
            # A constant cost for each step until a termination is a task; without terminations, or
            # where the constant is 0, there is nothing to learn.
            code = (
                "constant_reward_with_ends"
                if value != 0 and self.terminations
                else "constant_reward"
            )
            self.tally.add(code, place, value=value)
        largest, median = self.magnitudes.largest, self.magnitudes.median
        if largest > REWARD_TAIL * median:
            self.tally.add("reward_tail", place, largest=largest, median=median)

    def _names(self, option: str, count: int) -> list[str]:
        return number_names(self.source.columns, option, count)

    def _whole_observations(self) -> None:
        moments = self.observations
        if moments is None or moments.count < 2:
            return
        std, names = moments.std, self._names("observation", len(moments.mean))
        constant = moments.minimum == moments.maximum
        for column in np.flatnonzero(constant):
            self.tally.add(
                "constant_observation",
                Place(column=names[column]),
                value=moments.mean[column],
            )
        varying = np.flatnonzero(~constant & (std > 0))
        for column in varying[np.abs(moments.mean[varying]) > OFFSET_RATIO * std[varying]]:
            place = Place(column=names[column])
            self.tally.add("offset", place, mean=moments.mean[column], std=std[column])
        if len(varying):
            small, large = varying[std[varying].argmin()], varying[std[varying].argmax()]
            if std[large] > SCALE_SPREAD * std[small]:
                ends: dict[str, Any] = {
                    "smallest_column": names[small],
                    "largest_column": names[large],
                }
                self.tally.add(
                    "unscaled",
                    Place(column="observation"),
                    smallest=std[small],
                    largest=std[large],
                    **ends,
                )

    def _whole_actions(self) -> None:
        moments = self.actions
        if moments is None or moments.count < 2 or self.bounds is None or self.at_bound is None:
            return
        low, high = self.bounds
        saturated = self.at_bound / moments.count
        used = (moments.maximum - moments.minimum) / (high - low)
        for column, name in enumerate(self._names("action", len(low))):
            place = Place(column=name)
            limits: dict[str, Any] = {"low": low[column], "high": high[column]}
            is_told = bool(saturated[column] > SATURATED_SHARE or used[column] < NARROW_SHARE)
            if self.spread is not None:
                self.spread.report(column, name, is_told, self.tally)
            if saturated[column] > SATURATED_SHARE:
                self.tally.add("saturated", place, share=saturated[column], **limits)
            if used[column] < NARROW_SHARE:
                smallest, largest = moments.minimum[column], moments.maximum[column]
                self.tally.add(
                    "narrow",
                    place,
                    share=used[column],
                    smallest=smallest,
                    largest=largest,
                    **limits,
                )
