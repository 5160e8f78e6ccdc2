"""Statistics of columns that arrive in blocks: extremes, mean, standard deviation, and a median of
absolute values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cqlray.data.episode import Array

BLOCK_ROWS = 32_768
LARGEST = float(np.finfo(np.float32).max)
# A float32 without its last 20 bits: sign, exponent and three bits of mantissa, so that a bin is
# 12.5 % wide at most.
_DROPPED_BITS = 20


def blocks(values: Array) -> Iterator[tuple[int, Array]]:
    """Cut [N, ...] into blocks, (first row, rows) each, so that what is computed from one stays
    small.
    """
    for start in range(0, len(values), BLOCK_ROWS):
        yield start, values[start : start + BLOCK_ROWS]


def fits(values: Array) -> Array:
    """Where a value is a finite float32, as bool of the shape of `values`: false for NaN, infinity
    and what overflows.
    """
    if values.dtype.kind in "iu":
        return np.ones(values.shape, bool)
    finite: Array = np.abs(values) <= LARGEST
    return finite


class Moments:
    """Number of rows, extremes, mean and standard deviation of D columns; rows with a value that
    does not fit are left out.

    Blocks are joined by Chan, Golub and LeVeque's update (The American Statistician 37, 1983), in
    float64.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.minimum = np.full(columns, np.inf)
        self.maximum = np.full(columns, -np.inf)
        self.mean = np.zeros(columns)
        self._squares = np.zeros(columns)

    def add(self, values: Array) -> None:
        """Rows [N, D] of any real dtype."""
        for _, rows in blocks(values):
            whole = fits(rows).all(axis=1)
            block = (rows if whole.all() else rows[whole]).astype(np.float64)
            if len(block):
                self._join(block)

    def _join(self, block: Array) -> None:
        mean = block.mean(axis=0)
        total, step = self.count + len(block), mean - self.mean
        self._squares += (
            np.square(block - mean).sum(axis=0) + np.square(step) * self.count * len(block) / total
        )
        self.mean += step * len(block) / total
        self.count = total
        self.minimum = np.minimum(self.minimum, block.min(axis=0))
        self.maximum = np.maximum(self.maximum, block.max(axis=0))

    @property
    def std(self) -> Array:
        """[D] float64: standard deviation."""
        deviation: Array = np.sqrt(self._squares / max(self.count, 1))
        return deviation


class Magnitudes:
    """Median (to within 12.5 %) and maximum of absolute values, zeros left out."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << (32 - _DROPPED_BITS), np.int64)
        self.largest = 0.0

    def add(self, values: Array) -> None:
        """Values [N]; those that do not fit and zeros are left out."""
        kept = np.abs(values[fits(values) & (values != 0)].astype(np.float32))
        if len(kept):
            self.largest = max(self.largest, float(kept.max()))
            self._counts += np.bincount(
                kept.view(np.uint32) >> _DROPPED_BITS, minlength=len(self._counts)
            )

    @property
    def median(self) -> float:
        """The upper edge of the bin that holds it; 0 where there is no value."""
        if self.largest == 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self._counts), self._counts.sum() / 2))
        edge = np.array([(index + 1) << _DROPPED_BITS], np.uint32).view(np.float32)
        return min(float(edge[0]), self.largest)
