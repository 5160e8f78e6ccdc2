"""Processes of this machine: who runs, whose children they are, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def running(title: str) -> dict[int, int]:
    """Parents' process ids of all processes whose command line begins with `title`, by their
    own.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(title.encode()):
                found[int(entry.name)] = _parent(entry)
        except OSError:  # it has just ended
            continue
    return found


def descendants(process: int) -> list[int]:
    """Process ids of its children, their children, and so on."""
    parents = running("")
    found, fresh = [], {process}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found += sorted(fresh)
    return found


def kill(process: int) -> bool:
    """SIGKILL; whether it was still there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(sign: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not sign():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.02)


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
