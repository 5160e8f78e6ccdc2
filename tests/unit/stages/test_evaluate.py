"""Evaluations whose processes die, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cqlray.config.members import members
from cqlray.config.schema import CQLConfig, EvaluationConfig, RunConfig
from cqlray.errors import Lost
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.files import RelayedFiles
from cqlray.runtime.placement import ClusterResources, make_plan
from cqlray.stages import evaluate as stage
from cqlray.stages.evaluate import Evaluation
from cqlray.stages.run import Run
from cqlray.storage.run_directory import FITTED_Q, RunDirectory, snapshot_name, write_bytes
from cqlray.storage.writer import Writer


class Estimator:
    """Fitted Q, which can be made of data that is there."""

    def __init__(self, data: str) -> None:
        self.data = data

    def ask(self, method: str, *snapshots: bytes, returns: int = 1) -> Any:
        async def answer() -> Any:
            if self.data == "went with its node":
                raise Lost("The actor died because its creation needs a lost object", for_good=True)
            return [{"member": 0, "updates": int(at), "fqe_return": 1.0} for at in snapshots]

        return answer()

    def kill(self) -> None:
        pass


def test_fitted_q_is_made_anew_of_data_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The references that its processes were made with are of no use after their node is gone."""
    config = RunConfig(
        num_seeds=1,
        cql=CQLConfig(num_updates=60),
        evaluation=EvaluationConfig(interval=30, episodes=0, fitted_q=True),
    )
    directory, writer = RunDirectory.create(tmp_path / "run", {"id": "x"}), Writer()
    for updates in (30, 60):
        write_bytes(directory / snapshot_name(0, updates), str(updates).encode())
    plan = make_plan(config, members(config), ClusterResources(4.0, nodes=2))
    cluster: Any = SimpleNamespace(start=lambda role, *args, **_: Estimator(args[-1]))
    spec: Any = SimpleNamespace(scaling=None)
    progress: Any = SimpleNamespace(say=print)
    files = RelayedFiles(directory, writer)
    run = Run(config, directory, plan, spec, progress, Stop(print), cluster, writer, files)
    run.data = ["went with its node"]

    async def provide_data(run: Run) -> None:
        run.data = run.data or ["put anew"]

    monkeypatch.setattr(stage, "provide_data", provide_data)
    monkeypatch.setattr(stage, "put", lambda value: value)
    asyncio.run(Evaluation(run, tests=False, fits=True).finish())
    writer.flush()
    assert [row["updates"] for row in directory.rows(FITTED_Q)] == [30, 60]
