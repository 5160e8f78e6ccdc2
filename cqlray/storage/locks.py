"""Lock a run directory on a disk; the kernel releases the lock however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cqlray.errors import UserError

# seconds; about as long as a network disk keeps the lock of another machine that died
LOCK_WAIT = 90.0


@contextmanager
def locked(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the directory that contains the file; `say` announces a wait.

    Raises:
        UserError: another process holds it, or the disk refuses.
    """
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(lock.open("a+"))
            taken = _take(file, f"{lock.parent} is in use by another cqlray process", say)
        except OSError as error:
            reason = (
                f"{error.strerror or error}; a run directory needs a disk that can be written to"
                " and has locks (flock)"
            )
            raise UserError(f"{lock} cannot be locked: {reason}") from None
        if not taken:
            raise UserError(
                f"{lock.parent} is in use by another cqlray process; wait for it or stop it first"
            )
        yield


def _take(file: IO[str], in_use: str, say: Callable[[str], None]) -> bool:
    """Try to take the lock; wait up to LOCK_WAIT for another machine, which may just have died."""
    deadline, said = time.monotonic() + LOCK_WAIT, False
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(socket.gethostname())
            file.flush()
            return True
        file.seek(0)
        if file.read() == socket.gethostname():
            return False
        if not said:
            say(f"{in_use}; waiting up to {LOCK_WAIT:.0f} s, for its machine may have died")
            said = True
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(1.0, LOCK_WAIT / 10))


def is_locked(lock: Path) -> bool:
    """Whether a process holds it now."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never locked, or not visible from here
        pass
    return False
