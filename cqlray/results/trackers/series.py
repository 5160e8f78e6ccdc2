"""What trackers show of a run: its curves, settings and results, under names grouped by `/`, in one
reading.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cqlray.config.schema import NO_ENVIRONMENT
from cqlray.errors import UserError
from cqlray.results.record import Estimates, fqe_returns
from cqlray.results.statistics.calibration import observed_return
from cqlray.results.statistics.summary import (
    RunRecord,
    conservative_weight,
    curve,
    is_cql,
    mean_returns,
    student_rows,
    summarize,
)
from cqlray.storage.locations import AnyPath
from cqlray.storage.rows import MemberEntry, MetricsRow, StudentTest
from cqlray.storage.run_directory import MANIFEST

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
    """All scalars at steps below this one are known; at later steps an unfinished run may still add
    some.
    """
    settings: dict[str, Any]
    """The settings that applied: texts, numbers, None, and dictionaries of these."""
    summary: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run in the form in which trackers are given it."""

    directory: AnyPath
    identity: str
    """32 hexadecimal digits that stay the same when the run is resumed, reported, moved or copied.
    """
    name: str
    environment: str
    """Its id, or logged-data."""
    state: str
    """finished, running or interrupted."""
    began: datetime
    seconds: float
    """Wall-clock time of the stages so far."""
    series: list[Series]
    """All members together, the teacher, then each member, as far as there is anything to show."""


def tracked_run(run: RunRecord) -> TrackedRun:
    """Everything that trackers show of a run, finished or not."""
    manifest = run.manifest
    key = manifest.get("id") or json.dumps(
        [manifest.get("created"), run.config], sort_keys=True, default=str
    )
    began = manifest.get("created")
    estimates = fqe_returns(run)
    return TrackedRun(
        directory=run.directory,
        identity=hashlib.sha256(f"cqlray {key}".encode()).hexdigest()[:32],
        name=run.directory.absolute().name,
        environment=(
            "logged-data" if run.config["env"]["id"] == NO_ENVIRONMENT else run.config["env"]["id"]
        ),
        state=(
            "finished" if manifest.get("finished") else "running" if run.running else "interrupted"
        ),
        began=_time(began, run.directory / MANIFEST) if began else datetime.fromtimestamp(0, UTC),
        seconds=float(sum(manifest.get("stages", {}).values())),
        series=[_everyone(run, estimates), *_singles(run, estimates)],
    )


def _time(text: str, manifest: AnyPath) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{manifest}: created is {text[:60]!r}; it should be a time") from None


def curves(
    run: RunRecord, estimates: Estimates | None = None
) -> Iterator[tuple[str, list[Scalar]]]:
    """Name and scalars of the teacher and of each member. `estimates` are what fqe_returns gives;
    they are read where they are not given.
    """
    estimates = fqe_returns(run) if estimates is None else estimates
    teacher = [
        scalar for row in run.metrics if row["stage"] == "teacher" for scalar in _training(row)
    ]
    tests = run.teacher["tests"] if run.teacher else []
    teacher += [
        ("eval/return_mean", test["mean_return"], test["updates"])
        for test in tests
        if test["mean_return"] is not None
    ]
    if teacher:
        yield "teacher", teacher
    for entry in run.members:
        number = entry["member"]
        scalars = [s for row in run.training.get(number, ()) for s in _training(row)]
        tests = student_rows(run, number).values()
        for row, mean in zip(tests, mean_returns(tests), strict=True):
            scalars += _test(row, mean)
        judged = estimates.get(number, {}).items()
        scalars += [
            ("eval/fqe_return", value, updates) for updates, value in judged if value is not None
        ]
        yield f"member-{number}", scalars


def _training(row: MetricsRow) -> Iterator[Scalar]:
    """The metrics of a row; one that was not finite (null) leaves a gap in the curve."""
    for name, value in row.items():
        if name not in NOT_METRICS and isinstance(value, int | float):
            yield f"train/{name}", value, row["updates"]


def _test(row: StudentTest, mean: float) -> Iterator[Scalar]:
    """The numbers of a test."""
    yield "eval/return_mean", mean, row["updates"]
    for tag, value in (
        ("eval/value", row.get("value")),
        ("eval/observed_return", observed_return(row)),
    ):
        if value is not None:
            yield tag, value, row["updates"]


