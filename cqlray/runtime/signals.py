"""Which signals stop a run, and what they do while no run is listening to them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ray could not be shut down. Python would wait for it at the end of the process, until it aborts.
RAY_IS_GONE = threading.Event()


class Sigterm(KeyboardInterrupt):
    """SIGTERM. Not KeyboardInterrupt itself, with which Python ends as if by SIGINT, even if it was
    caught, where it came within `exec`: in many an import.
    """


def stop_like_ctrl_c() -> None:
    """Have SIGTERM raise KeyboardInterrupt; once, since `timeout` and others send it twice.

    Python's default ends the process without a line, and Ray's with exit status 15.
    """
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Sigterm


@contextmanager
def insisting() -> Iterator[None]:
    """Repeat a KeyboardInterrupt that came within a destructor, where Python drops exceptions."""
    before, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _raise_again(dropped: sys.UnraisableHookArgs) -> None:
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        stop_like_ctrl_c()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(dropped)


def set_again() -> None:
    """Set the handlers that Python knows once more, because Ray's shutdown resets them in C."""
    if _in_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))


@contextmanager
def restoring_handlers() -> Iterator[None]:
    """Restore the signal handlers at the end of the block."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
