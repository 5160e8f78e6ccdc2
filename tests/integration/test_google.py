"""gs:// against an emulator of Google's storage: places behave as on disk, and a run there has the
bits of a local one.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqlray.config.load import dump_yaml
from cqlray.storage import object_store
from cqlray.storage.locations import Location
from tests.conftest import slow, small_config
from tests.integration.distributed.test_jobs import free_port, wait_until
from tests.integration.test_bucket_runs import downloaded
from tests.integration.test_driver import ROOT, assert_same
from tests.unit.storage.test_locations import act, operations


@pytest.fixture(scope="module", autouse=True)
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    port, said = free_port(), tmp_path_factory.mktemp("emulator") / "log"
    program = Path(sys.executable).parent / "gcp-storage-emulator"
    command = [
        program,
        "start",
        "--in-memory",
        "--default-bucket",
        "bucket",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with said.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_until(lambda: "services started" in said.read_text(), "the emulator is up")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{port}")
                yield
        finally:
            server.terminate()


def files(root: Location) -> dict[str, Any]:
    """All files below, and the appended lines; a directory that became empty is none in this store,
    so none is looked at.
    """
    found: dict[str, Any] = {
        name: (root / name).read_appended() for name in ("rows.jsonl", "c/rows.jsonl")
    }
    for place in root.iterdir():
        if place.is_dir():
            found |= {f"{place.name}/{name}": value for name, value in files(place).items()}
        elif place.name != "rows.jsonl":
            found[place.name] = place.read_bytes()
    return {name: value for name, value in found.items() if value != "" and ".jsonl.d/" not in name}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(operations, max_size=8))
def test_disk_and_store_behave_alike(tmp_path: Path, sequence: list[tuple[Any, ...]]) -> None:
    unique = uuid.uuid4().hex
    local, remote = Location.parse(tmp_path / unique), Location.parse(f"gs://bucket/alike/{unique}")
    for place in (local, remote):
        place.mkdir()
        for operation in sequence:
            act(place, operation)
    assert files(local) == files(remote)


def test_what_is_large_is_written_whole() -> None:
    place, content = (
        Location.parse("gs://bucket/large"),
        random.Random(0).randbytes(3 * object_store.PART_SIZE),
    )
    place.write(content)
    assert place.read_bytes() == content


@slow
@pytest.mark.ray
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
