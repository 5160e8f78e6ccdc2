"""What trackers show of a run: its curves, settings and results under names with `/` groups, read once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cqlray.config import NO_ENVIRONMENT
from cqlray.evaluation.summary import (
    Row,
    RunRecord,
    conservative_weight,
    curve,
    is_cql,
    observed_return,
    student_rows,
    summarize,
)
from cqlray.filesystem import AnyPath

NOT_METRICS = {"stage", "member", "round", "updates"}
EVERYONE = "all-members"

Scalar = tuple[str, float, int]  # name, value, step in updates


@dataclass(frozen=True)
class Series:
    """The curves of one member, of the teacher, or of all CQL members together."""

    name: str
    """member-0, teacher, all-members."""
    scalars: list[Scalar]
    settled: float
    """Every scalar at a step below this one is there; at later steps a run that is not finished may bring more."""
    settings: dict[str, Any]
    """The settings in force, of texts, numbers, None and dictionaries of such."""
    summary: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers take it."""

    directory: AnyPath
    identity: str
    """The same however often the run is resumed, reported, moved or copied; 32 hexadecimal digits."""
    name: str
    environment: str
    """Its id, or logged-data."""
    state: str
    """finished, running or interrupted."""
    began: datetime
    seconds: float
    """Wall clock of the stages so far."""
    series: list[Series]
    """All members together, the teacher, then each member; those that have something to show."""


def tracked_run(run: RunRecord) -> TrackedRun:
    """All that trackers show of a run, finished or not."""
    manifest = run.manifest
    own = manifest.get("id") or json.dumps([manifest.get("created"), run.config], sort_keys=True, default=str)
    began = manifest.get("created")
    return TrackedRun(
        directory=run.directory,
        identity=hashlib.sha256(f"cqlray {own}".encode()).hexdigest()[:32],
        name=run.directory.absolute().name,
        environment="logged-data" if run.config["env"]["id"] == NO_ENVIRONMENT else run.config["env"]["id"],
        state="finished" if manifest.get("finished") else "running" if run.running else "interrupted",
        began=datetime.fromisoformat(began) if began else datetime.fromtimestamp(0, UTC),
        seconds=float(sum(manifest.get("stages", {}).values())),
        series=[_everyone(run), *_singles(run)],
    )


def curves(run: RunRecord) -> Iterator[tuple[str, list[Scalar]]]:
    """Name and scalars of the teacher and of each member."""
    teacher = [scalar for row in run.metrics if row["stage"] == "teacher" for scalar in _training(row)]
    tests = run.teacher["tests"] if run.teacher else []
    teacher += [("eval/return_mean", test["mean_return"], test["updates"]) for test in tests if test["mean_return"] is not None]
    if teacher:
        yield "teacher", teacher
    for entry in run.members:
        number = entry["member"]
        own = [row for row in run.metrics if row["stage"] == "students" and row["member"] == number]
        tested = student_rows(run, number).values()
        yield f"member-{number}", [s for row in own for s in _training(row)] + [s for row in tested for s in _test(row)]


def _training(row: Row) -> Iterator[Scalar]:
    """The metrics of a row; what was not finite (null) is a gap in the curve."""
    for name, value in row.items():
        if name not in NOT_METRICS and value is not None:
            yield f"train/{name}", value, row["updates"]


def _test(row: Row) -> Iterator[Scalar]:
    """The numbers of a test."""
    yield "eval/return_mean", float(np.mean(row["returns"])), row["updates"]
    for tag, value in (("eval/value", row.get("value")), ("eval/observed_return", observed_return(row))):
        if value is not None:
            yield tag, value, row["updates"]


def _singles(run: RunRecord) -> Iterator[Series]:
    """The teacher's series and each member's."""
    students = _settled(run)
    for name, scalars in curves(run):
        if name == "teacher":
            # Its tests are written when it is done: until then none of its steps is whole.
            settled = math.inf if run.teacher or run.manifest.get("finished") else 0
            settings = {"kind": "teacher", "teacher": run.config.get("teacher")}
        else:
            entry = next(entry for entry in run.members if f"member-{entry['member']}" == name)
            settled, settings = students, _member_settings(run, entry)
        returns = [value for tag, value, _ in scalars if tag == "eval/return_mean"]
        best = max((value for value in returns if math.isfinite(value)), default=math.nan)
        summary = {"last/return_mean": returns[-1], "best/return_mean": best} if returns else {}
        yield Series(name, scalars, settled, _plain(_common(run) | settings), summary)


def _everyone(run: RunRecord) -> Series:
    """The aggregate of all CQL members, as the report has it."""
    samples, seed = run.config["evaluation"]["bootstrap_samples"], run.config["seed"]
    points = curve(run, [entry["member"] for entry in run.members if is_cql(entry)], samples, seed)
    scalars = [(f"eval/{name}", point[name], point["updates"]) for point in points for name in ("iqm", "iqm_low", "iqm_high")]
    results = summarize(run, samples, seed)
    summary = {f"last/{name}": results[name] for name in ("iqm", "iqm_low", "iqm_high", "worst_member")}
    summary["best/iqm"] = max((point["iqm"] for point in points), default=None)
    summary |= {f"reference/{name}": results[name] for name in ("teacher", "dataset", "random")}
    summary |= {f"normalized/{name}": (results["normalized"] or {}).get(name) for name in ("iqm", "iqm_low", "iqm_high")}
    settings = {"kind": EVERYONE, "cql": run.config["cql"], "evaluation": run.config["evaluation"]}
    known = {name: value for name, value in summary.items() if value is not None}
    return Series(EVERYONE, scalars, _settled(run), _plain(_common(run) | settings), known)


def _settled(run: RunRecord) -> float:
    """The first step at which some member has not been tested yet; infinity where no test is to come."""
    if run.manifest.get("finished") or not run.config["evaluation"]["episodes"]:
        return math.inf
    tested = {(row["member"], row["updates"]) for row in run.evaluations if row["policy"] == "student"}
    trained = [(row["member"], row["updates"]) for row in run.metrics if row["stage"] == "students"]
    return min((float(updates) for member, updates in trained if (member, updates) not in tested), default=math.inf)


def _common(run: RunRecord) -> dict[str, Any]:
    # Only what is known for good: MLflow never changes a parameter.
    known = {"dataset_digest": run.dataset["digest"]} if run.dataset else {}
    return {"env": run.config["env"], "run_seed": run.config["seed"], **known}


def _member_settings(run: RunRecord, entry: Row) -> dict[str, Any]:
    swept = dict(entry["swept"])
    algorithm = swept.pop("algorithm", "cql")
    cql = run.config["cql"] | swept | {"conservative_weight": conservative_weight(run, entry)}
    return {"kind": "member", "algorithm": algorithm, "member": entry["member"], "seed": entry["seed"], "cql": cql}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """What trackers have no type for (lists, infinities) as text."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            plain[name] = _plain(value)
        elif value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
            plain[name] = value
        else:
            plain[name] = str(value)
    return plain
