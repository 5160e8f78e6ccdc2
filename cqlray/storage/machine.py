"""This machine: which process this is, whether another one still runs, which file system a
directory has.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict


class Process(TypedDict):
    """A process as others can know it: not by its host's name and its number, which the pods of a
    cluster share, but by the machine's boot, the container's numbering, and when it started.
    """

    boot: str
    numbering: str  # of processes: each container has one of its own
    pid: int
    started: int  # clock ticks after the boot, because numbers are used again
    host: str  # this and the next are for messages alone
    since: str  # when it took what it holds, by its own clock


def this_process() -> Process:
    """This process, which takes something now."""
    boot, numbering = _machine()
    return {
        "boot": boot,
        "numbering": numbering,
        "pid": os.getpid(),
        "started": _started(os.getpid()) or 0,
        "host": socket.gethostname(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }


def is_process(value: Any) -> bool:
    """Whether JSON from a file is a Process, or more."""
    kinds = {name: int if name in ("pid", "started") else str for name in Process.__annotations__}
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in kinds.items()
    )


def described(process: Process) -> str:
    """A process, for messages."""
    return f"process {process['pid']} on {process['host']}, since {process['since']}"


def is_of_this_boot(process: Process) -> bool:
    """Whether it belongs to this machine as it runs now, in whichever container."""
    return process["boot"] == _machine()[0]


def has_ended(process: Process) -> bool:
    """Whether a process has certainly ended; of other machines and containers that is unknown."""
    if (process["boot"], process["numbering"]) != _machine():
        return False
    try:
        os.kill(process["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # another user's; its start may be hidden, too
    started = _started(process["pid"])
    return started is not None and started != process["started"]


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks after the boot; -1 for one that only waits to be
    reaped, None where it cannot be seen.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


@functools.cache
def _machine() -> tuple[str, str]:
    """This boot of this machine, and the numbering of its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return os.urandom(8).hex(), ""  # no /proc: never the same machine


def file_system(folder: Path) -> str:
    """The type of a directory's file system, such as ext4 or nfs4; empty where it is not known."""
    place, found, longest = str(folder.resolve()), "", -1
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for mount in mounts:
        fields, _, source = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields.split(" ")[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of two at one point, the later hides the earlier
            found, longest = source.split(" ")[0], len(point)
    return found
