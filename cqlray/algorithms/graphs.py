"""A piece of device work recorded once as a CUDA graph, then replayed: one launch in place of
hundreds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch

# Calls made as they are before the recording, on a stream of their own: libraries set themselves up
# in them.
WARM_UP = 3


class GraphedWork:
    """Calls of `work`, which reads and writes the same tensors each time and never waits for the
    device.

    Where it cannot be recorded it is called as it is, after one warning.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.plain_calls_left: float = WARM_UP
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        """One call, or the start of one: the device works on after this returns."""
        if self.graph is not None:
            self.graph.replay()
        elif self.plain_calls_left:
            self.plain_calls_left -= 1
            self._aside(self.work)
        else:
            self._record()
            self()

    def _aside(self, work: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the one that sends batches ahead, go on with the device
            # meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.work()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"updates run without a CUDA graph, more slowly: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            self.plain_calls_left = math.inf
        else:
            self.graph = graph
