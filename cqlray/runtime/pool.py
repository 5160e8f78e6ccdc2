"""A pool of equal, stateless actors: `await pool.call(method, ...)` runs on whichever is free."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

from cqlray.errors import ActorLost, Hung, Lost

# A second actor makes a call as well once it has taken this many times the median, and this many
# seconds.
SLOW_FACTOR, SLOW_SECONDS = 4.0, 5.0
SECONDS_BETWEEN_LOOKS = 0.5  # between checks of a running call
TRIES = 3  # to make a call that hangs


class Reply(Protocol):
    """The reply to an actor's call: awaiting it gives the first of its results."""

    @property
    def references(self) -> Sequence[Any]:
        """References to all results, to pass to other actors."""

    def __await__(self) -> Any: ...


class Actor(Protocol):
    """An actor of a pool."""

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply: ...

    def kill(self) -> None: ...


class Pool:
    """Equal actors for calls that are pure functions.

    If a call takes far longer than the others (its node is slow or hangs), a free actor makes it as
    well, and the first result counts. An actor is free once its attempt has ended, even if the
    other actor's result was used.
    """

    def __init__(
        self,
        name: str,
        size: int,
        hire: Callable[[int], Actor],
        say: Callable[[str], None] = lambda line: None,
        watch: Callable[[int, int, int], None] = lambda waiting, at_work, size: None,
    ) -> None:
        """`hire` makes the actor with a given number. `watch` receives the number of waiting calls,
        of busy actors and of all actors whenever one changes.
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
        """Make a call on some actor; returns its result, or for several `returns` a list in which
        all but the first are references.

        Raises:
            Lost: its actor died on every try that Ray makes, or an argument is gone.
            ActorLost: it hung on every try. Also whatever the method raises.
        """
        for tried in range(1, TRIES + 1):
            try:
                return await self._call(method, args, returns)
            except Hung as error:
                hung = error
                if tried < TRIES:
                    self.say(f"{error}; it is replaced, and the call made again")
        raise ActorLost(f"{hung}, {TRIES} times in a row")

    async def _call(self, method: str, args: Sequence[Any], returns: int) -> Any:
        self.waiting += 1
        if self.idle.empty():
            self._tell()
        try:
            number = await self.idle.get()
        finally:
            self.waiting -= 1
        if self.closed:
            raise asyncio.CancelledError
        began, reply = time.monotonic(), self._ask(number, method, args, returns)
        try:
            async with asyncio.timeout(SLOW_SECONDS):
                result = await self._result(number, reply, returns, began)
        except TimeoutError:
            result = await self._first_of(
                self._go_on(number, reply, returns, began),
                began,
                lambda free: self._go_on(
                    free, self._ask(free, method, args, returns), returns, time.monotonic()
                ),
            )
        except asyncio.CancelledError:
            if not self.closed:
                self._go_on(number, reply, returns, began)
            raise
        self.durations.append(time.monotonic() - began)
        return result

    async def _first_of(
        self, first: asyncio.Task[Any], began: float, relieve: Callable[[int], asyncio.Task[Any]]
    ) -> Any:
        """The first result of one attempt, or of two if the first attempt is slow."""
        attempts, relieved = {first}, False
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

    def has_idle(self) -> bool:
        """Whether an actor is idle and no call is waiting."""
        return self.waiting == 0 and not self.idle.empty()

    def is_slow(self, began: float) -> bool:
        """Whether a call that began at `began` takes far longer than the others took."""
        usual = median(self.durations) if self.durations else float("inf")
        return time.monotonic() - began > max(SLOW_SECONDS, SLOW_FACTOR * usual)

    def _ask(self, number: int, method: str, args: Sequence[Any], returns: int) -> Reply:
        try:
            reply = self.actors[number].ask(method, *args, returns=returns)
        except BaseException:  # for example, an argument that cannot be sent
            self.idle.put_nowait(number)
            raise
        self._tell()
        return reply

    async def _result(self, number: int, reply: Reply, returns: int, began: float) -> Any:
        """Await a reply. Its actor is free once it has come, not once nobody waits for it."""
        try:
            value = await reply
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._free(number, began, error)
            if self.closed:  # it was killed
                raise asyncio.CancelledError from None
            raise
        self._free(number, began)
        return value if returns == 1 else [value, *reply.references[1:]]

    def _free(self, number: int, began: float, error: Exception | None = None) -> None:
        self.busy_seconds += time.monotonic() - began
        if self.closed:
            return
        if isinstance(error, Lost) and error.for_good and not error.of_argument:
            self.actors[number] = self.hire(number)
        self.idle.put_nowait(number)
        self._tell()

    def _go_on(self, number: int, reply: Reply, returns: int, began: float) -> asyncio.Task[Any]:
        """Await a reply in a task, which goes on when its caller is gone."""
        attempt = asyncio.create_task(self._result(number, reply, returns, began))
        self.attempts.add(attempt)
        attempt.add_done_callback(self._ended)
        return attempt

    def _ended(self, attempt: asyncio.Task[Any]) -> None:
        self.attempts.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # retrieved even if nobody waits for this attempt any more

    def _tell(self) -> None:
        at_work = len(self.actors) - self.idle.qsize()
        self.watch(self.waiting, at_work, len(self.actors))

    def close(self) -> None:
        """End the actors' processes and cancel their calls, also those that wait."""
        self.closed = True
        for _ in range(self.waiting):
            self.idle.put_nowait(0)
        for attempt in self.attempts:  # before the actors, whose deaths would count as failures
            attempt.cancel()
        for actor in self.actors.values():
            actor.kill()
