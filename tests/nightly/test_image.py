"""The image's packages, as pip fetches and checks them when the image is built: some 3 GB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCK = Path(__file__).parents[2] / "cluster" / "image.lock"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11")
@pytest.mark.timeout(900)
def test_pip_takes_the_lock(tmp_path: Path) -> None:
    """Everything is in it, nothing contradicts, every hash is right."""
    # Wheels that this machine keeps beside the index may be other builds of the same version.
    own = {"PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "TMPDIR": str(tmp_path)}
    install = ["install", "--dry-run", "--ignore-installed", "--no-cache-dir", "--require-hashes"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install, "--only-binary", ":all:", "-r", str(LOCK)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packages = LOCK.read_text().count("==")
    assert done.stdout.rpartition("Would install ")[2].count("-") >= packages
