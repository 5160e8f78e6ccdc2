"""Who has the run's files: every node is asked, slow ones twice, and what follows is said."""

from __future__ import annotations

import asyncio
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cqlray.errors import StorageFailure
from cqlray.runtime import files as module
from cqlray.runtime import nodes
from cqlray.runtime.files import RelayedFiles, SharedFiles, choose_files
from cqlray.runtime.nodes import nodes_without
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.writer import Writer

pytestmark = pytest.mark.ray
HERE = f"node {socket.gethostname()}"


def asked(probe: Any) -> tuple[list[str], list[str]]:
    """The nodes that lack it, and what is said meanwhile."""
    said: list[str] = []
    return asyncio.run(nodes_without(probe, said.append)), said


def test_every_node_is_asked_for_the_data(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b"here")
    file = Location.parse(tmp_path / "dataset.json")
    assert asked(partial(module._holds, file, b"here")) == ([], [])
    assert asked(partial(module._holds, file, b"another's")) == ([HERE], [])
    none = Location.parse(tmp_path / "none")
    assert asked(partial(module._holds, none, b"here")) == ([HERE], [])


def fails() -> bool:
    raise StorageFailure("manifest.json cannot be read on node a: Stale file handle")


def test_a_node_whose_file_system_fails_is_named_with_the_reason(ray_cluster: str) -> None:
    reason = "manifest.json cannot be read on node a: Stale file handle"
    assert asked(fails) == ([f"{HERE} ({reason})"], [])


@pytest.mark.parametrize(("seconds", "lacks"), [(0.8, False), (60.0, True)])
def test_a_slow_node_is_waited_for_twice_and_said(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, seconds: float, lacks: bool
) -> None:
    def there() -> bool:
        time.sleep(seconds)
        return True

    assert asked(bool) == ([HERE], [])  # the first task of all starts a process
    monkeypatch.setattr(nodes, "SECONDS_TO_ANSWER", 0.5)
    found, said = asked(there)
    assert found == ([f"{HERE} (no answer in 1 s)"] if lacks else [])
    assert said == [f"{HERE} has not yet answered whether it sees the run's files"] * (1 + lacks)


@pytest.mark.parametrize("there", [True, False])
def test_a_run_whose_files_go_through_the_driver_says_so_and_why(
    ray_cluster: str, tmp_path: Path, there: bool
) -> None:
    RunDirectory.create(tmp_path, {"id": "a" if there else "another's"})
    said: list[str] = []
    directory: Any = SimpleNamespace(path=tmp_path, manifest=lambda: {"id": "a"})
    plan: Any = SimpleNamespace(cluster=SimpleNamespace(nodes=2, grows=False))
    files = asyncio.run(choose_files(directory, plan, Writer(), said.append))
    line = f"{tmp_path} is not seen by {HERE}; all files go through the driver"
    assert isinstance(files, SharedFiles if there else RelayedFiles)
    assert said == ([] if there else [line])
