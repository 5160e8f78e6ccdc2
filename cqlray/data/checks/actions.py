"""How actions spread within their bounds: crowded into one bin, or whole numbers alone."""

from __future__ import annotations

import numpy as np

from cqlray.data.checks.findings import Place, Tally
from cqlray.data.episode import Array
from cqlray.data.moments import blocks

BINS = 20
CROWDED_SHARE = 0.95
MOST_CHOICES = 10
FEWEST_STEPS = 100  # of fewer nothing is said


class ActionSpread:
    """Sums over pieces, of actions with these bounds, [A] each."""

    def __init__(self, low: Array, high: Array) -> None:
        self.low, self.high = low.astype(np.float64), high.astype(np.float64)
        self.bins = np.zeros((len(low), BINS), np.int64)
        # Whole numbers met, by dimension; None: others, or too many.
        self.whole: list[set[int] | None] = [set() for _ in low]

    def add(self, actions: Array) -> None:
        """Count actions, [N, A]; those out of bounds are others' to report."""
        for _, block in blocks(actions):
            at = (block - self.low) / (self.high - self.low) * BINS
            for column in range(len(self.low)):
                known = at[np.isfinite(at[:, column]), column]
                bins = np.clip(known, 0, BINS - 1).astype(np.int64)
                self.bins[column] += np.bincount(bins, minlength=BINS)
                self._add_whole(column, block[:, column])

    def _add_whole(self, column: int, values: Array) -> None:
        known = self.whole[column]
        if known is None:
            return
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            self.whole[column] = None
            return
        known |= {int(value) for value in np.unique(values)}
        self.whole[column] = known if len(known) <= MOST_CHOICES else None

    def report(self, column: int, name: str, is_told: bool, tally: Tally) -> None:
        """Note what is odd about a dimension of this name; `is_told`: it is known to stand at a
        bound, or to use little of the bounds.
        """
        place, counts = Place(column=name), self.bins[column]
        total, most = int(counts.sum()), int(counts.argmax())
        if total < FEWEST_STEPS:
            return
        low, high = float(self.low[column]), float(self.high[column])
        if not is_told and counts[most] >= CROWDED_SHARE * total:
            width = (high - low) / BINS
            begin = low + most * width
            share = counts[most] / total
            tally.add(
                "crowded", place, share=share, begin=begin, end=begin + width, low=low, high=high
            )
        choices = self.whole[column]
        if choices is not None and len(choices) > 1:
            told = ", ".join(map(str, sorted(choices)))
            tally.add("whole_numbers", place, count=len(choices), choices=told)
