"""Learners and evaluators whose calls return at once, so that driver, stages and storage have the
load of a large cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cqlray.storage import checkpoint
from cqlray.storage.outbox import Source, contents
from cqlray.storage.run_directory import checkpoint_name, snapshot_name
from cqlray.workers.learner import Advance, LearnerSpec

METRICS = ("td_loss", "policy_loss", "q_data", "q_target", "conservative_gap", "temperature")
BYTES = 20_000  # of a snapshot


class Learner:
    """A snapshot a call, of no policy."""

    def __init__(self, spec: LearnerSpec, saved: Source | None = None, *data: Any) -> None:
        self.outbox, self.number = spec.files.outbox.in_background(), spec.files.population
        self.members = [member.index for member in spec.members]
        self.interval, self.goal = spec.interval, spec.members[0].cql.num_updates
        self.updates = 0
        if saved is not None:
            self.updates = checkpoint.decode(next(contents(saved)))[1]["updates"]

    def step(self, seconds: float, save: bool) -> tuple[Advance, bytes | None, bytes | None]:
        self.updates += self.interval
        metrics = {name: [float(self.updates)] * len(self.members) for name in METRICS}
        snapshot = self._encoded(metrics)
        self.outbox.leave(snapshot_name(self.number, self.updates), snapshot)
        handed_back = self.outbox.leave(checkpoint_name(self.number), snapshot)
        if self.updates == self.goal:
            self.outbox.flush()
        return Advance(self.updates, 0.0, {}, metrics), snapshot, handed_back

    def save(self) -> bytes | None:
        handed_back = self.outbox.leave(checkpoint_name(self.number), self._encoded({}))
        self.outbox.flush()
        return handed_back

    def _encoded(self, metrics: dict[str, list[float]]) -> bytes:
        metadata = {"updates": self.updates, "members": self.members, "metrics": metrics}
        return checkpoint.encode({"nothing": np.zeros(BYTES, np.uint8)}, metadata)


class Evaluator:
    """Tests in which nothing happens."""

    def __init__(self, *_: Any) -> None: ...

    def evaluate(self, snapshot: bytes, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
        row = {
            "returns": [0.0] * len(seeds),
            "lengths": [1] * len(seeds),
            "excesses": [0.0] * len(seeds),
            **dict.fromkeys(("value", "discounted_return", "tail_value", "tail_weight"), 0.0),
            "seconds": 0.0,
        }
        return [row for _ in checkpoint.decode(snapshot)[1]["members"]]
