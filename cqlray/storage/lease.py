"""One writer at a time for a directory in an object store, where there is no lock: a lease that is
renewed.

Whoever wants the lease puts a claim, under a name that nobody else writes, and holds the lease only
if a listing made afterwards shows no other claim. Of two processes, the one that put its claim last
sees the other's, so that both can never begin, however slow a request is. This needs no put on
condition, which pyarrow does not have, only listings that show all that was put before; Amazon's
and Google's stores promise that.

A claim that is not seen to change for EXPIRES_AFTER, by the candidate's own stopwatch, is passed
over, because its process has died or lost the network. No clock is compared with another machine's:
clocks are wrong by hours at times. If the holder was only slow, it sees at its next renewal that it
was passed over, or at its next check, and stops. Until then both write the same bytes, because a
run is determined by its config.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from cqlray.errors import StorageFailure, UserError
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.machine import Process, described, has_ended, is_process, this_process
from cqlray.storage.outside import parse_json, read_file
from cqlray.storage.row_types import require

RENEW_EVERY = 15.0  # seconds
EXPIRES_AFTER = 60.0  # seconds without a renewal, as the candidate sees it
_LARGEST_CLAIM = 1_000_000  # bytes
PAUSE = 2.0  # seconds at most, before those who claimed at the same instant try again


class Claim(Process):
    """What a process writes to claim the lease."""

    renewals: int
    renewed: str  # the time of day, by its own clock: only for `is_held`
    passed_over: list[str]  # tokens of the claims that count no longer


class Lease:
    """A lease on the directory above `folder`, which holds the claims.

    Call `check` before anything that two processes must not both do.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.token = os.urandom(8).hex()
        self.process = this_process()
        self.renewals, self.renewed = 0, 0.0
        self.passed_over: set[str] = set()
        self.lost_to: str | None = None
        self.released = threading.Event()

    def check(self) -> None:
        """Check that this process still holds the lease; it asks the storage only after a time
        without a renewal, as when the machine was asleep.

        Raises:
            UserError: another process has taken the lease.
        """
        if self.lost_to is None and _stopwatch() - self.renewed > EXPIRES_AFTER / 2:
            self.lost_to = self._successor()
        if self.lost_to is not None:
            raise UserError(
                f"{self.folder.parent} was taken over by {self.lost_to}; this process stops"
            )

    def take(self, say: Callable[[str], None]) -> None:
        """Take the lease if nobody holds it, or its holder has not renewed it for EXPIRES_AFTER.

        Raises:
            UserError: another process holds it.
        """
        while True:
            self._wait_for_others(say)
            self._write()
            if not self._others():
                break
            # Others claimed at the same instant, and nobody can tell who was first: all step back.
            self.release()
            time.sleep(random.SystemRandom().uniform(0.0, PAUSE))
        for token in self.passed_over:
            with contextlib.suppress(FileNotFoundError):
                say(taken_over(self.folder.parent, self._read(self._place(token))))
            self._place(token).remove()

    def _wait_for_others(self, say: Callable[[str], None]) -> None:
        """Wait until the others' claims are gone or have expired.

        Raises:
            UserError: one of them is renewed.
        """
        silent = self._others()
        if silent:
            holder = min(described(claim) for claim in silent.values())
            say(
                f"{self.folder.parent} was last used by {holder}; waiting up to"
                f" {EXPIRES_AFTER:.0f} s to see whether that process still runs"
            )
        deadline = time.monotonic() + EXPIRES_AFTER
        while silent and time.monotonic() < deadline:
            time.sleep(min(RENEW_EVERY / 5, EXPIRES_AFTER / 5))
            asked = time.monotonic()
            now = self._others()
            for token, claim in silent.items():
                if now.get(token, claim) != claim:
                    raise in_use(self.folder.parent, now[token])
            silent = {token: claim for token, claim in silent.items() if token in now}
            if time.monotonic() - asked > RENEW_EVERY:
                # The storage was unavailable: its holder could not renew it either.
                deadline = time.monotonic() + EXPIRES_AFTER
        self.passed_over |= silent.keys()

    def renew(self) -> None:
        """Renew the lease until it is released or lost; runs in a thread."""
        while not self.released.wait(RENEW_EVERY):
            try:
                self.lost_to = self._successor()
                if self.lost_to is not None:
                    return
                self._write()
            except UserError:  # the storage is unavailable; the run's writes will report it
                continue

    def _successor(self) -> str | None:
        """The process that took over because this one did not renew its claim in time."""
        for claim in self._others().values():
            if self.token in claim["passed_over"]:
                return described(claim)
        return None if self._place(self.token).exists() else "a process that removed the lease"

    def release(self) -> None:
        """Give the lease back."""
        self._place(self.token).remove()

    def is_held(self) -> bool:
        """Whether another process seems to hold the lease: it renewed it lately, by the clocks of
        two machines, or died just now. For reports; whoever wants the lease has to `take` it.
        """
        return any(_age(claim) < EXPIRES_AFTER for claim in self._others().values())

    def _others(self) -> dict[str, Claim]:
        """The claims of other processes, by token, without those whose process has ended."""
        found: dict[str, Claim] = {}
        for place in self.folder.glob("*.json"):
            if place.stem == self.token or place.stem in self.passed_over:
                continue
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                claim = self._read(place)
                if has_ended(claim):
                    self.passed_over.add(place.stem)
                else:
                    found[place.stem] = claim
        return found

    def _read(self, place: Location) -> Claim:
        try:
            found = parse_json(read_file(place, _LARGEST_CLAIM), "the claim")
            claim: Claim = require(found, Claim, "the claim")
            if not is_process(claim):
                raise ValueError("it names no process")
            _age(claim)
        except (ValueError, TypeError, UserError) as error:
            raise UserError(
                f"{place}: not a lease ({str(error)[:200]}); remove it if no cqlray process uses"
                f" {self.folder.parent}"
            ) from None
        return claim

    def _write(self) -> None:
        self.renewals += 1
        began = _stopwatch()
        claim: Claim = {
            **self.process,
            "renewals": self.renewals,
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
            "passed_over": sorted(self.passed_over),
        }
        self._place(self.token).write(json.dumps(claim).encode())
        self.renewed = began

    def _place(self, token: str) -> Location:
        return self.folder / f"{token}.json"


@contextmanager
def held(folder: Location, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease whose claims are in `folder`.

    Raises:
        UserError: another process holds it.
    """
    lease = Lease(folder)
    lease.take(say)
    thread = threading.Thread(target=lease.renew, daemon=True, name="lease")
    thread.start()
    try:
        yield lease
    finally:
        lease.released.set()
        thread.join()
        # If the storage is unavailable, that was reported already, and the lease will expire.
        with contextlib.suppress(StorageFailure):
            lease.release()


def _age(claim: Claim) -> float:
    """Seconds since a claim was renewed, by the clocks of two machines."""
    return (datetime.now(UTC) - datetime.fromisoformat(claim["renewed"])).total_seconds()


def _stopwatch() -> float:
    """Seconds, those in which the machine slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def in_use(directory: AnyPath, holder: Process | None) -> UserError:
    """What to raise where another process holds a directory."""
    who = f" ({described(holder)})" if holder else ""
    return UserError(
        f"{directory} is in use by another cqlray process{who}; wait for it or stop it first"
    )


def taken_over(directory: AnyPath, before: Process) -> str:
    """The line for a holder that did not give a directory back."""
    return f"{directory} was held by {described(before)}, which did not give it back; taken over"
