"""The driver's event loop, which runs in a thread of its own while the main thread hears signals.

So a run can be stopped whatever its loop is doing, and `cqlray.run()` works in a notebook, where
another loop runs in the main thread already.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from cqlray.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ONE_REQUEST = (
    2.0  # `ray job stop` signals a process and its parent, which may pass it on
)

T = TypeVar("T")


class Stop:
    """Requests to stop a run.

    The first cancels the run's story, whose parts then leave their last checkpoints. The second
    cancels these as well. The third waits for nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.requests: list[float] = []  # when each came
        self.drained = False  # this process's node will soon be gone: that was the first request
        self.loop: asyncio.AbstractEventLoop | None = None
        self.story: asyncio.Task[Any] | None = None
        self.announced = False

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.requests)

    @property
    def hurried(self) -> bool:
        """Whether it was asked again, so that nothing more is waited for."""
        return len(self.requests) > 1

    def handle_signals(self) -> None:
        """Let Ctrl-C and SIGTERM be such requests, until `restoring_handlers` ends.

        To be called once Ray is there, as `ray.init` sets handlers of its own.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        now = time.monotonic()
        echo = self.requested and now - self.requests[0] < SECONDS_OF_ONE_REQUEST
        if number == signal.SIGTERM and (echo or self.drained):  # a drain ends in a SIGTERM, too
            return
        self.request()
        if len(self.requests) > 2:
            raise KeyboardInterrupt

    def on_drain(self) -> None:
        """This process's node is being drained: one request, unless there was one already."""
        if self.requested:
            return
        self.drained = True
        self.say("the driver's node is being drained")
        self.request()

    def request(self) -> None:
        """Ask; from any thread."""
        self.requests.append(time.monotonic())
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self.loop is not None and self.story is not None
        for task in asyncio.all_tasks(self.loop) if self.hurried else {self.story}:
            task.cancel()

    def attach(self) -> None:
        """Make the task that calls this the story that a request cancels."""
        self.loop, self.story = asyncio.get_running_loop(), asyncio.current_task()
        if self.requested:
            self._cancel()

    def check(self) -> None:
        """Raises CancelledError once asked to stop.

        For where work would begin anew: up to Python 3.12 a cancellation can get lost that comes
        together with a failure.
        """
        if self.requested:
            raise asyncio.CancelledError

    def check_hurry(self) -> None:
        """Raises CancelledError once asked again. For what still waits after the first request."""
        if self.hurried:
            raise asyncio.CancelledError

    async def see_out(self, reply: Awaitable[T], line: str) -> T:
        """What a reply brings, also once asked to stop, which `line` then says. It can be awaited
        again.

        The request is spent then; `check` is to be called before anything new begins.
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
        """Say, once, what is still waited for."""
        if not self.announced:
            self.announced = True
            self.say(line)


@contextmanager
def restoring_handlers() -> Iterator[None]:
    """Have the signal handlers afterwards as they were before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(story: Callable[[], Coroutine[Any, Any, T]], stop: Stop) -> T:
    """Run a coroutine to its end in a thread, for which the calling thread waits.

    Raises:
        Interrupted: asked to stop. And what the story raises.
    """
    outcome: Future[T] = Future()
    # A daemon, so that the third request ends the process even where the loop hangs in some call.
    threading.Thread(target=_run, args=(story, stop, outcome), daemon=True, name="cqlray").start()
    return outcome.result()


def _run(story: Callable[[], Coroutine[Any, Any, T]], stop: Stop, outcome: Future[T]) -> None:
    async def attached() -> T:
        stop.attach()
        return await story()

    try:
        outcome.set_result(asyncio.run(attached()))
    except asyncio.CancelledError:
        outcome.set_exception(Interrupted())
    except BaseException as error:
        outcome.set_exception(error)


@asynccontextmanager
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that belong together: the failure of one cancels the others and is what is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from failure.__cause__


async def results(stories: Iterable[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """What these coroutines return, in their order, whichever ends first; so many of them at once.

    `stories` may be a generator, which is then asked for one when there is room for it.
    """
    found: dict[int, T] = {}
    numbered = enumerate(stories)

    async def take_turns() -> None:
        for index, story in numbered:
            found[index] = await story

    async with group() as tasks:
        for _ in range(at_once):
            tasks.create_task(take_turns())
    return [found[index] for index in range(len(found))]
