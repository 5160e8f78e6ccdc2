"""Writes in the background, in order: slow storage holds up nobody, and what a kill leaves behind
is a beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

MOST_BYTES = 2**30  # that wait to be written; then whoever brings more waits


class Writer:
    """One thread that does what it is given, one after another. After a failure nothing more is
    done.

    Every method raises what a write raised before, once it is known. Threads wait by `flush` and
    `submit`; an event loop awaits the futures of `room`, `written` and `failure`.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], None], int]] = deque()
        self.bytes = 0
        self.error: BaseException | None = None
        self.closed = False
        self.change = threading.Condition()
        self.awaited: list[tuple[Callable[[], bool], Future[None]]] = []
        self.thread: threading.Thread | None = None

    def put(self, write: Callable[[], None], size: int = 0) -> None:
        """Have it done after all that was put before; `size` is of the bytes that it holds on
        to.
        """
        with self.change:
            self._raise()
            self.waiting.append((write, size))
            self.bytes += size
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="cqlray-writer")
                self.thread.start()
            self.change.notify_all()

    def submit(self, write: Callable[[], None], size: int = 0) -> None:
        """`put`, once there is room for it."""
        self.room(size).result()
        self.put(write, size)

    def flush(self) -> None:
        """Wait until all of it is done."""
        self.written().result()

    def room(self, size: int) -> Future[None]:
        """Done once no more than MOST_BYTES wait with so many more; what is larger goes alone."""
        return self._when(lambda: self.bytes + size <= MOST_BYTES or not self.waiting)

    def written(self) -> Future[None]:
        """Done once nothing waits."""
        return self._when(lambda: not self.waiting)

    def failure(self) -> Future[None]:
        """Never done; it fails when a write does."""
        return self._when(lambda: False)

    def close(self) -> None:
        """Let the thread end once all is done; nothing can be put any more."""
        with self.change:
            self.closed = True
            self.change.notify_all()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        with self.change:
            self._raise()

    def _when(self, sign: Callable[[], bool]) -> Future[None]:
        future: Future[None] = Future()
        with self.change:
            self.awaited.append((sign, future))
            self._tell()
        return future

    def _tell(self) -> None:
        """Let those go on whose sign is there, or all after a failure."""
        due = [entry for entry in self.awaited if self.error is not None or entry[0]()]
        self.awaited = [
            entry for entry in self.awaited if entry not in due and not entry[1].cancelled()
        ]
        for _, future in due:
            if not future.set_running_or_notify_cancel():  # nobody waits any more
                continue
            if self.error is not None:
                future.set_exception(self.error)
            else:
                future.set_result(None)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while True:
            with self.change:
                self.change.wait_for(lambda: self.closed or bool(self.waiting))
                if not self.waiting:
                    return
                write, size = self.waiting[0]  # it counts as waiting until it is done
            try:
                write()
            except BaseException as error:
                with self.change:
                    self.error = error
                    self.waiting.clear()
                    self._tell()
                return
            with self.change:
                self.waiting.popleft()
                self.bytes -= size
                self._tell()
