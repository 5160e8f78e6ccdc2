"""What Prometheus would read on a node while a run goes on."""

from __future__ import annotations

import dataclasses
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from cqlray import api
from tests.conftest import small_config

pytestmark = pytest.mark.ray
NAMES = ("environment_steps_total", "shards_total", "member_updates_total", "evaluation_return", "queue_length", "busy_ratio")


def scraped(port: int) -> dict[str, float]:
    """The samples of our metrics on a node's metrics page, their labels of ours kept."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("ray_cqlray")
    }


def test_metrics_of_a_run_reach_the_nodes_page(ray_cluster: str, tmp_path: Path) -> None:
    import ray

    (node,) = ray.nodes()
    config = small_config(tmp_path / "run")
    config = dataclasses.replace(config, cql=dataclasses.replace(config.cql, num_updates=660))
    run = threading.Thread(target=lambda: api.run(config, quiet=True))
    run.start()
    found: dict[str, float] = {}
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not all(any(f"cqlray_{name}" in key for key in found) for name in NAMES):
        time.sleep(1)
        found |= scraped(node["MetricsExportPort"])
    run.join()
    for name in NAMES:
        assert any(key.startswith(f"ray_cqlray_{name}{{") for key in found), (name, sorted(found))
    roles = [value for key, value in found.items() if key.startswith("ray_cqlray_busy_ratio")]
    assert roles and all(0 <= value <= 1 for value in roles)
    assert any('role="rollout_worker"' in key and value > 0 for key, value in found.items() if "environment_steps" in key)
