"""Observation statistics: fitted on the dataset, saved with the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.moments import BLOCK_ROWS, Moments

# A column that hardly moves must not be blown up to unit variance.
SMALLEST_STD = 1e-3


def identity(observation_dim: int) -> tuple[Array, Array]:
    """Mean 0 and standard deviation 1."""
    return np.zeros(observation_dim, np.float32), np.ones(observation_dim, np.float32)


def fit(pieces: Iterable[Array]) -> tuple[Array, Array]:
    """Mean and standard deviation, float32 each, of observations [R, observation_dim] that come in
    pieces.

    The result is the same to the bit however the rows are divided into pieces. Rows with a value
    that is not finite are left out.
    """
    moments: Moments | None = None
    for block in _equal_blocks(pieces):
        moments = moments or Moments(block.shape[1])
        moments.add(block)
    assert moments is not None, "there must be one row at least"
    return moments.mean.astype(np.float32), np.maximum(moments.std, SMALLEST_STD).astype(np.float32)


def _equal_blocks(pieces: Iterable[Array]) -> Iterator[Array]:
    """The pieces' rows, BLOCK_ROWS at a time; each block is overwritten by the next."""
    block, filled = np.empty((0, 0)), 0
    for piece in pieces:
        if not block.size:
            block = np.empty((BLOCK_ROWS, piece.shape[1]), piece.dtype)
        taken = 0
        while taken < len(piece):
            count = min(BLOCK_ROWS - filled, len(piece) - taken)
            block[filled : filled + count] = piece[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == BLOCK_ROWS:
                yield block
                filled = 0
    if filled:
        yield block[:filled]
