"""Sources as native shards: the same transitions, appended, interrupted, and read by other people's
tools.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data import convert
from cqlray.data.episode import Shard
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError
from tests.datasets import describe, read_dataset
from tests.unit.data.test_shards import random_shard

ENVIRONMENT: dict[str, Any] = {
    "id": "Point-v0",
    "observation_dim": 3,
    "action_dim": 2,
    "action_low": [-2.0, -2.0],
    "action_high": [2.0, 2.0],
    "max_episode_steps": 50,
    "kwargs": {},
}


def source_of(shards: Sequence[Shard], name: str = "made", **environment: Any) -> Source:
    return Source(
        name,
        "made",
        {**ENVIRONMENT, **environment},
        lambda: (Piece(shard, "made") for shard in shards),
    )


def episode_bytes(shards: Sequence[Shard]) -> list[tuple[bytes, ...]]:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    return [
        tuple(getattr(e, name).tobytes() for name in names)
        for shard in shards
        for e in shard.episodes()
    ]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6),
    tiers=st.lists(st.sampled_from(["random", "medium"]), min_size=6, max_size=6),
    limit=st.integers(1, 30),
)
def test_shards_hold_the_same_episodes_whatever_their_size(
    lengths: list[list[int]], tiers: list[str], limit: int
) -> None:
    shards = [
        dataclasses.replace(random_shard(ls, 7), tier=tier)
        for ls, tier in zip(lengths, tiers, strict=False)
    ]
    written = list(convert.native_shards(source_of(shards), limit))
    assert episode_bytes(written) == episode_bytes(shards)
    assert [s.tier for s in written for _ in s.lengths] == [
        s.tier for s in shards for _ in s.lengths
    ]
    most = max(sum(piece) for piece in lengths)
    assert all(shard.num_transitions <= max(limit, most) for shard in written)


def test_an_open_end_is_closed_and_the_source_is_not_touched() -> None:
    shard = random_shard([4, 3], 0)
    open_end = dataclasses.replace(
        shard, truncations=np.zeros(7, bool), terminations=np.zeros(7, bool)
    )
    (written,) = convert.native_shards(source_of([open_end]))
    assert written.truncations.tolist() == [False, False, False, True, False, False, True]
    assert not open_end.truncations.any()


def test_an_episode_without_a_step_is_refused() -> None:
    shard = random_shard([4], 0)
    empty = dataclasses.replace(
        shard,
        lengths=np.array([4, 0]),
        seeds=np.array([0, 1]),
        observations=np.concatenate([shard.observations, shard.observations[:1]]),
    )
    with pytest.raises(UserError, match="made: an episode without a step"):
        list(convert.native_shards(source_of([empty])))


def test_written_appended_and_described_as_one(tmp_path: Path) -> None:
    first, second = random_shard([5, 5], 0), random_shard([7], 1)
    convert.write_dataset(source_of([first]), tmp_path / "data")
    with pytest.raises(UserError, match="holds a dataset already; --append adds to it"):
        convert.write_dataset(source_of([second]), tmp_path / "data")
    description = convert.write_dataset(
        source_of([second], "other"), tmp_path / "data", append=True
    )
    read, shards = read_dataset(tmp_path / "data")
    assert json.loads(json.dumps(description)) == read
    assert episode_bytes(shards) == episode_bytes([first, second])
    assert [part["source"] for part in read["provenance"]] == ["made", "other"]
    at_once = describe([first, second], ENVIRONMENT)
    assert {key: read[key] for key in at_once} == at_once


def test_what_does_not_belong_is_not_appended(tmp_path: Path) -> None:
    convert.write_dataset(source_of([random_shard([5], 0)]), tmp_path)
    before = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(
        UserError, match=r"has action_high \[2.0, 2.0\], dataset 'made' has \[1.0, 1.0\]"
    ):
        convert.write_dataset(
            source_of([random_shard([5], 1)], action_high=[1.0, 1.0]), tmp_path, append=True
        )
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_an_interrupted_conversion_is_no_dataset_and_is_written_over(tmp_path: Path) -> None:
    shards = [
        dataclasses.replace(random_shard([60], seed), tier=f"tier {seed}") for seed in range(4)
    ]

    def pieces() -> Iterator[Piece]:
        yield Piece(shards[0], "a")
        yield Piece(shards[1], "b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.write_dataset(dataclasses.replace(source_of(shards), pieces=pieces), tmp_path)
    with pytest.raises(UserError, match=r"no dataset\.json"):
        read_dataset(tmp_path)
    convert.write_dataset(source_of(shards), tmp_path)
    assert episode_bytes(read_dataset(tmp_path)[1]) == episode_bytes(shards)


def test_an_interrupted_conversion_goes_on_from_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes; a shard that is damaged, or that the source no longer holds, is not
    kept.
    """
    shards = [dataclasses.replace(random_shard([60], n), tier=f"tier {n}") for n in range(5)]
    convert.write_dataset(source_of(shards), tmp_path / "at once")
    steps = convert.conversion(source_of(shards), tmp_path / "data", False, print)
    for _ in range(3):
        next(steps)
    steps.close()
    written: list[str] = []
    write = convert.write_bytes
    monkeypatch.setattr(
        convert, "write_bytes", lambda file, data: (written.append(file.name), write(file, data))
    )
    said: list[str] = []
    convert.write_dataset(source_of(shards), tmp_path / "data", say=said.append)
    assert written == ["shard-00003.parquet", "shard-00004.parquet"]
    assert said == [f"{tmp_path / 'data'}: going on after 3 shards of an interrupted conversion"]
    for file in (tmp_path / "at once").iterdir():
        assert file.read_bytes() == (tmp_path / "data" / file.name).read_bytes()

    (tmp_path / "data" / "dataset.json").unlink()
    damaged = tmp_path / "data" / "shard-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    written.clear()
    convert.write_dataset(source_of(shards), tmp_path / "data")
    assert written[0] == "shard-00002.parquet"

    (tmp_path / "data" / "dataset.json").unlink()
    other = [shards[0], *(dataclasses.replace(s, rewards=s.rewards + 1) for s in shards[1:])]
    said.clear()
    convert.write_dataset(source_of(other), tmp_path / "data", say=said.append)
    assert any("has changed since" in line and "shard-00001.parquet on" in line for line in said)
    assert episode_bytes(read_dataset(tmp_path / "data")[1]) == episode_bytes(other)


def test_no_episode_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no episode"):
        convert.write_dataset(source_of([]), tmp_path)
    assert not (tmp_path / "dataset.json").exists()


def test_pandas_and_duckdb_read_the_shards(tmp_path: Path) -> None:
    shard = random_shard([5, 8], 0)
    convert.write_dataset(source_of([shard]), tmp_path)
    frame = pd.read_parquet(tmp_path / "shard-00000.parquet").dropna(subset="reward")
    np.testing.assert_array_equal(frame["reward"].to_numpy(np.float32), shard.rewards)
    np.testing.assert_array_equal(np.stack(frame["action"].to_list()), shard.actions)
    query = (
        f"select episode, count(*), sum(reward) from '{tmp_path}/*.parquet' where reward is not"
        " null group by 1 order by 1"
    )
    rows = duckdb.sql(query).fetchall()
    assert [row[:2] for row in rows] == [(0, 5), (1, 8)]
    np.testing.assert_allclose([row[2] for row in rows], shard.returns(), rtol=1e-5)
