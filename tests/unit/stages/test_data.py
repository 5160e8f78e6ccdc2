"""When a run gives back what learners made of its data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from cqlray.stages import data as stage
from cqlray.storage.scratch import Scratch
from cqlray.workers.files import StoredData


@pytest.mark.parametrize("stopped", [False, True])
def test_all_machines_give_it_back_unless_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    own = Scratch("run", str(tmp_path))
    own.path().write_bytes(b"")
    run: Any = SimpleNamespace(
        data=[StoredData(tmp_path, own)], stop=SimpleNamespace(requested=stopped)
    )

    async def on_every_node(probe: Callable[[], bool], say: Any) -> list[str]:
        assert cloudpickle.loads(cloudpickle.dumps(probe))()
        raise RuntimeError("a node is gone")  # does not hide why the run ends

    monkeypatch.setattr(stage, "nodes_without", on_every_node)
    asyncio.run(stage.give_back(run))
    assert own.path().exists() == stopped
    for data in ([], [object()], [StoredData(tmp_path)]):
        other: Any = SimpleNamespace(data=data, stop=SimpleNamespace(requested=False))
        asyncio.run(stage.give_back(other))
