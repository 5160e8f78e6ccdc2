"""One writer at a time for a directory in an object store, where there is no lock: a lease that is
renewed.

pyarrow cannot put an object on condition that none is there, so this is what is left: a holder is
known within RENEW_EVERY seconds, and a candidate that waited for its own write to settle. Two
processes can both believe that they hold the directory only if one's write was under way for longer
than SETTLE; the one that was overwritten sees it at its next renewal and stops. Meanwhile both
write the same bytes, because a run is determined by its config.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cqlray.errors import StorageFailure, UserError
from cqlray.storage.locations import Location

RENEW_EVERY = 15.0  # seconds
EXPIRES_AFTER = 60.0  # seconds without a renewal, measured by the candidate's own clock
CERTAINLY_OVER = 3600.0  # seconds by the clocks of two machines, which may differ by minutes
SETTLE = 2.0  # seconds from writing the lease to reading it again


class Lease:
    """A held lease. `check` before what must not be done by two."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self.token = os.urandom(8).hex()
        self.renewals = 0
        self.lost_to: str | None = None
        self.released = threading.Event()

    def check(self) -> None:
        """Let the holder pass.

        Raises:
            UserError: another process has taken the lease.
        """
        if self.lost_to is not None:
            raise UserError(
                f"{self.place.parent} was taken over by {self.lost_to}; this process stops"
            )

    def take(self, say: Callable[[str], None]) -> None:
        """Take the lease if nobody holds it, or its holder has not renewed it for EXPIRES_AFTER.

        Raises:
            UserError: somebody holds it.
        """
        seen = self._read()
        if seen is not None and not _is_over(seen):
            say(
                f"{self.place.parent} was last used by {seen['holder']}; waiting to see whether"
                " that process still runs"
            )
            self._watch(seen)
        self._write()
        time.sleep(SETTLE)
        now = self._read()
        if now is None or now["token"] != self.token:
            raise _in_use(self.place, now)

    def _watch(self, seen: dict[str, Any]) -> None:
        deadline = time.monotonic() + EXPIRES_AFTER
        while time.monotonic() < deadline:
            time.sleep(min(RENEW_EVERY / 5, EXPIRES_AFTER / 5))
            asked = time.monotonic()
            now = self._read()
            if now is None:
                return
            if now != seen:
                raise _in_use(self.place, now)
            if (
                time.monotonic() - asked > RENEW_EVERY
            ):  # the storage was away: its holder could not renew it either
                deadline = time.monotonic() + EXPIRES_AFTER

    def renew(self) -> None:
        """Renew it until it is released or lost; runs in a thread."""
        while not self.released.wait(RENEW_EVERY):
            try:
                now = self._read()
                if now is None or now["token"] != self.token:
                    self.lost_to = now["holder"] if now else "a process that removed the lease"
                    return
                self._write()
            except UserError:  # the storage is away; the run's own writes will say so
                continue

    def release(self) -> None:
        """Give it back, if it is still ours."""
        now = self._read()
        if now is not None and now["token"] == self.token:
            self.place.remove()

    def _read(self) -> dict[str, Any] | None:
        try:
            lease: dict[str, Any] = json.loads(self.place.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.place}: not a lease ({error}); remove it if no cqlray process uses"
                f" {self.place.parent}"
            ) from None
        return lease

    def _write(self) -> None:
        self.renewals += 1
        lease = {
            "token": self.token,
            "renewals": self.renewals,
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        lease |= {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "pid": os.getpid(),
            "machine": _machine(),
        }
        self.place.write(json.dumps(lease).encode())


@contextmanager
def held(place: Location, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease object at `place`.

    Raises:
        UserError: another process holds it.
    """
    lease = Lease(place)
    lease.take(say)
    thread = threading.Thread(target=lease.renew, daemon=True, name="lease")
    thread.start()
    try:
        yield lease
    finally:
        lease.released.set()
        thread.join()
        with contextlib.suppress(
            StorageFailure
        ):  # the storage is away, which is said already; the lease expires by itself
            lease.release()


def is_held(place: Location) -> bool:
    """Whether there is a lease at `place` that has been renewed lately; one that just died looks
    held for a while.
    """
    lease = Lease(place)._read()
    if lease is None or _is_over(lease):
        return False
    return (
        datetime.now(UTC) - datetime.fromisoformat(lease["renewed"])
    ).total_seconds() < EXPIRES_AFTER


def _is_over(lease: dict[str, Any]) -> bool:
    """Whether its holder is certainly gone: a dead process of this machine, or not renewed for very
    long.
    """
    if lease["machine"] == _machine() and not Path(f"/proc/{lease['pid']}").exists():
        return True
    return (
        datetime.now(UTC) - datetime.fromisoformat(lease["renewed"])
    ).total_seconds() > CERTAINLY_OVER


def _machine() -> str:
    """This boot of this machine, and the process numbers that count here (a container has its
    own).
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return os.urandom(8).hex()  # no /proc: never the same machine


def _in_use(place: Location, lease: dict[str, Any] | None) -> UserError:
    who = lease["holder"] if lease else "another process"
    return UserError(
        f"{place.parent} is in use by another cqlray process ({who}); wait for it or stop it first"
    )
