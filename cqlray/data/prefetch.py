"""Blocks of batches, gathered by a thread ahead of the thread that trains on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cqlray.data.episode import Array

Draw = Callable[[int], Array]
Gather = Callable[[Array], dict[str, Array]]


class Prefetcher:
    """Block b is gather(draw(b)), whichever blocks were asked for before; the next `depth` blocks
    are made meanwhile.

    `draw` and `gather` are called in a background thread, one block after the other. It ends with
    `close`, or when the prefetcher is garbage. One caller at a time.
    """

    def __init__(self, draw: Draw, gather: Gather, depth: int = 2) -> None:
        self.draw, self.gather, self.depth = draw, gather, depth
        self._thread = ThreadPoolExecutor(1, "cqlray-prefetch")
        self._blocks: dict[int, Future[dict[str, Array]]] = {}
        self._close = weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)

    def block(self, block: int) -> dict[str, Array]:
        """The arrays of a block.

        Raises:
            Exception: what `draw` or `gather` raised for this block.
            RuntimeError: the prefetcher is closed.
        """
        wanted = range(block, block + self.depth + 1)
        for other in self._blocks.keys() - set(wanted):
            self._blocks.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._blocks:
                self._blocks[ahead] = self._thread.submit(_make, self.draw, self.gather, ahead)
        return self._blocks.pop(block).result()

    def close(self) -> None:
        """Wait for the block that is being gathered, drop the others and end the thread."""
        self._close.detach()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._blocks.clear()


def _make(draw: Draw, gather: Gather, block: int) -> dict[str, Array]:
    return gather(draw(block))
