"""Contestants of a benchmark: each in a plain process, working in turns and never at once.

A machine that slows down in the middle slows all of them, and none is affected by another's
settings of the allocator or of the threads.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

ROUNDS = 5

_held: list[Any] = []  # in a contestant's process: the contestant


@dataclass(frozen=True)
class Turn:
    """Work done in one turn, and the seconds it took: by the clock, and of CPU time in all of the
    process's threads.
    """

    work: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.work / self.seconds

    @property
    def cpu_rate(self) -> float:
        return self.work / self.cpu_seconds


def timed(work: Callable[[], int]) -> Turn:
    """Take a turn in this process; `work` returns how much it did."""
    started, cpu_started = time.perf_counter(), time.process_time()
    done = work()
    return Turn(done, time.perf_counter() - started, time.process_time() - cpu_started)


class Apart:
    """An object in another process, whose methods are called from here."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its result."""
        return self.begin(method, *args).result()

    def begin(self, method: str, *args: Any) -> Future[Any]:
        """Call a method; its result is to come."""
        return self.pool.submit(_call, method, args)


@contextmanager
def apart(make: Callable[..., Any], *args: Any) -> Iterator[Apart]:
    """Make an object in a fresh process without Ray, which ends with the block."""
    # Ctrl-C is handled by the process that waits for the result.
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(1, get_context("spawn"), signal.signal, ignoring) as pool:
        pool.submit(_make, make, args).result()
        yield Apart(pool)


def _make(make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _held.append(make(*args))


def _call(method: str, args: tuple[Any, ...]) -> Any:
    return getattr(_held[0], method)(*args)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest over the rounds of ours / theirs, compared within each round."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(found), "smallest": min(found), "largest": max(found)}
