"""What Prometheus would read on a node while a run goes on."""

from __future__ import annotations

import dataclasses
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from cqlray.api import runs as api
from cqlray.runtime import metrics
from tests.conftest import small_config

pytestmark = pytest.mark.sample

NAMES = (
    *("environment_steps_total", "shards_total", "member_updates_total", "evaluation_return"),
    *("queue_length", "busy_ratio", "writes_waiting"),
)


def scraped(port: int) -> dict[str, float]:
    """The samples of our metrics on a node's metrics page, their labels of ours kept."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith("ray_cqlray")
    }


@pytest.mark.ray
def test_metrics_of_a_run_reach_the_nodes_page(ray_cluster: str, tmp_path: Path) -> None:
    import ray

    (node,) = ray.nodes()
    config = small_config(tmp_path / "run")
    config = dataclasses.replace(config, cql=dataclasses.replace(config.cql, num_updates=660))
    run = threading.Thread(target=lambda: api.run(config, quiet=True))
    run.start()
    found: dict[str, float] = {}
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not all(
        any(f"cqlray_{name}" in key for key in found) for name in NAMES
    ):
        time.sleep(1)
        found |= scraped(node["MetricsExportPort"])
    run.join()
    for name in NAMES:
        assert any(key.startswith(f"ray_cqlray_{name}{{") for key in found), (name, sorted(found))
    roles = [value for key, value in found.items() if key.startswith("ray_cqlray_busy_ratio")]
    assert roles and all(0 <= value <= 1 for value in roles)
    assert any(
        'role="rollout_worker"' in key and value > 0
        for key, value in found.items()
        if "environment_steps" in key
    )


class Clock:
    """Time that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Kept:
    """A metric whose newest values can be read."""

    def __init__(self, *_: object, **__: object) -> None:
        self.values: dict[str, float] = {}

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[",".join((tags or {}).values())] = value

    inc = set


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(metrics, "Gauge", Kept)
    monkeypatch.setattr(metrics, "Counter", Kept)
    return clock


def test_learners_are_as_busy_as_they_are_on_average(clock: Clock) -> None:
    """Of three, one waits for three quarters of its time, wherever in the order it comes back."""
    run = metrics.RunMetrics(lambda: 0)
    for seconds in (2.0, 2.0, 0.5):
        for population, busy in enumerate((2.0, 2.0, seconds)):
            run.advanced(population, 100, busy)
        clock.now += 2.0
    assert run.busy.values == {"learner": pytest.approx((1 + 1 + 0.25) / 3)}
    for _ in range(200):  # two are done; the third goes on
        run.advanced(2, 100, 0.5)
        clock.now += 2.0
    assert run.busy.values == {"learner": pytest.approx(0.25)}


def test_the_writes_that_wait_are_counted_when_something_arrives(clock: Clock) -> None:
    waiting = [3, 7]
    run = metrics.RunMetrics(waiting.pop)
    run.advanced(0, 100, 2.0)
    assert run.writes.values == {"": 7.0}
    run.pool("evaluator", 4, 1, 2)
    assert run.writes.values == {"": 3.0}
    assert run.queue.values == {"evaluator": 4.0}
