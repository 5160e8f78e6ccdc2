"""Locks of directories on a disk, fought for by real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cqlray.errors import UserError
from cqlray.storage import locks, machine
from cqlray.storage.machine import this_process

# Take the directory again and again; whoever has it writes its number, and nobody else may.
RIVAL = """
import os, random, sys, time
from pathlib import Path
from cqlray.errors import UserError
from cqlray.storage import lease, locks
{changes}
place, end = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2])
me, taken = str(os.getpid()).encode(), 0
print("ready", flush=True)
sys.stdin.readline()
while time.monotonic() < end or not {until}:
    try:
        with locks.exclusive(place, lambda line: None) as check:
            taken += 1
            (place.parent / "holder").write_bytes(me)
            for _ in range(3):
                time.sleep(random.uniform(0, {pause}))
                assert (place.parent / "holder").read_bytes() == me, "two at once"
            check()
            if sys.argv[3] == "once":
                print("held", flush=True)
                time.sleep(600)
    except UserError as error:
        assert "in use by another cqlray process" in str(error), error
        if sys.argv[3] == "once":
            sys.exit(2)
print(taken, flush=True)
"""


def rivals(count: int, place: Path, seconds: float, how: str, **code: Any) -> list[Any]:
    """Processes that begin to fight for a directory at one instant."""
    text = RIVAL.format(**{"changes": "", "until": "True", "pause": 0.002} | code)
    command = [sys.executable, "-c", text, str(place), str(seconds), how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    return started


def test_processes_that_fight_for_a_directory_have_it_one_at_a_time(tmp_path: Path) -> None:
    """Again and again, and the lock file is gone at the end."""
    began = rivals(4, tmp_path / "data", 1.0, "again")
    counts = [int(process.communicate()[0] or 0) for process in began]
    assert all(process.returncode == 0 for process in began)
    assert sum(counts) > 5  # it is hundreds on a quiet disk
    assert list((tmp_path / "data").iterdir()) == []


def test_a_holder_that_was_killed_is_followed_at_once_and_said(tmp_path: Path) -> None:
    (process,) = rivals(1, tmp_path / "data", 1.0, "once")
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    said: list[str] = []
    began = time.monotonic()
    with locks.exclusive(tmp_path / "data", said.append) as check:
        check()
    assert time.monotonic() - began < 1.0
    (line,) = said
    assert f"was held by process {process.pid} on" in line and line.endswith("; taken over")
    with locks.exclusive(tmp_path / "data", lambda _: pytest.fail("it was given back")):
        pass


def test_a_number_that_another_process_has_now_is_not_its_owner() -> None:
    mine = this_process()
    assert not machine.has_ended(mine)
    assert machine.has_ended({**mine, "started": mine["started"] - 1})
    for elsewhere in ({"boot": "another"}, {"numbering": "another"}):
        gone = {**mine, "pid": 2**22 + 1, "started": 1, **elsewhere}
        assert not machine.has_ended(gone), "pods have equal names and numbers"  # type: ignore[arg-type]
    assert machine.has_ended({**mine, "pid": 2**22 + 1})


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = machine._started(child.pid)
        assert started is not None
        as_known = {**this_process(), "pid": child.pid, "started": started}
        assert not machine.has_ended(as_known)  # type: ignore[arg-type]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert machine.has_ended(as_known)  # type: ignore[arg-type]


def test_the_holder_in_another_container_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    """The kernel is the same, so that its lock shows that the holder lives."""
    with ExitStack() as holds:
        holds.enter_context(locks.exclusive(tmp_path, print))
        elsewhere = {**this_process(), "numbering": "another", "pid": 1, "started": 1}
        (tmp_path / ".lock").write_text(json.dumps(elsewhere))
        with pytest.raises(UserError, match=r"in use by another cqlray process \(process 1 on"):
            locks.exclusive(tmp_path, lambda _: pytest.fail("no wait")).__enter__()


@pytest.mark.parametrize("content", [b"\xff", b"[" * 1024, b"[]", b'{"pid": []}', b"{}"])
def test_a_lock_file_with_anything_in_it_can_be_taken(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with locks.exclusive(tmp_path, lambda _: pytest.fail("nothing is known of a holder")):
        pass


def test_a_directory_that_is_removed_and_made_anew_is_not_held_any_more(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path / "run", print) as check:
        check()
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
        with pytest.raises(UserError, match="was removed while it was in use"):
            check()
        with locks.exclusive(tmp_path / "run", print) as of_the_next:
            with pytest.raises(UserError, match="was removed while it was in use"):
                check()
            of_the_next()


def test_the_file_system_of_a_directory_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    assert machine.file_system(Path("/proc/self")) == "proc"
    command = ["df", "--output=fstype", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert machine.file_system(tmp_path) == found[-1]


NO_LOCKS = """
import fcntl
fcntl.flock = lambda *_: None  # as on a network disk that keeps locks to each machine
locks.LOCAL = ()
lease.RENEW_EVERY, lease.EXPIRES_AFTER, lease.PAUSE = 0.1, 1.0, 0.1
"""


def test_on_a_disk_that_keeps_locks_to_each_machine_one_of_several_holds(tmp_path: Path) -> None:
    began = rivals(3, tmp_path / "data", 0.0, "once", changes=NO_LOCKS, until="False")
    deadline = time.monotonic() + 20
    while sum(process.poll() is None for process in began) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sorted(process.poll() or 0 for process in began) == [0, 2, 2]
    (holder,) = (process for process in began if process.poll() is None)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    for process in began:
        process.communicate()


def test_holders_that_are_killed_at_any_instant_leave_a_lock_that_can_be_taken(
    tmp_path: Path,
) -> None:
    draw = random.Random(0)
    for _ in range(3):
        began = rivals(2, tmp_path / "data", 60.0, "again")
        for process in began:
            time.sleep(draw.uniform(0.0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
        assert not any("two at once" in process.communicate()[1] for process in began)
        with locks.exclusive(tmp_path / "data", lambda _: None) as check:
            check()
