"""Data sets that a real run wrote, and Ray's own reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cqlray
from cqlray.data import convert, dataset
from tests.processes import wait_until
from tests.unit.api.test_datasets import BOUNDS, FLAGS, frame
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


# Under nohup or in a script's background SIGINT is ignored, which children inherit.
LISTENING = """
import signal, sys
from cqlray.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_ctrl_c_ends_a_conversion_which_the_same_command_goes_on_with(tmp_path: Path) -> None:
    """A first SIGINT, once there is a shard: status 130, how to go on, and then the same bytes."""
    # A piece of a log holds about 65,536 rows, a shard about 50,000.
    frame(episodes=60_000, steps=8).to_parquet(tmp_path / "log.parquet")
    environment = {**os.environ, "PYTHONPATH": str(Path(cqlray.__file__).parents[1])}

    def begun(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LISTENING, "dataset", "convert"]
        command += [str(tmp_path / "log.parquet"), "--out", str(out), *FLAGS, *BOUNDS]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    first = begun(tmp_path / "data")
    wait_until(lambda: any((tmp_path / "data").glob("shard-*")), "there is a shard")
    first.send_signal(signal.SIGINT)
    asked = time.monotonic()
    said = first.communicate()[1]
    assert first.returncode == 130 and time.monotonic() - asked < 5
    assert said.splitlines()[-1].startswith("cqlray: stopped; go on with: cqlray dataset convert ")
    assert not (tmp_path / "data" / "dataset.json").exists()
    again = begun(tmp_path / "data")
    assert "of an interrupted conversion" in again.communicate()[1] and again.returncode == 0
    whole = begun(tmp_path / "whole")
    assert "of an interrupted conversion" not in whole.communicate()[1]
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "data" / file.name).read_bytes()
