"""A number of equal actors that keep nothing: `await pool.call(method, ...)` is made by whichever
is free.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

from cqlray.errors import Lost

# A call is made by a second actor as well once it takes so many times the median, and so many
# seconds.
SLOW_FACTOR, SLOW_SECONDS = 4.0, 5.0
SECONDS_BETWEEN_LOOKS = 0.5  # at a call that is under way
SECONDS_OF_SILENCE = 60.0  # after which a call that is slow for its pool is said aloud


class Reply(Protocol):
    """What asking an actor gives: awaiting it gives the first of its results."""

    @property
    def references(self) -> Sequence[Any]:
        """All results, for other actors to be given."""

    def __await__(self) -> Any: ...


class Actor(Protocol):
    """What a pool is made of."""

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply: ...

    def kill(self) -> None: ...


class Pool:
    """Equal actors for calls that are pure functions.

    A call that takes far longer than the others (a node that is slow, or hangs) is made by a free
    actor as well, and whichever ends first counts. An actor is free once its own attempt has ended,
    whoever still waits for it.
    """

    def __init__(
        self,
        name: str,
        size: int,
        hire: Callable[[int], Actor],
        say: Callable[[str], None] = lambda line: None,
        watch: Callable[[int, int, int], None] = lambda waiting, at_work, size: None,
    ) -> None:
        """`hire` makes the actor of a number; `watch` is told how many calls wait, how many actors
        are at work, and how many there are, whenever that changes.
        """
        self.name, self.hire, self.say, self.watch = name, hire, say, watch
        self.actors = {number: hire(number) for number in range(size)}
        self.idle: asyncio.Queue[int] = asyncio.Queue()
        for number in self.actors:
            self.idle.put_nowait(number)
        self.waiting = 0
        self.attempts: set[asyncio.Task[Any]] = set()
        self.durations: deque[float] = deque(maxlen=100)
        self.busy_seconds = 0.0
        self.closed = False

    async def call(self, method: str, *args: Any, returns: int = 1) -> Any:
        """The result of whichever actor made the call; of several `returns` a list, in which all
        but the first are references.

        Raises:
            Lost: its actor died, as often as Ray makes the call again, or an argument is gone.
            And what the method raises.
        """
        self.waiting += 1
        if self.idle.empty():
            self._tell()
        try:
            number = await self.idle.get()
        finally:
            self.waiting -= 1
        began, first = time.monotonic(), self._begin(number, method, args, returns)
        result = await self._first_of(
            first, began, lambda free: self._begin(free, method, args, returns)
        )
        self.durations.append(time.monotonic() - began)
        return result

    async def _first_of(
        self, first: asyncio.Task[Any], began: float, relieve: Callable[[int], asyncio.Task[Any]]
    ) -> Any:
        """The result of the first attempt that brings one, with a second attempt where the first is
        slow.
        """
        attempts, relieved, said = {first}, False, False
        while True:
            ended, attempts = await asyncio.wait(
                attempts, timeout=SECONDS_BETWEEN_LOOKS, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in sorted(ended, key=lambda attempt: isinstance(attempt.exception(), Lost)):
                if not isinstance(attempt.exception(), Lost) or not attempts:
                    return attempt.result()
            if not relieved and self.is_slow(began) and self.has_idle():
                attempts.add(relieve(self.idle.get_nowait()))
                relieved = True
            seconds = time.monotonic() - began
            if (
                not said
                and seconds > SECONDS_OF_SILENCE
                and seconds > SLOW_FACTOR * self._usual(0.0)
            ):
                self.say(
                    f"no answer from a process for {seconds:.0f} s ({self.name}); waiting for it"
                )
                said = True

    def has_idle(self) -> bool:
        """Whether an actor has nothing to do, and no call waits for one."""
        return self.waiting == 0 and not self.idle.empty()

    def is_slow(self, began: float) -> bool:
        """Whether a call that began then takes far longer than the others took."""
        limit = max(SLOW_SECONDS, SLOW_FACTOR * self._usual(float("inf")))
        return time.monotonic() - began > limit

    def _usual(self, unknown: float) -> float:
        return median(self.durations) if self.durations else unknown

    def _begin(
        self, number: int, method: str, args: Sequence[Any], returns: int
    ) -> asyncio.Task[Any]:
        attempt = asyncio.create_task(self._attempt(number, method, args, returns))
        self.attempts.add(attempt)
        attempt.add_done_callback(self._ended)
        self._tell()
        return attempt

    async def _attempt(self, number: int, method: str, args: Sequence[Any], returns: int) -> Any:
        began = time.monotonic()
        try:
            reply = self.actors[number].ask(method, *args, returns=returns)
            value = await reply
            return value if returns == 1 else [value, *reply.references[1:]]
        except Lost as error:
            if error.for_good and not error.of_argument and not self.closed:
                self.actors[number] = self.hire(number)
            raise
        finally:
            self.busy_seconds += time.monotonic() - began
            self.idle.put_nowait(number)

    def _ended(self, attempt: asyncio.Task[Any]) -> None:
        self.attempts.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # looked at, also where nobody waits for this attempt any more
        if not self.closed:
            self._tell()

    def _tell(self) -> None:
        at_work = len(self.actors) - self.idle.qsize()
        self.watch(self.waiting, at_work, len(self.actors))

    def close(self) -> None:
        """End the actors' processes, and forget what they were at."""
        self.closed = True
        for attempt in self.attempts:  # before the actors, whose deaths would be taken for bad luck
            attempt.cancel()
        for actor in self.actors.values():
            actor.kill()
