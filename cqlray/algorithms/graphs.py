"""GPU work recorded once as a CUDA graph and then replayed: one launch instead of hundreds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch

# Calls before the recording, made directly on a side stream: in these, libraries initialise
# themselves.
WARM_UP = 3


class GraphedWork:
    """Calls `work`, which always reads and writes the same tensors and never waits for the device.

    If it cannot be recorded, there is one warning and it is called directly.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.plain_calls_left: float = WARM_UP
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        """One call of `work`; the device may still be busy with it afterwards."""
        if self.graph is not None:
            self.graph.replay()
        elif self.plain_calls_left:
            self.plain_calls_left -= 1
            self._on_side_stream(self.work)
        else:
            self._record()
            self()

    def _on_side_stream(self, work: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile, such as the one that prefetches batches.
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
