"""SIGTERM while no run listens to it."""

from __future__ import annotations

import subprocess
import sys

WITHIN_EXEC = """
import os, signal, sys
from cqlray.runtime.signals import stop_like_ctrl_c
stop_like_ctrl_c()
try:
    exec("os.kill(os.getpid(), signal.SIGTERM)")
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_sigterm_within_an_import_leaves_the_exit_status_alone() -> None:
    """Python remembers a KeyboardInterrupt out of `exec`, and then ends by SIGINT."""
    assert subprocess.run([sys.executable, "-c", WITHIN_EXEC], check=False).returncode == 130
