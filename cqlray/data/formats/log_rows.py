"""Rows of a log as arrays, and whole episodes of them as a piece, by the rules in `log`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.formats.rows import Rows
from cqlray.data.source import UNKNOWN_TIER, Piece


@dataclass(frozen=True)
class LogRows:
    """n consecutive rows of a log, or of a log that was sorted."""

    files: tuple[str, ...]  # all files so far
    file: Array  # [n] int: which of them the row is from
    episode: Array  # [n] int64: which episode it is of
    step: Array  # [n] float64: the column of steps, 0 where there is none
    observations: Array  # [n, observation_dim]
    actions: Array  # [n, action_dim]
    rewards: Array  # [n]
    terminations: Array  # [n] bool
    truncations: Array  # [n] bool
    closing: Array  # [n] bool: the action is null
    first: Array  # [n] bool: an episode begins here
    cut: Array  # [n] bool: the episode is cut after this row, which holds its final observation
    row: Array  # [n] int64: row in its file
    next_observations: Array | None  # [n, observation_dim]

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def no_step(self) -> Array:
        """[n] bool: as the last row of its episode it is no step, its observation is the final
        one.
        """
        is_final: Array = self.closing | self.cut
        return is_final if self.next_observations is not None else is_final | ~self.terminations

    @property
    def size(self) -> int:
        """Bytes that the rows take."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def split(self, at: int) -> tuple[LogRows, LogRows]:
        """The rows before `at`, and those from there on."""
        return self.map(lambda values: values[:at]), self.map(lambda values: values[at:])

    def map(self, change: Callable[[Array], Array]) -> LogRows:
        arrays = {
            name: change(value)
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **cast(Any, arrays))

    @staticmethod
    def joined(parts: list[LogRows]) -> LogRows:
        if len(parts) == 1:
            return parts[0]
        names = [name for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        return dataclasses.replace(parts[-1], **arrays)


def piece_of(rows: LogRows) -> Piece:
    """Whole episodes, their final observations found by the rules above."""
    lasts = np.append(np.flatnonzero(rows.first)[1:], len(rows)) - 1
    following = rows.next_observations
    found = Rows(
        observations=rows.observations,
        actions=rows.actions,
        rewards=rows.rewards,
        terminations=rows.terminations & ~rows.cut,
        truncations=rows.truncations | rows.cut,
        lasts=lasts,
        dropped=rows.no_step[lasts],
        final=(rows.observations if following is None else following)[lasts],
    )
    shard, is_step = found.shard(UNKNOWN_TIER)
    files = [rows.files[index] for index in np.unique(rows.file)]
    one_file = len(files) == 1
    return Piece(
        shard,
        " to ".join(files[:: max(1, len(files) - 1)]),
        rows.row[is_step] if one_file else None,
        None if following is None else following[is_step],
    )
