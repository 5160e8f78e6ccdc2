"""Data that is not on the device, or not in memory: the same batches, so the same bits."""

from __future__ import annotations

import dataclasses
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray.config.members import Member, members
from cqlray.config.schema import RunConfig
from cqlray.data import shards as shard_files
from cqlray.data.convert import write_dataset
from cqlray.data.episode import Shard
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError
from cqlray.storage.scratch import Scratch
from cqlray.workers import training_data
from cqlray.workers.files import StoredData
from cqlray.workers.learner import Advance, Learner
from tests.unit.workers.test_workers import SMALL, SPEC, finish, learner_spec, shards  # noqa: F401 (a fixture)


def config_members(**cql: Any) -> list[Member]:
    return members(RunConfig(num_seeds=2, cql=dataclasses.replace(SMALL, num_updates=170, **cql)))


def role(data: tuple[Shard | StoredData, ...], saved: bytes | None = None, **cql: Any) -> Learner:
    return Learner(learner_spec(config_members(**cql)), saved, *data)


def bits(results: list[Advance]) -> list[Any]:
    return [(r.updates, r.snapshot, r.saved, r.metrics) for r in results]


@pytest.fixture
def on_disk(shards: list[Shard], tmp_path: Path) -> StoredData:  # noqa: F811
    source = Source(
        "x", "x", dataclasses.asdict(SPEC), lambda: (Piece(shard, "x") for shard in shards)
    )
    write_dataset(source, tmp_path / "data")
    return StoredData(tmp_path / "data", Scratch("records", str(tmp_path)))


@pytest.mark.parametrize("normalization", [True, False])
def test_from_disk_from_memory_and_staged_are_the_same_bits(
    shards: list[Shard],  # noqa: F811
    on_disk: StoredData,
    monkeypatch: pytest.MonkeyPatch,
    normalization: bool,
) -> None:
    whole = finish(role(tuple(shards), observation_normalization=normalization))
    assert bits(finish(role((on_disk,), observation_normalization=normalization))) == bits(whole)
    monkeypatch.setattr(training_data, "_fits", lambda *_: False)
    staged = role(tuple(shards), observation_normalization=normalization)
    assert bits(finish(staged)) == bits(whole)
    first = staged.population.noise
    assert first.on_block is not None, "the batches were staged"


def test_a_learner_on_disk_resumed_anywhere_ends_with_the_same_bits(on_disk: StoredData) -> None:
    whole = finish(role((on_disk,)))
    file = on_disk.scratch.path().stat().st_mtime_ns
    first = role((on_disk,))
    part = first.advance(1e-3, save=True)
    assert 0 < part.updates < 170
    rest = finish(role((on_disk,), saved=part.saved))
    assert bits(rest) == bits(whole)[-len(rest) :]
    assert on_disk.scratch.path().stat().st_mtime_ns == file, "the file was made once"


def test_shards_are_read_twice_for_the_file_and_never_again(
    on_disk: StoredData, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read_table = shard_files.read_table

    def counted(source: Any, name: str, *args: Any) -> Any:
        reads.append(name)
        return read_table(source, name, *args)

    monkeypatch.setattr(shard_files, "read_table", counted)
    first = role((on_disk,))
    assert len(reads) == 2 * len(set(reads)) > 0, "once for the moments, once for the file"
    reads.clear()
    second = role((on_disk,))  # another learner of this machine, or after a death
    assert reads == []
    assert np.array_equal(first.data.mean, second.data.mean)
    assert np.array_equal(first.data.std, second.data.std)


def test_no_thread_is_left_behind(on_disk: StoredData) -> None:
    used = role((on_disk,))
    used.advance(1e-9, save=False)
    del used
    gc.collect()
    names = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("cqlray-prefetch") and thread.is_alive()
    ]
    for thread in threading.enumerate():
        if thread.name.startswith("cqlray-prefetch"):
            thread.join(timeout=10)
            assert not thread.is_alive(), names


def test_calibration_needs_the_data_on_the_device(on_disk: StoredData) -> None:
    with pytest.raises(UserError, match=r"cql\.calibrated needs the data"):
        role((on_disk,), calibrated=True)


def test_a_dataset_that_is_not_on_this_node_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not on node"):
        role((StoredData(tmp_path / "nowhere", Scratch("records", str(tmp_path))),))
    assert np.array_equal(list(tmp_path.iterdir()), [])
