"""Write in the background and in order: slow storage delays nobody, and after a kill everything up
to some write is there and nothing after it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

MOST_BYTES = 2**30  # waiting to be written; beyond this, whoever adds more waits


class Writer:
    """A thread that makes the writes it is given, in order, until one fails.

    Every method raises the error of an earlier write, once it is known. Threads wait with `flush`
    and `submit`; an event loop awaits the futures of `room`, `written` and `failure`.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], None], int]] = deque()
        self.bytes = 0
        self.error: BaseException | None = None
        self.closed = False
        self.change = threading.Condition()
        self.awaited: list[tuple[Callable[[], bool], Future[None]]] = []
        self.thread: threading.Thread | None = None
        self.began: float | None = None  # when the write under way began

    def put(self, write: Callable[[], None], size: int = 0) -> None:
        """Queue a write; `size` is the number of bytes that it keeps in memory."""
        with self.change:
            self._raise()
            self.waiting.append((write, size))
            self.bytes += size
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="cqlray-writer")
                self.thread.start()
            self.change.notify_all()

    def submit(self, write: Callable[[], None], size: int = 0) -> None:
        """Queue a write as soon as there is room for it."""
        self.room(size).result()
        self.put(write, size)

    def flush(self) -> None:
        """Wait until all writes are done."""
        self.written().result()

    def room(self, size: int) -> Future[None]:
        """Done once `size` more bytes fit in MOST_BYTES; a larger write waits for all others."""
        return self._when(lambda: self.bytes + size <= MOST_BYTES or not self.waiting)

    def written(self) -> Future[None]:
        """Done once all writes are made."""
        return self._when(lambda: not self.waiting)

    def failure(self) -> Future[None]:
        """Never done; fails when a write fails."""
        return self._when(lambda: False)

    def seconds_writing(self) -> float:
        """For how long the write under way has taken."""
        began = self.began
        return 0.0 if began is None else time.monotonic() - began

    def close(self) -> None:
        """Let the thread end once all writes are made; no more can be queued."""
        with self.change:
            self.closed = True
            self.change.notify_all()

    def check(self) -> None:
        """Raise the error of a failed write, if there is one."""
        with self.change:
            self._raise()

    def _when(self, sign: Callable[[], bool]) -> Future[None]:
        future: Future[None] = Future()
        with self.change:
            self.awaited.append((sign, future))
            self._tell()
        return future

    def _tell(self) -> None:
        """Wake those whose condition holds, or everyone after a failure."""
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
            self.began = time.monotonic()
            try:
                write()
            except BaseException as error:
                self.began = None
                with self.change:
                    self.error = error
                    self.waiting.clear()
                    self._tell()
                return
            self.began = None
            with self.change:
                self.waiting.popleft()
                self.bytes -= size
                self._tell()
