"""Descriptions, dataset directories, the teacher's pool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cqlray.api.datasets import load_dataset
from cqlray.data import dataset as datasets
from cqlray.data import normalizer
from cqlray.data.columns import join_shards
from cqlray.data.dataset import read_description
from cqlray.data.episode import Shard
from cqlray.data.loading import load_columns
from cqlray.data.replay import ReplayPool
from cqlray.data.shards import to_parquet
from cqlray.errors import UserError
from tests.datasets import describe, read_dataset
from tests.unit.data.test_shards import random_shard

ENVIRONMENT = {"id": "X-v0", "action_low": [-2.0, -2.0], "action_high": [2.0, 2.0]}


def write_dataset(folder: Path, shards: list[Shard]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, shard in enumerate(shards):
        (folder / f"shard-{index:05d}.parquet").write_bytes(to_parquet(shard))
    (folder / "dataset.json").write_text(json.dumps(describe(shards, ENVIRONMENT)))


def test_description_by_hand() -> None:
    shards = [random_shard([5, 5], 0), random_shard([10], 1)]
    description = describe(shards, ENVIRONMENT)
    assert (description["episodes"], description["transitions"]) == (3, 20)
    assert sum(description["returns"]["histogram"]["counts"]) == 3
    assert description["tiers"]["random"]["episodes"] == 3
    half = np.full((8, 2), -1.0, np.float32)
    half[:, 1] = np.linspace(-2, 2, 8)
    assert datasets.used_bins(half, ENVIRONMENT).mean(axis=1).tolist() == [0.05, 0.4]


def test_load_checks_what_it_reads(tmp_path: Path) -> None:
    shards = [random_shard([5, 5], 0), random_shard([10], 1)]
    write_dataset(tmp_path / "run" / "dataset", shards)
    description, loaded = read_dataset(tmp_path / "run")
    assert [s.digest() for s in loaded] == [s["digest"] for s in description["shards"]]
    (tmp_path / "run" / "dataset" / "shard-00001.parquet").write_bytes(
        to_parquet(random_shard([10], 2))
    )
    with pytest.raises(
        UserError, match=r"shard-00001\.parquet: its content is not what dataset\.json says"
    ):
        read_dataset(tmp_path / "run")
    (tmp_path / "run" / "dataset" / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.parquet: .*missing"):
        read_dataset(tmp_path / "run")


def test_what_is_not_a_dataset_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match="is empty"):
        read_dataset(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"environment": ')
    with pytest.raises(UserError, match="not readable JSON"):
        read_dataset(tmp_path)


def test_normalizer_statistics_and_constant_columns() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(5, 2, 4000), np.full(4000, 7.0)]).astype(np.float32)
    mean, std = normalizer.fit([values])
    np.testing.assert_allclose(mean, [5, 7], atol=0.1)
    np.testing.assert_allclose(std, [2, normalizer.SMALLEST_STD], atol=0.1)


@pytest.mark.parametrize("capacity", [4, 7, 50])
def test_replay_pool_is_first_in_first_out(capacity: int) -> None:
    pool = ReplayPool(capacity, 3, 2)
    seen = []
    for seed, lengths in enumerate([[3, 2], [4], [1, 1, 9], [2]]):
        shard = random_shard(lengths, seed)
        pool.add(shard, shard.actions)
        data = join_shards([shard])
        seen += [
            (*data.observations[r], *data.observations[r + 1], w)
            for r, w in zip(data.rows, data.rewards, strict=True)
        ]
        held = {
            (*pool.observations[i], *pool.next_observations[i], pool.rewards[i])
            for i in range(pool.size)
        }
        assert held == set(seen[-capacity:])


def test_descriptions_of_wrong_types_are_said(tmp_path: Path) -> None:
    write_dataset(tmp_path, [random_shard([5])])
    description = json.loads((tmp_path / "dataset.json").read_text())

    def told(changed: object, expected: str) -> None:
        (tmp_path / "dataset.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=expected):
            read_dataset(tmp_path)

    told([description], r"dataset\.json: everything missing or of the wrong type")
    told(
        {**description, "shards": 3, "digest": None}, "digest, shards missing or of the wrong type"
    )
    told(
        {**description, "shards": [{"file": "x"}, "y"]},
        r"shards\[0\]\.digest, shards\[1\]\.file, shards\[1\]\.digest",
    )
    digest = description["shards"][0]["digest"]
    for file in ("../", "a\0"):
        told(
            {**description, "shards": [{"file": file, "digest": digest}]},
            "names this file, but it cannot be read",
        )


@pytest.mark.parametrize("digest", ["../../elsewhere", "", "A" * 64, "a" * 63, "a" * 64 + "\n", 3])
def test_a_digest_is_64_hex_digits(tmp_path: Path, digest: object) -> None:
    write_dataset(tmp_path, [random_shard([5])])
    description = json.loads((tmp_path / "dataset.json").read_text())
    shards = [{**description["shards"][0], "digest": digest}]
    for changed, wrong in (({"digest": digest}, "digest"), ({"shards": shards}, r"shards\[0\]")):
        (tmp_path / "dataset.json").write_text(json.dumps({**description, **changed}))
        for read in (read_description, load_columns, load_dataset):
            with pytest.raises(UserError, match=rf"dataset\.json: {wrong}.* of the wrong type"):
                read(tmp_path)


def test_a_replaced_shard_is_refused_even_with_its_own_digest(tmp_path: Path) -> None:
    """Each shard is held to its entry, and the entries to the dataset's digest, by every reader."""
    write_dataset(tmp_path, [random_shard([5]), random_shard([3, 2], seed=1)])
    description = json.loads((tmp_path / "dataset.json").read_text())
    other = random_shard([3, 2], seed=2)
    (tmp_path / "shard-00001.parquet").write_bytes(to_parquet(other))
    replaced = [description["shards"][0], {**description["shards"][1], "digest": other.digest()}]
    for shards in (replaced, description["shards"][:1], description["shards"][::-1]):
        (tmp_path / "dataset.json").write_text(json.dumps({**description, "shards": shards}))
        for read in (read_description, load_columns, load_dataset):
            with pytest.raises(UserError, match=r"dataset\.json: its digest is not that of its"):
                read(tmp_path)
