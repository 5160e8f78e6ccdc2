"""Data in memory and data in a file: equal values for equal indices, and bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data import normalizer
from cqlray.data import store as stores
from cqlray.data.columns import fill_columns, join_shards
from cqlray.data.episode import Array, Shard
from cqlray.data.store import (
    ColumnFile,
    HostColumns,
    fingerprint,
    open_store,
    write_store,
)
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from tests.unit.data.test_shards import random_shard

SCALING = ActionScaling(np.full(2, -2, np.float32), np.full(2, 2, np.float32))
MEAN, STD = np.array([0.5, 0, -1], np.float32), np.array([2, 1, 0.5], np.float32)

# Writes TRANSITIONS random transitions shard by shard, gathers BATCHES batches of 256 and prints
# the peak of resident memory.
SAMPLING = """
import sys
from pathlib import Path
import numpy as np
from cqlray.data.episode import Shard
from cqlray.data.prefetch import Prefetcher
from cqlray.data.store import write_store

transitions, batches, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
PER_SHARD, EPISODE = 50_000, 1000

def shards():
    for seed in range(transitions // PER_SHARD):
        rng = np.random.default_rng(seed)
        lengths = np.full(PER_SHARD // EPISODE, EPISODE)
        truncations = np.zeros(PER_SHARD, bool)
        truncations[np.cumsum(lengths) - 1] = True
        rewards = np.arange(seed * PER_SHARD, (seed + 1) * PER_SHARD).astype(np.float32)
        yield Shard(
            rng.standard_normal((PER_SHARD + len(lengths), 17), np.float32),
            rng.random((PER_SHARD, 6), np.float32), rewards, np.zeros(PER_SHARD, bool),
            truncations, lengths, np.arange(len(lengths)), "random",
        )

mean, std = np.zeros(17, np.float32), np.ones(17, np.float32)
store = write_store(path, shards(), "test", lambda: (mean, std), lambda a: a * 2 - 1)
assert store.num_transitions == transitions
draw = lambda block: np.random.default_rng(block).integers(0, transitions, 32 * 256)
prefetcher = Prefetcher(draw, store.gather)
for block in range(batches // 32):
    assert np.array_equal(prefetcher.block(block)["rewards"], draw(block).astype(np.float32))
prefetcher.close()
store.close()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak_of_sampling(path: Path, transitions: int, batches: int) -> int:
    """Peak of resident memory in bytes, of a process that writes a store and samples from it."""
    command = [sys.executable, "-c", SAMPLING, str(transitions), str(batches), str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def written(path: Path, shards: list[Shard], of: str = "it") -> ColumnFile:
    return write_store(path, iter(shards), of, lambda: (MEAN, STD), SCALING.to_unit)


def reference(shards: list[Shard]) -> list[tuple[Array, ...]]:
    """Every transition in dataset order, from the episodes one by one."""
    return [
        (
            (episode.observations[step] - MEAN) / STD,
            SCALING.to_unit(episode.actions[step]),
            episode.rewards[step],
            (episode.observations[step + 1] - MEAN) / STD,
            np.float32(episode.terminations[step]),
        )
        for shard in shards
        for episode in shard.episodes()
        for step in range(len(episode))
    ]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    count=st.integers(0, 70),
)
def test_host_and_file_give_the_transition_of_each_index(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], seed: int, count: int
) -> None:
    shards = [random_shard(of_shard, seed + place) for place, of_shard in enumerate(lengths)]
    transitions = sum(map(sum, lengths))
    expected = reference(shards)
    data = fill_columns(shards, transitions, sum(map(len, lengths)), 3, 2)
    file = written(tmp_path_factory.mktemp("store") / "columns", shards)
    index = np.random.default_rng(seed).integers(0, transitions, count)
    for held in (HostColumns(data, MEAN, STD, SCALING.to_unit), file):
        assert held.num_transitions == transitions
        for wanted in (index, np.arange(transitions)):
            found = held.gather(wanted)
            assert all(
                array.dtype == np.float32 and len(array) == len(wanted) for array in found.values()
            )
            for place, number in enumerate(wanted):
                for name, right in zip(found, expected[number], strict=True):
                    np.testing.assert_array_equal(found[name][place], right, err_msg=name)
        for wrong in ([-1], [transitions]):
            with pytest.raises(IndexError):
                held.gather(np.array(wrong))
    file.close()


def test_many_rows_are_read_in_parts_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "ROWS_AT_A_TIME", 50)
    monkeypatch.setattr(stores, "RESIDENT_BYTES", 0)
    shards = [random_shard([30, 1, 40], seed) for seed in range(3)]
    file = written(tmp_path / "columns", shards)
    data = join_shards(shards)
    index = np.random.default_rng(0).integers(0, file.num_transitions, 777)
    for _ in range(3):
        np.testing.assert_array_equal(file.gather(index)["rewards"], data.rewards[index])
    file.close()


def test_the_file_is_opened_again_only_for_the_same_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, shards = tmp_path / "there" / "columns", [random_shard([5, 3])]
    assert open_store(path, "it") is None
    written(path, shards)
    content = path.read_bytes()
    assert open_store(path, "other") is None
    for damaged in (content[:-1], content[:100], b"", b"x" * len(content), b"[]".ljust(5000)):
        path.write_bytes(damaged)
        assert open_store(path, "it") is None
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the last number of STD
    assert open_store(path, "it") is None

    def no_moments() -> tuple[Array, Array]:
        raise AssertionError("the file is there, it has the moments")

    def none() -> Iterator[Shard]:
        raise AssertionError("the file is there, no shard need be read")
        yield

    assert capfd.readouterr().err == ""
    again = written(path, shards)
    assert again.num_transitions == 8
    assert np.array_equal(again.mean, MEAN) and np.array_equal(again.std, STD)
    assert capfd.readouterr().err == f"{path}: damaged, or of other data; it is made again\n"
    assert path.read_bytes() == content
    assert write_store(path, none(), "it", no_moments, SCALING.to_unit).num_transitions == 8
    assert written(path, [random_shard([4])], "other").num_transitions == 4


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "columns"
    written(path, [random_shard([5])])

    def stops() -> Iterator[Shard]:
        yield random_shard([4])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(path, stops(), "other", lambda: (MEAN, STD), SCALING.to_unit)
    with pytest.raises(UserError, match="have 2 and 2 dimensions"):
        written(path, [random_shard([4]), random_shard([4], observation_dim=2)], "other")
    with pytest.raises(UserError, match="no shard"):
        written(path, [], "other")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".columns.lock", "columns"]
    assert open_store(path, "it") is not None
    with pytest.raises(UserError, match="columns/columns: cannot be written"):
        written(path / "columns", [random_shard([4])])


def test_the_fingerprint_sees_everything() -> None:
    arrays = [MEAN, STD, SCALING.low, SCALING.high]
    seen = {fingerprint("digest", *arrays), fingerprint("other", *arrays)}
    for place in range(4):
        changed = [array + np.float32(place == number) for number, array in enumerate(arrays)]
        seen.add(fingerprint("digest", *changed))
    assert len(seen) == 6


def test_the_same_normaliser_for_every_place() -> None:
    shards = [random_shard([9, 4], seed) for seed in range(3)]
    of_shards = normalizer.fit(shard.observations for shard in shards)
    of_columns = normalizer.fit([join_shards(shards).observations])
    assert all(np.array_equal(one, other) for one, other in zip(of_shards, of_columns, strict=True))


def test_sampling_from_a_file_takes_little_memory(tmp_path: Path) -> None:
    """A file of 60 MB: no copy of it is held."""
    assert peak_of_sampling(tmp_path / "columns", 600_000, 320) < 260 * 2**20
