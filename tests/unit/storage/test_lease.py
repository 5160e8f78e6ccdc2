"""Leases: on disk, and in moto's S3 behind a proxy."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cqlray.errors import UserError
from cqlray.storage import lease as leases
from cqlray.storage import machine
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import RunDirectory
from tests.unit.storage.test_locations import proxy, remote, server  # noqa: F401 (fixtures)

HOLDER = """
import sys, time
from cqlray.storage import lease
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import RunDirectory
lease.RENEW_EVERY = 0.2
with lease.held(Location.parse(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_EVERY", 0.2), ("EXPIRES_AFTER", 1.5), ("PAUSE", 0.2)):
        monkeypatch.setattr(leases, name, seconds)


@pytest.mark.usefixtures("quick")
def test_one_process_at_a_time_and_a_dead_one_is_followed_at_once(
    remote: Location,  # noqa: F811
) -> None:
    place = remote / "lease"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(
            UserError, match=f"in use by another cqlray process \\(process {holder.pid} on"
        ):
            leases.Lease(place).take(print)
        holder.kill()
    said: list[str] = []
    with leases.held(place, said.append) as lease:
        lease.check()
    (line,) = said
    assert f"was held by process {holder.pid} on" in line and line.endswith("; taken over")
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_silent_holder_elsewhere_is_followed_when_its_lease_expires(
    remote: Location,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, said = remote / "lease", []  # type: ignore[var-annotated]
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_machine", lambda: ("another", ""))
        gone = leases.Lease(place)
        gone.take(said.append)
    started = time.monotonic()
    with leases.held(place, said.append) as lease:
        assert time.monotonic() - started > leases.EXPIRES_AFTER
        gone.released.clear()
        gone.renew()  # it was only slow: it sees at its next renewal that it has lost
        with pytest.raises(UserError, match=f"was taken over by process {os.getpid()} on"):
            gone.check()
        lease.check()
    assert len(said) == 2 and "to see whether that process still runs" in said[0]
    assert said[1].endswith("which did not give it back; taken over")


@pytest.mark.usefixtures("quick")
def test_of_several_that_begin_at_once_one_holds(
    remote: Location,  # noqa: F811
) -> None:
    assert_one_of_several_holds(remote / "lease")


def assert_one_of_several_holds(folder: Location) -> None:
    outcomes: list[bool] = []
    barrier = threading.Barrier(4)

    def begin() -> None:
        barrier.wait()
        try:
            with leases.held(folder, lambda _: None):
                outcomes.append(True)
                time.sleep(1.5)
        except UserError:
            outcomes.append(False)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]


@pytest.mark.usefixtures("quick")
def test_a_claim_that_is_long_on_its_way_does_not_make_two_holders(
    remote: Location,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One looks, finds nobody, and its claim arrives only when another holds the lease."""
    looked, holds = threading.Event(), threading.Event()
    slow, write = leases.Lease(remote / "lease"), leases.Lease._write

    def delayed(lease: leases.Lease) -> None:
        if lease is slow:
            looked.set()
            assert holds.wait(10)
        write(lease)

    monkeypatch.setattr(leases.Lease, "_write", delayed)
    refused: list[str] = []

    def begin() -> None:
        try:
            slow.take(lambda _: None)
        except UserError as error:
            refused.append(str(error))

    thread = threading.Thread(target=begin)
    thread.start()
    assert looked.wait(10)
    with leases.held(remote / "lease", print) as lease:
        holds.set()
        thread.join()
        lease.check()
    assert len(refused) == 1 and "is in use by another cqlray process" in refused[0]


@pytest.mark.usefixtures("quick")
def test_a_holder_that_slept_amid_its_renewal_stops_and_its_successor_goes_on(
    remote: Location,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim comes back after the successor has removed it."""
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_machine", lambda: ("another", ""))
        slept = leases.Lease(remote / "lease")
        slept.take(print)
        with leases.held(remote / "lease", lambda _: None) as lease:
            slept._write()
            slept.renew()
            with pytest.raises(UserError, match="was taken over by process"):
                slept.check()
            time.sleep(3 * leases.RENEW_EVERY)
            lease.check()
            slept.release()
            lease.check()


@pytest.mark.parametrize("seed", range(5))
def test_never_two_at_once_whatever_the_order(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six candidates, and before and after each of their looks and writes a pause of any length."""
    for name, seconds in (("RENEW_EVERY", 0.1), ("EXPIRES_AFTER", 30.0), ("PAUSE", 0.05)):
        monkeypatch.setattr(leases, name, seconds)
    pauses = random.Random(seed)
    for name in ("_write", "_others", "release"):
        monkeypatch.setattr(leases.Lease, name, pausing(getattr(leases.Lease, name), pauses))
    folder, holding, most = Location.parse(tmp_path / "lease"), [0], [0]
    refused = threading.Semaphore(0)

    def candidate() -> None:
        try:
            with leases.held(folder, lambda _: None) as lease:
                holding[0] += 1
                most[0] = max(most[0], holding[0])
                for _ in range(5):  # until all others have been refused
                    assert refused.acquire(timeout=20)
                lease.check()
                holding[0] -= 1
        except UserError:
            refused.release()

    threads = [threading.Thread(target=candidate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (holding, most) == ([0], [1])


def pausing(method: Callable[[leases.Lease], Any], pauses: random.Random) -> Any:
    def paused(lease: leases.Lease) -> Any:
        time.sleep(pauses.expovariate(100))
        result = method(lease)
        time.sleep(pauses.expovariate(100))
        return result

    return paused


@pytest.mark.parametrize("content", [b"x", b"[]", b"{}", b"\xff"])
def test_what_is_not_a_claim_is_one_line(content: bytes, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path / "lease")
    (folder / "x.json").write(content)
    with pytest.raises(UserError, match=r"x\.json: not a lease \(.*; remove it if"):
        leases.Lease(folder).take(print)


def test_a_lease_that_is_renewed_is_held(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "lease")
    assert not leases.Lease(place).is_held()
    with leases.held(place, print):
        assert leases.Lease(place).is_held()
    assert not leases.Lease(place).is_held()


def test_a_bucket_where_a_run_was_only_begun_is_free_unless_it_is_held(
    remote: Location,  # noqa: F811
) -> None:
    directory = RunDirectory.create(remote / "run", {})
    assert RunDirectory.is_free(remote / "run")
    with directory.locked():
        assert not RunDirectory.is_free(remote / "run")
    assert RunDirectory.is_free(remote / "run")
