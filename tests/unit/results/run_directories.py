"""Run directories made by hand, as the driver leaves them (its file formats), for the tests of
evaluation and reporting.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cqlray.config.schema import RunConfig, to_dict
from cqlray.storage.trust import SIGNATURE, signature

Row = dict[str, Any]


def student(member: int, updates: int, returns: Sequence[float | None], **changes: Any) -> Row:
    """An evaluation row of a student, whose value lies 1 below what was observed."""
    row = {
        "policy": "student",
        "member": member,
        "updates": updates,
        "returns": list(returns),
        "lengths": [5] * len(returns),
    }
    return {**row, "value": -8.0, "discounted_return": -6.0, "tail_value": -1.0, **changes}


def reference(policy: str, returns: Sequence[float]) -> Row:
    """An evaluation row of the teacher or of the random policy."""
    return {
        "policy": policy,
        "member": None,
        "updates": None,
        "returns": list(returns),
        "lengths": [5] * len(returns),
    }


def estimate(member: int, updates: int, value: float | None, **changes: Any) -> Row:
    """A row of fitted Q evaluation."""
    row = {"member": member, "updates": updates, "fqe_value": -9.0, "fqe_return": value}
    return {**row, "seconds": 0.5, **changes}


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(
    directory: Path,
    settings: Sequence[Row] = ({},),
    seeds: int = 2,
    evaluations: Sequence[Row] = (),
    finished: bool = True,
    teacher: bool = True,
    config: RunConfig | None = None,
    bootstrap_samples: int = 200,
    **manifest: Any,
) -> Path:
    """A run directory: `seeds` members of each setting, and the evaluations given."""
    (directory / "teacher").mkdir(parents=True)
    (directory / "dataset").mkdir()
    config = config or RunConfig()
    config = dataclasses.replace(
        config,
        evaluation=dataclasses.replace(config.evaluation, bootstrap_samples=bootstrap_samples),
    )
    (directory / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    written = {
        "format": 1,
        "id": "made",
        SIGNATURE: signature(manifest.get("id", "made"), config.env),
        "command": "cqlray run",
        "created": "2026-11-23T02:11:00+00:00",
        "versions": {"cqlray": "0.1.0"},
        "stages": {"teacher": 12.0, "students": 3700.0},
        "dataset_only": False,
        "finished": finished,
        **manifest,
    }
    (directory / "manifest.json").write_text(json.dumps(written))
    members = [{"seed": seed, "swept": swept} for swept in settings for seed in range(seeds)]
    (directory / "members.json").write_text(
        json.dumps([{"member": index, **m} for index, m in enumerate(members)])
    )
    (directory / "dataset" / "dataset.json").write_text(json.dumps(dataset()))
    if teacher:
        (directory / "teacher" / "teacher.json").write_text(json.dumps(teacher_result()))
    metrics = [
        {"stage": "teacher", "round": 1, "updates": 100, "environment_steps": 100, "td_loss": 0.5}
    ]
    metrics += [
        {
            "stage": "students",
            "member": index,
            "updates": updates,
            "td_loss": 0.25 * (index + 1),
            "conservative_gap": None,
        }
        for index in range(len(members))
        for updates in (100, 200)
    ]
    write_lines(directory / "metrics.jsonl", metrics)
    write_lines(directory / "evaluations.jsonl", evaluations)
    return directory


def sweep_of_64(directory: Path) -> Path:
    """64 members in 16 settings of 4 seeds, tested three times each."""
    settings = [
        {"conservative_weight": float(w), "policy_learning_rate": r}
        for w in (0, 1, 5, 10)
        for r in (1e-5, 3e-5, 1e-4, 3e-4)
    ]
    rows = [
        student(member, updates, [-1000.0 + 10 * member + updates + e for e in range(4)])
        for member in range(64)
        for updates in (100, 200, 300)
    ]
    return make_run(directory, settings, seeds=4, evaluations=rows)


def events() -> list[Row]:
    """The time line of a run of two sessions: the first was stopped, a learner and an evaluator
    died, a member was frozen.
    """
    timed: list[tuple[float, Row]] = [
        (0.0, {"event": "session", "what": "began", "host": "node-a"}),
        (0.0, {"event": "stage", "stage": "teacher", "what": "began"}),
        (20.0, busy("teacher", "rollout worker", 2, 10.0, 20.0)),
        (20.0, {"event": "stage", "stage": "teacher", "what": "ended"}),
        (20.0, {"event": "stage", "stage": "students", "what": "began"}),
        (25.0, {"event": "death", "role": "learner", "what": "The actor died."}),
        (30.0, {"event": "frozen", "member": 1, "updates": 4000}),
        (40.0, {"event": "stage", "stage": "students", "what": "ended"}),
        (40.0, busy("students", "learner", 2, 30.0, 20.0)),
        (40.0, {"event": "session", "what": "stopped"}),
        (9040.0, {"event": "session", "what": "resumed", "host": "node-b"}),
        (9041.0, {"event": "stage", "stage": "students", "what": "began"}),
        (9051.0, {"event": "death", "role": "evaluator", "what": "The node died."}),
        (9061.0, busy("students", "learner", 2, 40.0, 20.0)),
        (9061.0, {"event": "stage", "stage": "students", "what": "ended"}),
        (9061.0, {"event": "session", "what": "finished"}),
    ]
    return [{"at": 1_795_439_408.0 + after, **row} for after, row in timed]


def busy(stage: str, role: str, processes: int, busy_seconds: float, seconds: float) -> Row:
    """A row of events.jsonl on how busy a role was."""
    row = {"event": "busy", "stage": stage, "role": role, "processes": processes}
    return {**row, "busy_seconds": busy_seconds, "seconds": seconds}


def teacher_result() -> Row:
    tests = [
        {"round": 2, "environment_steps": 400, "updates": 400, "mean_return": -900.0},
        {"round": 4, "environment_steps": 800, "updates": 800, "mean_return": -150.0},
    ]
    return {
        "rounds": 4,
        "environment_steps": 800,
        "updates": 800,
        "best_round": 4,
        "best_return": -150.0,
        "tests": tests,
    }


def dataset() -> Row:
    return {
        "format": 1,
        "environment": {"id": "Pendulum-v1"},
        "episodes": 6,
        "transitions": 1234,
        "digest": "abc123",
        "tiers": {
            "replay": {"episodes": 4, "transitions": 834, "mean_return": -500.0},
            "random": {"episodes": 2, "transitions": 400, "mean_return": -1100.0},
        },
        "returns": {
            "mean": -700.0,
            "quantiles": {"0": -1200.0, "0.25": -900.0, "0.5": -600.0, "0.75": -400.0, "1": -200.0},
            "histogram": {"edges": [-1200.0, -700.0, -200.0], "counts": [2, 4]},
        },
        "action_coverage": [0.95],
        "shards": [],
    }


def large_run(
    directory: Path,
    members: int,
    snapshots: int,
    episodes: int = 20,
    settings: Sequence[Row] = ({},),
    bootstrap_samples: int = 2_000,
) -> Path:
    """A finished run that looks like a real one: every member tested at every snapshot, with
    metrics, and values of critics that are mostly below what was observed.
    """
    make_run(directory, settings, members // len(settings), bootstrap_samples=bootstrap_samples)
    generator = np.random.default_rng(0)
    with (
        (directory / "metrics.jsonl").open("w") as metrics,
        (directory / "evaluations.jsonl").open("w") as evaluations,
    ):
        for row in (reference("teacher", [-150.0] * 20), reference("random", [-1200.0] * 20)):
            evaluations.write(json.dumps(row) + "\n")
        for updates in range(100, 100 * snapshots + 1, 100):
            progress = updates / (100 * snapshots)
            starts = generator.normal(-1000.0 + 800.0 * progress, 50.0, episodes)
            returns = starts + generator.normal(0.0, 80.0, (members, 1))
            returns = returns + generator.normal(0.0, 30.0, (members, episodes))
            excesses = generator.normal(-5.0, 4.0, (members, episodes))
            measured = generator.normal(1.0, 0.3, (members, len(METRIC_NAMES)))
            for member in range(members):
                key = {"member": member, "updates": updates}
                named = dict(zip(METRIC_NAMES, measured[member].tolist(), strict=True))
                metrics.write(json.dumps({"stage": "students", **key, **named}) + "\n")
                row = _tested(key, returns[member], excesses[member])
                evaluations.write(json.dumps(row) + "\n")
    return directory


METRIC_NAMES = (
    "td_loss",
    "conservative_gap",
    "q_data",
    "q_target",
    "policy_loss",
    "entropy",
    "temperature",
    "multiplier",
)


def _tested(key: Row, returns: np.ndarray, excesses: np.ndarray) -> Row:
    observed = float(returns.mean()) / 10.0
    return {
        "policy": "student",
        **key,
        "returns": returns.tolist(),
        "lengths": [200] * len(returns),
        "value": observed + float(excesses.mean()),
        "discounted_return": observed,
        "tail_value": 0.0,
        "tail_weight": 0.1,
        "excesses": excesses.tolist(),
        "seconds": 1.25,
    }
