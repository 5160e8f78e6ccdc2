"""Behaviour cloning and offline SAC beside CQL, trained in one run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cqlray.api import runs as api
from cqlray.data.shards import from_parquet
from cqlray.results.policies import load_policy
from tests.conftest import small_config

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
def test_what_cql_brings(tmp_path: Path) -> None:
    """One population holds all three; the clone acts most like the data, SAC's values are above
    CQL's.
    """
    config = small_config(tmp_path / "run", num_seeds=1, baselines=("bc", "sac"))
    collection = dataclasses.replace(config.collection, tiers=("medium",))
    result = api.run(dataclasses.replace(config, collection=collection), quiet=True)
    members = json.loads((result.run_dir / "members.json").read_text())
    assert [member["swept"]["algorithm"] for member in members] == ["cql", "bc", "sac"]

    files = sorted((result.run_dir / "dataset").glob("*.parquet"))
    shards = [from_parquet(file.read_bytes(), str(file)) for file in files]
    episodes = [episode for shard in shards for episode in shard.episodes()]
    observations = np.concatenate([episode.observations[:-1] for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    apart = {}
    for member in members:
        policy = load_policy(result.run_dir, member["member"])
        own = np.array([policy(observation) for observation in observations])
        apart[member["swept"]["algorithm"]] = float(np.square(own - actions).mean())
    assert apart["bc"] < min(apart["cql"], apart["sac"]), apart

    assert [group["swept"]["algorithm"] for group in result.summary["groups"]] == [
        "cql",
        "bc",
        "sac",
    ]
    last = {
        row["member"]: row
        for row in map(json.loads, (result.run_dir / "evaluations.jsonl").read_text().splitlines())
    }
    assert last[2]["value"] > last[0]["value"], "what CQL brings: lower values"
    report = (result.run_dir / "report.html").read_text()
    assert all(f"algorithm {name}" in report for name in ("cql", "bc", "sac"))
