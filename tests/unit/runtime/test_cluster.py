"""What we use of Ray that it does not promise to keep."""

from __future__ import annotations

import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cqlray.runtime import cluster as module
from cqlray.runtime.cluster import PRIVATE, Cluster

RUNTIME = Path(__file__).parents[3] / "cqlray" / "runtime"


@pytest.mark.parametrize("name", PRIVATE)
def test_rays_private_name_is_still_there(name: str) -> None:
    """A new version of Ray that moved one fails here, and not in a run."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[count:]:
        if part.startswith("__"):  # methods that Ray gives every actor's class
            assert part in Path(import_module("ray.actor").__file__ or "").read_text()
            return
        found = getattr(found, part)
    assert callable(found) or isinstance(found, property)


def test_nothing_else_of_rays_is_used() -> None:
    used: set[str] = set()
    for path in RUNTIME.glob("*.py"):
        text = path.read_text()
        used |= {f"ray.{name}" for name in re.findall(r"from ray\.(_\w[\w.]*) import", text)}
        used |= {f"state.{name}" for name in re.findall(r"\bstate\.(\w+)\(", text)}
        used |= set(re.findall(r"(?:internal_kv|handle|reference)\.(_\w+)", text))
    for name in used:
        assert any(name in private for private in PRIVATE), f"{name} is not in PRIVATE"
    assert len(used) >= 6


def test_whatever_goes_wrong_in_looking_after_the_cluster_is_said_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    looked: list[int] = []

    def fails(cluster: Cluster) -> None:
        raise KeyError("NodeID")

    monkeypatch.setattr(module, "SECONDS_OF_A_TICK", 0.01)
    monkeypatch.setattr(Cluster, "_look_for_drains", fails)
    cluster = Cluster(said.append)
    monkeypatch.setattr(cluster.calls, "look", lambda: looked.append(1))
    until = time.monotonic() + 10
    while len(looked) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    cluster.close()
    assert len(looked) >= 3
    assert said == ["looking after the cluster failed, and is tried again (KeyError: 'NodeID')"]
