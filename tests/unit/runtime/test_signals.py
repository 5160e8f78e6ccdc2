"""SIGTERM while no run listens to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WITHIN_EXEC = """
import os, signal, sys
from cqlray.runtime.signals import stop_like_ctrl_c
stop_like_ctrl_c()
try:
    exec("os.kill(os.getpid(), signal.SIGTERM)\\nfor _ in range(1000): pass")
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_sigterm_within_an_import_leaves_the_exit_status_alone(tmp_path: Path) -> None:
    """Python remembers a KeyboardInterrupt out of `exec`, and then `python -m` ends by SIGINT."""
    (tmp_path / "within_exec.py").write_text(WITHIN_EXEC)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "within_exec"]
    assert subprocess.run(command, env=environment, check=False).returncode == 130