def _singles(run: RunRecord, estimates: Estimates) -> Iterator[Series]:
    """The teacher's series and each member's."""
    students = _settled(run, estimates)
    entries = {f"member-{entry['member']}": entry for entry in run.members}
    for name, scalars in curves(run, estimates):
        judged: list[float | None] = []
        if name == "teacher":
            # The teacher's tests are written when it is done; until then no step is settled.
            settled = math.inf if run.teacher or run.manifest.get("finished") else 0
            settings = {"kind": "teacher", "teacher": run.config.get("teacher")}
        else:
            entry = entries[name]
            settled, settings = students, _member_settings(run, entry)
            judged = list(estimates.get(entry["member"], {}).values())
        returns = [value for tag, value, _ in scalars if tag == "eval/return_mean"]
        best = max((value for value in returns if math.isfinite(value)), default=math.nan)
        summary = {"last/return_mean": returns[-1], "best/return_mean": best} if returns else {}
        # In the summary, too: W&B accepts a step only once, and estimates may be made after the run
        # was sent there.
        if judged and judged[-1] is not None:
            summary["last/fqe_return"] = judged[-1]
        yield Series(name, scalars, settled, _plain(_common(run) | settings), summary)


def _everyone(run: RunRecord, estimates: Estimates) -> Series:
    """The aggregate of all CQL members, as in the report."""
    samples, seed = run.config["evaluation"]["bootstrap_samples"], run.config["seed"]
    points = curve(run, [entry["member"] for entry in run.members if is_cql(entry)], samples, seed)
    scalars = [
        (f"eval/{name}", point[name], point["updates"])
        for point in points
        for name in ("iqm", "iqm_low", "iqm_high")
    ]
    results = summarize(run, samples, seed)
    summary = {
        f"last/{name}": results[name] for name in ("iqm", "iqm_low", "iqm_high", "worst_member")
    }
    summary["best/iqm"] = max((point["iqm"] for point in points), default=None)
    summary |= {f"reference/{name}": results[name] for name in ("teacher", "dataset", "random")}
    summary |= {
        f"normalized/{name}": (results["normalized"] or {}).get(name)
        for name in ("iqm", "iqm_low", "iqm_high")
    }
    settings = {"kind": EVERYONE, "cql": run.config["cql"], "evaluation": run.config["evaluation"]}
    known = {name: value for name, value in summary.items() if value is not None}
    return Series(
        EVERYONE, scalars, _settled(run, estimates), _plain(_common(run) | settings), known
    )


def _settled(run: RunRecord, estimates: Estimates) -> float:
    """The first step at which some member is still to be judged; infinity where none is."""
    if run.manifest.get("finished"):
        return math.inf
    tested = {
        (row["member"], row["updates"]) for row in run.evaluations if row["policy"] == "student"
    }
    estimated = {(member, updates) for member, returns in estimates.items() for updates in returns}
    evaluation = run.config["evaluation"]
    judges = [
        found
        for wanted, found in (
            (evaluation["episodes"], tested),
            (evaluation.get("fitted_q"), estimated),
        )
        if wanted
    ]
    trained = [(row["member"], row["updates"]) for row in run.metrics if row["stage"] == "students"]
    lacking = (
        updates
        for member, updates in trained
        if any((member, updates) not in found for found in judges)
    )
    return min(map(float, lacking), default=math.inf)


def _common(run: RunRecord) -> dict[str, Any]:
    # Only what will not change any more, as MLflow never changes a parameter.
    known = {"dataset_digest": run.dataset["digest"]} if run.dataset else {}
    return {"env": run.config["env"], "run_seed": run.config["seed"], **known}


def _member_settings(run: RunRecord, entry: MemberEntry) -> dict[str, Any]:
    swept = dict(entry["swept"])
    algorithm = swept.pop("algorithm", "cql")
    cql = run.config["cql"] | swept | {"conservative_weight": conservative_weight(run, entry)}
    return {
        "kind": "member",
        "algorithm": algorithm,
        "member": entry["member"],
        "seed": entry["seed"],
        "cql": cql,
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with whatever trackers have no type for (lists, infinities) as text."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            plain[name] = _plain(value)
        elif (
            value is None
            or isinstance(value, (str, int))
            or (isinstance(value, float) and math.isfinite(value))
        ):
            plain[name] = value
        else:
            plain[name] = str(value)
    return plain
