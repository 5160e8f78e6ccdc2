"""Data sets that a real run wrote, and Ray's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cqlray
from cqlray.data import convert, dataset
from tests.unit.data.test_convert import source_of
from tests.unit.data.test_shards import random_shard

pytestmark = pytest.mark.ray


def test_a_run_s_digest_is_the_one_it_wrote(finished_run: Path) -> None:
    described = cqlray.load_dataset(finished_run).description
    recorded = dataset.read_description(finished_run)
    assert {key: described[key] for key in ("digest", "tiers", "returns", "shards")} == {
        key: recorded[key] for key in ("digest", "tiers", "returns", "shards")
    }


def test_ray_data_reads_the_shards(ray_cluster: str, tmp_path: Path) -> None:
    import ray

    shard = random_shard([5, 8], 0)
    convert.write_dataset(source_of([shard]), tmp_path)
    frame = (
        ray.data.read_parquet(str(tmp_path / "shard-00000.parquet"))
        .to_pandas()
        .dropna(subset="reward")
    )
    np.testing.assert_array_equal(frame["reward"].to_numpy(np.float32), shard.rewards)
