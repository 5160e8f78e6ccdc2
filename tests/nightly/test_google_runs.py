"""A run in gs://, against an emulator of Google's storage, has the bits of a local one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cqlray.config.load import dump_yaml
from cqlray.storage.locations import Location
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, assert_same
from tests.integration.test_google import emulator  # noqa: F401 (a fixture for all of them)
from tests.nightly.test_bucket_runs import downloaded

pytestmark = pytest.mark.ray


def test_a_run_killed_and_resumed_has_the_bits_of_a_local_one(
    finished_run: Path, tmp_path: Path
) -> None:
    out = Location.parse("gs://bucket/run")
    (tmp_path / "c.yaml").write_text(
        dump_yaml(small_config(Path("set below"))).replace("set below", str(out))
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    cqlray: dict[str, Any] = {"cwd": ROOT, "env": environment, "start_new_session": True}
    command = [sys.executable, "-m", "cqlray"]
    with subprocess.Popen(
        [*command, "run", "--config", str(tmp_path / "c.yaml")], stderr=subprocess.PIPE, **cqlray
    ) as run:
        while not (out / "members.json").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGKILL)
    resumed = subprocess.run(
        [*command, "resume", str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **cqlray,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same(finished_run, downloaded(out, tmp_path / "copy"))
