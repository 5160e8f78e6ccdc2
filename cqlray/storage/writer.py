"""Writes in the background, in order: slow storage holds up nobody, and what a kill leaves behind
is a beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

MOST_BYTES = 2**30  # that wait to be written; then whoever brings more waits
SECONDS_BETWEEN_LOOKS = 0.2


class Writer:
    """One thread that does what it is given, one after another. After a failure nothing more is
    done.

    Every method raises what a write raised before, once it is known.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called again and again by whoever waits, and may raise where it is to wait no
        longer.
        """
        self.check_waiting = check
        self.waiting: deque[tuple[Callable[[], None], int]] = deque()
        self.bytes = 0
        self.error: BaseException | None = None
        self.closed = False
        self.change = threading.Condition()
        self.thread: threading.Thread | None = None

    def submit(self, write: Callable[[], None], size: int = 0) -> None:
        """Have it done after all that was submitted before; `size` is of the bytes that it holds on
        to.
        """
        with self.change:
            self._wait_for(lambda: self.bytes + size <= MOST_BYTES or not self.waiting)
            self.waiting.append((write, size))
            self.bytes += size
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="cqlray-writer")
                self.thread.start()
            self.change.notify_all()

    def flush(self) -> None:
        """Wait until all of it is done."""
        with self.change:
            self._wait_for(lambda: not self.waiting)

    def close(self) -> None:
        """Let the thread end once all is done; nothing can be submitted any more."""
        with self.change:
            self.closed = True
            self.change.notify_all()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        with self.change:
            self._raise()

    def _wait_for(self, sign: Callable[[], bool]) -> None:
        while not self.change.wait_for(
            lambda: self.error is not None or sign(), SECONDS_BETWEEN_LOOKS
        ):
            self.check_waiting()
        self._raise()

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
                    self.change.notify_all()
                return
            with self.change:
                self.waiting.popleft()
                self.bytes -= size
                self.change.notify_all()
