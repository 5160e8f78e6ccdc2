"""Try again what a file system fails to read in passing, as a network's does now and then."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from cqlray.errors import StorageFailure

T = TypeVar("T")
# A network file system raises these when its server is slow or was restarted, not on a node
# without the disk.
PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EREMOTEIO,
}
TRIES, FIRST_PAUSE = 6, 0.5  # seconds, doubled each time: half a minute in all


def patiently(read: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """The result of reading from a path on a disk, which may be tried several times.

    Raises:
        StorageFailure: its file system fails, for half a minute. Also whatever else `read` raises.
    """
    pause = FIRST_PAUSE
    for _ in range(TRIES):
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            reason = error.strerror
        time.sleep(pause)
        pause *= 2
    raise StorageFailure(f"{path} cannot be read on node {socket.gethostname()}: {reason}")
