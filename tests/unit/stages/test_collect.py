"""Collection without Ray: which shards' references it keeps."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cqlray.config.members import members
from cqlray.config.schema import CollectionConfig, EnvConfig, RunConfig
from cqlray.data.dataset import DESCRIPTION
from cqlray.envs.make import describe_env
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.files import RelayedFiles, SharedFiles
from cqlray.runtime.placement import ClusterResources, make_plan
from cqlray.stages import collect as stage
from cqlray.stages.run import Run
from cqlray.storage.outbox import HandedBack, SharedDirectory
from cqlray.storage.run_directory import DATASET, RunDirectory, read_json
from cqlray.storage.writer import Writer
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask

ENV = EnvConfig("tests.toy_envs:Point-v0")
SPEC = describe_env(ENV)
SHARDS = 100


class InStore:
    """A result in the object store; counts those that somebody refers to."""

    alive: ClassVar[weakref.WeakSet[InStore]] = weakref.WeakSet()
    most = 0

    def __init__(self, value: Any) -> None:
        self.value = value
        self.alive.add(self)
        InStore.most = max(InStore.most, len(self.alive))

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.value

    def _on_completed(self, arrived: Callable[[Any], None]) -> None:
        asyncio.get_running_loop().call_soon(arrived, self.value)


class Reply(InStore):
    """A call's: its results, of which all but the first are references."""

    @property
    def references(self) -> list[InStore]:
        _, shard, handed_back = SHARD
        return [self, InStore(shard), InStore(handed_back)]


SHARD = RolloutWorker(ENV, SPEC).contribute(ShardTask(0, "random", (1,)), None, HandedBack())


class Worker:
    """Makes the same shard again and again."""

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply:
        assert (method, returns) == ("contribute", 3)
        return Reply(SHARD[0])

    def kill(self) -> None:
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_shards_are_referred_to_only_where_learners_cannot_read_them(
    tmp_path: Path, shared: bool
) -> None:
    InStore.alive.clear()
    InStore.most = 0
    config = RunConfig(
        env=ENV,
        num_seeds=1,
        collection=CollectionConfig(("random",), (SHARDS,), episodes_per_shard=1),
    )
    directory = RunDirectory.create(tmp_path / "run", {"id": "x"})
    plan = make_plan(config, members(config), ClusterResources(4.0))
    quiet = lambda *_, **__: None  # noqa: E731
    progress: Any = SimpleNamespace(say=quiet, stage=quiet, advance=quiet, finish=quiet)
    cluster: Any = SimpleNamespace(start=lambda *_, **__: Worker())
    with closing(Writer()) as writer:
        place = SharedDirectory(directory.path.absolute(), "x")
        files = SharedFiles(place, True) if shared else RelayedFiles(directory, writer)
        run = Run(config, directory, plan, SPEC, progress, Stop(print), cluster, writer, files)
        asyncio.run(stage.collect(run))
        writer.flush()
    assert len(read_json(directory / DATASET / DESCRIPTION)["shards"]) == SHARDS
    if shared:
        assert run.data == [] and len(InStore.alive) <= 3
        assert 0 < InStore.most <= 3 * (2 * plan.rollout_workers + 1)
    else:
        assert len(run.data) == SHARDS
