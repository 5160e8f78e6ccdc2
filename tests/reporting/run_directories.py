"""Run directories made by hand, as the driver leaves them (its file formats), for the tests of evaluation and reporting."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cqlray.config import RunConfig, to_dict

Row = dict[str, Any]


def student(member: int, updates: int, returns: Sequence[float | None], **changes: Any) -> Row:
    """An evaluation row of a student, whose value lies 1 below what was observed."""
    row = {"policy": "student", "member": member, "updates": updates, "returns": list(returns), "lengths": [5] * len(returns)}
    return {**row, "value": -8.0, "discounted_return": -6.0, "tail_value": -1.0, **changes}


def reference(policy: str, returns: Sequence[float]) -> Row:
    """An evaluation row of the teacher or of the random policy."""
    return {"policy": policy, "member": None, "updates": None, "returns": list(returns), "lengths": [5] * len(returns)}


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
    **manifest: Any,
) -> Path:
    """A run directory: `seeds` members of each setting, and the evaluations given."""
    (directory / "teacher").mkdir(parents=True)
    (directory / "dataset").mkdir()
    config = config or RunConfig()
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, bootstrap_samples=200))
    (directory / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    written = {
        "format": 1,
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
    (directory / "members.json").write_text(json.dumps([{"member": index, **m} for index, m in enumerate(members)]))
    (directory / "dataset" / "dataset.json").write_text(json.dumps(dataset()))
    if teacher:
        (directory / "teacher" / "teacher.json").write_text(json.dumps(teacher_result()))
    metrics = [{"stage": "teacher", "round": 1, "updates": 100, "environment_steps": 100, "td_loss": 0.5}]
    metrics += [
        {"stage": "students", "member": index, "updates": updates, "td_loss": 0.25 * (index + 1), "conservative_gap": None}
        for index in range(len(members))
        for updates in (100, 200)
    ]
    write_lines(directory / "metrics.jsonl", metrics)
    write_lines(directory / "evaluations.jsonl", evaluations)
    return directory


def teacher_result() -> Row:
    tests = [
        {"round": 2, "environment_steps": 400, "updates": 400, "mean_return": -900.0},
        {"round": 4, "environment_steps": 800, "updates": 800, "mean_return": -150.0},
    ]
    return {"rounds": 4, "environment_steps": 800, "updates": 800, "best_round": 4, "best_return": -150.0, "tests": tests}


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
