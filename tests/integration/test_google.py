"""gs:// against an emulator of Google's storage: places behave as on disk."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqlray.storage import object_store
from cqlray.storage.locations import Location
from tests.processes import free_port, wait_until
from tests.unit.storage.test_lease import assert_one_of_several_holds, quick  # noqa: F401 (fixture)
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


@pytest.mark.usefixtures("quick")
def test_of_several_that_begin_at_once_one_holds() -> None:
    assert_one_of_several_holds(Location.parse("gs://bucket/run/lease"))
