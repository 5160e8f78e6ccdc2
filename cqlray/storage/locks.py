"""One writer at a time for a directory, wherever it is.

On a disk the kernel's lock (flock) decides, and is released however its holder ends. On some disks
that several machines mount, one machine does not see the locks of another. So on every disk that is
not known to be of one machine alone, a lease is held as well; and in a bucket, which has no locks,
the lease alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from cqlray.errors import UserError
from cqlray.storage.disk import make_directory, without_links
from cqlray.storage.lease import held, in_use, taken_over
from cqlray.storage.locations import AnyPath, Location, open_regular
from cqlray.storage.machine import (
    Process,
    file_system,
    has_ended,
    is_of_this_boot,
    is_process,
    this_process,
)

LOCK, LEASE = ".lock", "lease"  # in the directory; the lease is a directory
# seconds; about as long as a network disk keeps the lock of another machine that died
LOCK_WAIT = 90.0
# seconds until waiting is announced; `is_locked` holds the lock for a moment itself
MOMENT = 1.0
RECORD = 1024  # bytes of the holder's record, padded so that nothing of a longer one before stays
# File systems of one machine: their locks hold for everyone who can write there.
LOCAL = (
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs"),
    *("overlay", "tmpfs", "ramfs", "ntfs3", "exfat", "vfat"),
)


@contextmanager
def exclusive(directory: AnyPath, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold a directory, which is made if need be; `say` announces a wait or a dead holder.

    Call what it yields before anything that two processes must not both do: it raises UserError
    if the directory is no longer held.

    Raises:
        UserError: another process holds it, or the disk refuses.
    """
    with ExitStack() as holds:
        checks: list[Callable[[], None]] = []
        local = False
        if isinstance(directory, Path):
            check, before = _lock(directory / LOCK, directory, say, holds)
            checks.append(check)
            local = file_system(directory) in LOCAL
            if local and before:
                say(taken_over(directory, before))
        if not local:
            checks.append(holds.enter_context(held(Location.parse(directory / LEASE), say)).check)

        def check_all() -> None:
            for check in checks:
                check()

        yield check_all


@contextmanager
def reserved(place: Path) -> Iterator[None]:
    """Hold the name of a file or directory that is to be made on a disk.

    Raises:
        UserError: something is there, another process makes it, or the disk refuses.
    """
    if place.exists():
        raise UserError(f"{place} exists already; choose another name, or remove it first")
    with ExitStack() as holds:
        lock = place.with_name(f".{place.name}{LOCK}")
        _lock(lock, place, partial(print, file=sys.stderr), holds)
        if place.exists():
            raise UserError(f"{place} was made by another process just now")
        yield


def is_locked(lock: Path) -> bool:
    """Whether a process holds it now."""
    try:
        with open_regular(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never locked, or not visible from here
        pass
    return False


def _lock(
    lock: Path, place: Path, say: Callable[[str], None], holds: ExitStack
) -> tuple[Callable[[], None], Process | None]:
    """Lock a file, which stands for `place`, until `holds` ends; returns a check that the file is
    still there, and the last holder where it died without removing the file.
    """
    try:
        make_directory(lock.parent)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror}") from None
    try:
        file, before = _taken_file(lock, place, say)
    except OSError as error:
        reason = (
            f"{error.strerror or error}; a run directory or dataset needs a disk that can be"
            " written to and has locks (flock)"
        )
        raise UserError(f"{lock} cannot be locked: {reason}") from None
    holds.callback(os.close, file)
    holds.callback(_remove, lock, file)

    def check() -> None:
        if not _is_at(lock, file):
            raise UserError(f"{place} was removed while it was in use; this process stops")

    return check, before


def _taken_file(lock: Path, place: Path, say: Callable[[str], None]) -> tuple[int, Process | None]:
    """Open and lock the file at `lock`, and again where its holder removed it meanwhile; also
    returns the last holder, as in `_lock`.
    """
    while True:
        file = without_links(lock, os.O_RDWR | os.O_CREAT)
        try:
            before = _take(file, place, say)
            if _is_at(lock, file):
                _write(file, this_process())
                return file, before
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(lock: Path, file: int) -> bool:
    """Whether the open file is the one that others find there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(lock.stat(), os.fstat(file))
    return False


def _remove(lock: Path, file: int) -> None:
    with suppress(OSError):
        if _is_at(lock, file):
            lock.unlink()


def _take(file: int, place: Path, say: Callable[[str], None]) -> Process | None:
    """Take the lock; wait up to LOCK_WAIT for another machine, which may just have died. Returns
    the last holder where that did not give it back.

    Raises:
        UserError: another process holds it. OSError: the disk has no locks.
    """
    began, said = time.monotonic(), False
    while not _taken(file):
        holder, waited = _holder(file), time.monotonic() - began
        if holder and is_of_this_boot(holder) and not has_ended(holder):
            raise in_use(place, holder)
        if waited >= LOCK_WAIT:
            raise in_use(place, holder)
        if waited >= MOMENT and not said:
            said = True
            say(
                f"{in_use(place, holder)}".partition(";")[0]
                + f"; waiting up to {LOCK_WAIT:.0f} s, for its machine may have died"
            )
        time.sleep(min(0.2, LOCK_WAIT / 10))
    return _holder(file)


def _taken(file: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _holder(file: int) -> Process | None:
    """Who holds the lock, or was killed holding it; None where that is not known."""
    try:
        found: Process = json.loads(os.pread(file, RECORD, 0))
        return found if is_process(found) else None
    except (ValueError, RecursionError):
        return None


def _write(file: int, holder: Process) -> None:
    os.pwrite(file, json.dumps(holder).encode().ljust(RECORD), 0)
    os.fsync(file)  # a network disk shows it to other machines only then
