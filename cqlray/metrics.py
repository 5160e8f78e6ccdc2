"""What Ray's dashboard, Prometheus and Grafana show of a run: counters and gauges that the driver keeps.

Ray exports them on every node's metrics port with the prefix `ray_`; cluster/grafana holds a dashboard of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge


class RunMetrics:
    """One run's metrics; making it twice in a process goes on with the same ones."""

    def __init__(self) -> None:
        self.steps = Counter("cqlray_environment_steps_total", "Environment steps played.", tag_keys=("role",))
        self.shards = Counter("cqlray_shards_total", "Shards of episodes that rollout workers brought.")
        self.updates = Counter("cqlray_member_updates_total", "Updates, summed over members.")
        self.returns = Gauge("cqlray_evaluation_return", "Mean return at the newest test.", tag_keys=("member",))
        self.queue = Gauge("cqlray_queue_length", "Calls that wait for a free actor.", tag_keys=("queue",))
        self.busy = Gauge("cqlray_busy_ratio", "Share of a role's time spent at work.", tag_keys=("role",))
        self.finished_at: dict[int, float] = {}  # population -> when its learner last came back

    def played(self, role: str, steps: int) -> None:
        """Steps that a role's actor played."""
        self.steps.inc(float(steps), {"role": role})

    def advanced(self, population: int, updates: int, seconds: float) -> None:
        """Member-updates of a learner's call, and the seconds of work in it."""
        if updates:
            self.updates.inc(float(updates))
        now = time.monotonic()
        since = now - self.finished_at.get(population, now - seconds)
        self.finished_at[population] = now
        self.busy.set(min(1.0, seconds / since) if since > 0 else 1.0, {"role": "learner"})

    def tested(self, member: str, returns: Sequence[float]) -> None:
        """The returns of a member's newest test."""
        self.returns.set(sum(returns) / len(returns), {"member": member})

    def team(self, role: str, waiting: int, at_work: int, size: int) -> None:
        """A team after a call came in or was finished."""
        self.queue.set(float(waiting), {"queue": role})
        self.busy.set(at_work / size, {"role": role})
