"""Data larger than memory, and larger than Ray's object store, at sizes that take their time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cqlray.config.schema import RunConfig
from cqlray.storage.run_directory import read_json
from tests.conftest import small_config
from tests.datasets import read_dataset
from tests.integration.test_driver import ROOT
from tests.unit.data.test_store import peak_of_sampling


def test_twenty_million_transitions_within_two_gibibytes(tmp_path: Path) -> None:
    assert peak_of_sampling(tmp_path / "columns", 20_000_000, 4000) < 2 * 2**30
    (tmp_path / "columns").unlink()


@pytest.mark.ray
def test_data_larger_than_the_object_store_is_spilled(tmp_path: Path) -> None:
    """A cluster with the smallest store that Ray makes; the shards are three times as large."""
    code = f"""
import ray, numpy as np
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=80 * 2**20,
         object_spilling_directory={str(tmp_path / "spilled")!r})
from cqlray.api import runs as api
from tests.nightly.test_large_store import wide_config
print(api.run(wide_config({str(tmp_path / "run")!r}), quiet=True).run_dir)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, shards = read_dataset(tmp_path / "run")
    assert sum(shard.observations.nbytes for shard in shards) > 200 * 2**20
    assert read_json(tmp_path / "run" / "manifest.json")["finished"]


def wide_config(out: str) -> RunConfig:
    """Few steps, each with many numbers."""
    config = small_config(Path(out), num_seeds=1)
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, id="tests.toy_envs:Wide-v0"),
        teacher=dataclasses.replace(
            config.teacher,
            rounds=1,
            warmup_rounds=0,
            episodes_per_round=1,
            evaluation_episodes=1,
            pool_capacity=50,
        ),
        collection=dataclasses.replace(
            config.collection, tiers=("random",), episodes=(24,), episodes_per_shard=1
        ),
        cql=dataclasses.replace(config.cql, num_updates=4, batch_size=8),
        evaluation=dataclasses.replace(config.evaluation, interval=4, episodes=1),
    )
