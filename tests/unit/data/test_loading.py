"""Loading: shards in order, and how much memory it takes to make columns of them."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data import dataset as datasets
from cqlray.data import loading, normalizer
from cqlray.data import shards as shard_files
from cqlray.data.columns import join_shards
from cqlray.data.shards import to_parquet
from cqlray.errors import UserError
from cqlray.storage import patience
from tests.datasets import describe
from tests.unit.data.test_dataset import write_dataset
from tests.unit.data.test_shards import random_shard

MEMORY = """
import sys
from pathlib import Path
import numpy as np
from cqlray.data import columns, loading, normalizer

def bytes_of(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

loading.load_columns(Path(sys.argv[2]))  # libraries load their own code at the first file
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
before = bytes_of("VmRSS")
data = loading.load_columns(Path(sys.argv[1]))[1]
mean, std = normalizer.fit([data.observations])
columns.normalize_in_place(data.observations, mean, std)
columns.scale_in_place(data.actions, lambda actions: np.clip(actions / 2, -1, 1))
size = sum(getattr(data, name).nbytes for name in data.__dataclass_fields__)
print((bytes_of("VmHWM") - before) / size)
"""


def test_shards_come_in_order_and_no_thread_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "FILES_PER_READER", 3)
    shards = [random_shard([2, seed % 3 + 1], seed) for seed in range(11)]
    write_dataset(tmp_path, shards)
    description = datasets.read_description(tmp_path)
    assert [s.digest() for s in loading.iterate_shards(tmp_path, description)] == [
        s.digest() for s in shards
    ]
    left = loading.iterate_shards(tmp_path, description)
    next(left)
    left.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cqlray-read")]


def test_damage_is_said_when_its_turn_comes(tmp_path: Path) -> None:
    write_dataset(tmp_path, [random_shard([5], seed) for seed in range(3)])
    description, second = datasets.read_description(tmp_path), tmp_path / "shard-00001.parquet"
    whole = second.read_bytes()

    def told(expected: str) -> None:
        shards = loading.iterate_shards(tmp_path, description)
        next(shards)
        with pytest.raises(UserError, match=rf"shard-00001\.parquet.*{expected}"):
            next(shards)

    second.write_bytes(to_parquet(random_shard([5], 7)))
    told("its content is not what dataset.json says")
    second.write_bytes(whole[:-100])
    told("cannot be read")
    second.unlink()
    told("is missing")
    second.mkdir()
    told("cannot be read")
    description["shards"][1]["file"] = "shard-00001.parquet\0"
    told("cannot be read")
    with pytest.raises(UserError, match="has no shards"):
        next(loading.iterate_shards(tmp_path, {**description, "shards": []}))


def test_load_columns_trusts_no_count(tmp_path: Path) -> None:
    shards = [random_shard([5, 1], 0), random_shard([10], 1)]
    write_dataset(tmp_path / "dataset", shards)
    description, data = loading.load_columns(tmp_path)
    assert description["transitions"] == 16
    np.testing.assert_array_equal(data.rows, join_shards(shards).rows)
    for wrong in (None, "7", 0, -3):
        description["shards"][1]["episodes"] = wrong
        (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(UserError, match=r"shards\[1\]\.episodes is .*; it should be 1 or more"):
            loading.load_columns(tmp_path)


@settings(max_examples=10, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 100_000), max_size=6),
    width=st.integers(1, 4),
    offset=st.sampled_from([0.0, 1e4]),
)
def test_the_normaliser_does_not_depend_on_the_pieces(
    cuts: list[int], width: int, offset: float
) -> None:
    observations = (
        np.random.default_rng(width).normal(offset, 2, (100_000, width)).astype(np.float32)
    )
    observations[:, 0] = 7.0
    pieces = [piece for piece in np.split(observations, sorted(cuts)) if len(piece)]

    def by_numpy(statistic: Callable[..., Any]) -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = statistic(observations, 0, dtype=np.float64).astype(
            np.float32
        )
        return result

    mean, std = normalizer.fit(pieces)
    whole, numpys_own = (
        normalizer.fit([observations]),
        (by_numpy(np.mean), np.maximum(by_numpy(np.std), normalizer.SMALLEST_STD)),
    )
    for one, other, numpys in zip((mean, std), whole, numpys_own, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_max_ulp(one, numpys, 1)
    assert std[0] == np.float32(normalizer.SMALLEST_STD)


def test_peak_memory_is_little_more_than_the_data(tmp_path: Path) -> None:
    """300 MB in 190 files.

    Beside the data, pyarrow keeps some 30 MB for reading, and a fit takes 15, whatever the size.
    """
    shard = random_shard([1000] * 15, observation_dim=17, action_dim=6)
    write_dataset(tmp_path / "small", [random_shard([3])])
    description = describe([shard], {})
    description["shards"] *= 190
    description["digest"] = datasets.dataset_digest([shard.digest()] * 190)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "shard-00000.parquet").write_bytes(to_parquet(shard))
    (tmp_path / "large" / "dataset.json").write_text(json.dumps(description))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "large"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) <= 1.25


def test_a_shard_whose_read_fails_in_passing_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [random_shard([2], seed) for seed in range(3)]
    write_dataset(tmp_path, shards)
    read, failed = shard_files.read_table, set[str]()

    def stale(source: Path, name: str, *rest: Any) -> Any:
        if name not in failed:
            failed.add(name)
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(source, name, *rest)

    monkeypatch.setattr(shard_files, "read_table", stale)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    found = loading.iterate_shards(tmp_path, datasets.read_description(tmp_path))
    assert [s.digest() for s in found] == [s.digest() for s in shards] and len(failed) == 3
