"""gs:// against an emulator of Google's storage: places behave as on disk, and a run there has the bits of a local one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqlray import object_store
from cqlray.filesystem import Location
from cqlray.validate import dump_yaml
from tests.conftest import small_config
from tests.distributed.test_jobs import free_port
from tests.test_bucket_runs import downloaded
from tests.test_driver import ROOT, assert_same
from tests.test_filesystem import act, operations, seen


@pytest.fixture(scope="module", autouse=True)
def emulator() -> Iterator[None]:
    address = f"127.0.0.1:{free_port()}"
    command = [Path(sys.executable).parent / "gcp-storage-emulator", "start", "--in-memory", "--default-bucket", "bucket"]
    host, port = address.split(":")
    with subprocess.Popen([*command, "--host", host, "--port", port], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            assert any("services started" in line for line in server.stderr)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STORAGE_EMULATOR_HOST", address)
                yield
        finally:
            server.terminate()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operations, max_size=8))
def test_disk_and_store_behave_alike(tmp_path: Path, sequence: list[tuple[Any, ...]]) -> None:
    unique = f"{random.getrandbits(64):x}"
    local, remote = Location.parse(tmp_path / unique), Location.parse(f"gs://bucket/alike/{unique}")
    for place in (local, remote):
        place.mkdir()
        for operation in sequence:
            act(place, operation)
    assert seen(local) == seen(remote)


def test_what_is_large_is_written_whole() -> None:
    place, content = Location.parse("gs://bucket/large"), random.Random(0).randbytes(3 * object_store.PART_SIZE)
    place.write(content)
    assert place.read_bytes() == content


@pytest.mark.ray
def test_a_run_killed_and_resumed_has_the_bits_of_a_local_one(finished_run: Path, tmp_path: Path) -> None:
    out = Location.parse("gs://bucket/run")
    (tmp_path / "c.yaml").write_text(dump_yaml(small_config(Path("set below"))).replace("set below", str(out)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    cqlray: dict[str, Any] = {"cwd": ROOT, "env": environment, "start_new_session": True}
    command = [sys.executable, "-m", "cqlray"]
    with subprocess.Popen([*command, "run", "--config", str(tmp_path / "c.yaml")], stderr=subprocess.PIPE, **cqlray) as run:
        while not (out / "members.json").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGKILL)
    resumed = subprocess.run([*command, "resume", str(out)], capture_output=True, text=True, timeout=240, check=False, **cqlray)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(finished_run, downloaded(out, tmp_path / "copy"))
