"""Run the driver's event loop in a separate thread, while the main thread receives signals.

So a run can be stopped whatever its loop is doing, and `cqlray.run()` works in a notebook, where
another loop already runs in the main thread.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from cqlray.errors import ActorLost, Interrupted
from cqlray.runtime.signals import SIGNALS

# `ray job stop` signals a process and its parent, which may pass it on.
SECONDS_OF_ONE_REQUEST = 2.0

T = TypeVar("T")


class Stop:
    """Requests to stop a run.

    The first cancels the run's coroutine, whose parts then save their last checkpoints. The second
    cancels these as well. The third waits for nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.requests: list[float] = []  # when each came
        self.drained = False  # this process's node will soon be gone: that was the first request
        self.loop: asyncio.AbstractEventLoop | None = None
        self.main: asyncio.Task[Any] | None = None
        self.announced = False
        self.lost: str | None = None  # why the cluster is gone
        self.abandoned: Future[None] = Future()  # done if the loop is not waited for any more
        self.over = False

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop, or has to."""
        return bool(self.requests) or self.lost is not None

    @property
    def hurried(self) -> bool:
        """Whether it was asked to stop twice, so that nothing more is waited for."""
        return len(self.requests) > 1

    def handle_signals(self) -> None:
        """Treat Ctrl-C and SIGTERM as requests to stop, until `restoring_handlers` ends.

        Call this after `ray.init`, which sets other handlers.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        now = time.monotonic()
        echo = self.requests and now - self.requests[0] < SECONDS_OF_ONE_REQUEST
        if number == signal.SIGTERM and (echo or self.drained):  # a drain also ends in a SIGTERM
            return
        self.request()
        if len(self.requests) > 2 or (self.over and len(self.requests) == 1):
            raise KeyboardInterrupt

    def on_drain(self) -> None:
        """Request a stop because this process's node is being drained, unless one was requested."""
        if self.requested:
            return
        self.drained = True
        self.say("the driver's node is being drained")
        self.request()

    def on_loss(self, why: str, cancel: bool) -> None:
        """End the run because the cluster is gone: whoever waits for an actor waits in vain.

        Without `cancel` the tasks are left as they are, since Ray would end the process if they
        used it.
        """
        self.lost = why
        if cancel:
            self._wake()

    def ending(self) -> Exception:
        """The error to raise for a run that was stopped, or lost its cluster."""
        if self.requests or self.lost is None:
            return Interrupted()
        return ActorLost(self.lost)

    def request(self) -> None:
        """Ask the run to stop; can be called from any thread."""
        self.requests.append(time.monotonic())
        self._wake()

    def _wake(self) -> None:
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self.loop is not None and self.main is not None
        all_of_it = self.hurried or self.lost is not None
        for task in asyncio.all_tasks(self.loop) if all_of_it else {self.main}:
            task.cancel()

    def attach(self) -> None:
        """Make the calling task the one that a request cancels."""
        self.loop, self.main = asyncio.get_running_loop(), asyncio.current_task()
        if self.requested:
            self._cancel()

    def check(self) -> None:
        """Raise CancelledError if the run was asked to stop.

        Call it before new work begins: up to Python 3.12 a cancellation that coincides with a
        failure can get lost.
        """
        if self.requested:
            raise asyncio.CancelledError

    def check_hurry(self) -> None:
        """Raise CancelledError after the second request, or if the cluster is gone; for waits that
        outlast the first request.
        """
        if self.hurried or self.lost is not None:
            raise asyncio.CancelledError

    async def see_out(self, reply: Awaitable[T], line: str) -> T:
        """Await a reply even after a request to stop; `line` then says what is waited for. It
        can be awaited again.

        This uses up the cancellation, so call `check` before anything new begins.
        """
        try:
            return await reply
        except asyncio.CancelledError:
            if not self.requested:
                raise
            self.check_hurry()
            self.announce(line)
            return await reply

    def announce(self, line: str) -> None:
        """Print, once, what is still waited for."""
        if not self.announced:
            self.announced = True
            self.say(line)


def run(main: Callable[[], Coroutine[Any, Any, T]], stop: Stop) -> T:
    """Run a coroutine to its end in a thread, and wait for it.

    Raises:
        Interrupted: asked to stop. ActorLost: the cluster is gone. Also whatever the coroutine
        raises.
    """
    outcome: Future[T] = Future()
    # A daemon, so that the third request ends the process even where the loop hangs in some call.
    threading.Thread(target=_run, args=(main, stop, outcome), daemon=True, name="cqlray").start()
    ends: tuple[Future[Any], ...] = (outcome, stop.abandoned)
    try:
        wait(ends, return_when=FIRST_COMPLETED)
        if not outcome.done():
            raise stop.ending()
        return outcome.result()
    finally:
        stop.over = True


def _run(main: Callable[[], Coroutine[Any, Any, T]], stop: Stop, outcome: Future[T]) -> None:
    async def attached() -> T:
        stop.attach()
        return await main()

    try:
        outcome.set_result(asyncio.run(attached()))
    except asyncio.CancelledError:
        outcome.set_exception(stop.ending())
    except BaseException as error:
        outcome.set_exception(error if stop.lost is None else stop.ending())


@asynccontextmanager
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks: the failure of one cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from failure.__cause__


async def results(coroutines: Iterable[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """Run coroutines, a limited number at once; returns their results in the coroutines' order.

    `coroutines` may be a generator, which is advanced when there is room for another one.

    Raises:
        CancelledError: one of them was cancelled, which a TaskGroup alone passes over in silence.
    """
    found: dict[int, T] = {}
    begun: list[int] = []
    numbered = enumerate(coroutines)

    async def take_turns() -> None:
        for index, coroutine in numbered:
            begun.append(index)
            found[index] = await coroutine

    async with group() as tasks:
        for _ in range(at_once):
            tasks.create_task(take_turns())
    if len(found) < len(begun):
        raise asyncio.CancelledError
    return [found[index] for index in begun]
