"""The driver's counters and gauges of a run, for Ray's dashboard, Prometheus and Grafana.

Ray exports them on every node's metrics port with the prefix `ray_`; cluster/grafana holds a
dashboard of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from cqlray.storage.rows import Numbers

# seconds without a result from a learner, whose calls take a few seconds: its population is done
# or waits for a learner
SILENT = 300.0


class RunMetrics:
    """One run's metrics; a second instance in a process continues the same ones."""

    def __init__(self, writes_waiting: Callable[[], int]) -> None:
        """`writes_waiting` returns the number of queued writes; it is called at each update."""
        self.steps = Counter(
            "cqlray_environment_steps_total", "Environment steps played.", tag_keys=("role",)
        )
        self.shards = Counter(
            "cqlray_shards_total", "Shards of episodes that rollout workers brought."
        )
        self.updates = Counter("cqlray_member_updates_total", "Updates, summed over members.")
        self.returns = Gauge(
            "cqlray_evaluation_return", "Mean return at the newest test.", tag_keys=("member",)
        )
        self.queue = Gauge(
            "cqlray_queue_length", "Calls that wait for a free actor.", tag_keys=("queue",)
        )
        self.busy = Gauge(
            "cqlray_busy_ratio", "Share of a role's time spent at work.", tag_keys=("role",)
        )
        self.writes = Gauge("cqlray_writes_waiting", "Writes that the driver has yet to make.")
        self.writes_waiting = writes_waiting
        self.learners: dict[
            int, tuple[float, float]
        ] = {}  # population -> when its learner last replied, how busy it was

    def played(self, role: str, steps: int) -> None:
        """Count environment steps that a role's actor played."""
        self.steps.inc(float(steps), {"role": role})

    def advanced(self, population: int, updates: int, seconds: float) -> None:
        """Count a learner's member-updates in one call, and its busy seconds."""
        if updates:
            self.updates.inc(float(updates))
        now = time.monotonic()
        before, _ = self.learners.get(population, (now - seconds, 1.0))
        self.learners[population] = now, min(1.0, seconds / (now - before)) if now > before else 1.0
        busy = [share for heard, share in self.learners.values() if now - heard < SILENT]
        self.busy.set(sum(busy) / len(busy), {"role": "learner"})
        self.writes.set(float(self.writes_waiting()))

    def tested(self, member: str, returns: Numbers) -> None:
        """Record the returns of a member's newest test."""
        self.returns.set(sum(returns) / len(returns), {"member": member})

    def pool(self, role: str, waiting: int, at_work: int, size: int) -> None:
        """Record the state of a pool after a call was queued or finished."""
        self.queue.set(float(waiting), {"queue": role})
        self.busy.set(at_work / size, {"role": role})
        self.writes.set(float(self.writes_waiting()))
