"""Reads the directory of a run, finished or not, into one record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np

from cqlray.config.load import build
from cqlray.config.read_yaml import load_yaml
from cqlray.config.schema import to_dict
from cqlray.data.dataset import DESCRIPTION
from cqlray.errors import UserError
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import AnyPath
from cqlray.storage.outside import read_json
from cqlray.storage.row_types import require
from cqlray.storage.rows import (
    DatasetFacts,
    EvaluationRow,
    Event,
    FittedQRow,
    MemberEntry,
    MetricsRow,
    TeacherResult,
)
from cqlray.storage.run_directory import (
    CONFIG,
    DATASET,
    EVALUATIONS,
    EVENTS,
    FITTED_Q,
    MEMBERS,
    METRICS,
    TEACHER,
    RunDirectory,
)

SECTIONS = ("seed", "env", "cql", "evaluation")  # of the config, which reports need
ROW_KEY = ("stage", "policy", "member", "updates", "round")
Row = dict[str, Any]  # as a file has it

NOT_KEPT = ("lengths", "seconds")  # of a student's test, as no result uses them

Estimates = Mapping[int, Mapping[int, float | None]]
"""Of fitted Q evaluation, by member and updates; None where an estimate is not finite."""


def load_run(directory: AnyPath) -> RunRecord:
    """Read a run directory. The run may be under way or interrupted; what is not there yet is empty
    or None in the record.

    Raises:
        UserError: it is not a run directory, or one of its files is damaged.
    """
    run = RunDirectory.open(directory)
    return RunRecord(
        directory=directory,
        config=_config(directory / CONFIG),
        manifest=run.manifest(),
        teacher=_json(directory / TEACHER, TeacherResult),
        dataset=_json(directory / DATASET / DESCRIPTION, DatasetFacts),
        members=_json(directory / MEMBERS, list[MemberEntry]) or [],
        metrics=cast(list[MetricsRow], _latest(run.each_row(METRICS))),
        evaluations=cast(list[EvaluationRow], _latest(map(_tested, run.each_row(EVALUATIONS)))),
        running=run.in_use(),
    )


def fqe_returns(run: RunRecord) -> Estimates:
    """What fitted Q evaluation estimates of each member's snapshots, in rising order of updates;
    empty where it judged none.

    Where a snapshot was judged twice, the last estimate counts.
    """
    found: dict[int, dict[int, float | None]] = {}
    for row in fitted_q_rows(run):
        found.setdefault(row["member"], {})[row["updates"]] = row["fqe_return"]
    return {member: dict(sorted(returns.items())) for member, returns in found.items()}


def fitted_q_rows(run: RunRecord) -> list[FittedQRow]:
    """What fitted Q evaluation wrote; nothing where it judged nothing."""
    return cast(list[FittedQRow], RunDirectory(run.directory).rows(FITTED_Q))


def events(run: RunRecord) -> list[Event]:
    """The run's time line, in order of time; nothing where it has none."""
    return cast(list[Event], RunDirectory(run.directory).rows(EVENTS))


def _config(path: AnyPath) -> dict[str, Any]:
    config = load_yaml(path)
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; it should be the config that cqlray wrote")
    return to_dict(build(config, str(path)))


def _json(path: AnyPath, kind: Any) -> Any:
    """A JSON file's value, of a type; None where the run has not written it yet."""
    try:
        return require(read_json(path), kind, str(path))
    except FileNotFoundError:
        return None


def _tested(row: Row) -> Row:
    """An evaluation row with arrays in place of lists of episodes' numbers, since half a million
    rows of lists would fill the memory. A null becomes NaN.
    """
    if row["policy"] == "student":
        row = {key: value for key, value in row.items() if key not in NOT_KEPT}
    for name in ("returns", "excesses"):
        if row.get(name) is not None:
            row[name] = np.array(row[name], dtype=np.float64)
    return row


def _latest(rows: Iterable[Row]) -> list[Row]:
    """Rows sorted by what they are about; of several rows about the same thing, the one written
    last.
    """
    keyed = {_key(row): row for row in rows}
    return [keyed[key] for key in sorted(keyed)]


def _key(row: Row) -> tuple[Any, ...]:
    """What a row is about, to sort by. A missing or null entry comes before all others."""
    stage, policy, *numbers = map(row.get, ROW_KEY)
    return (stage or "", policy or "", *(-1 if value is None else value for value in numbers))


def data_places(run: RunRecord) -> list[AnyPath | str]:
    """Where a run's data may be: in the run, or where its config says. No bucket is asked because a
    file on a disk names it.
    """
    configured = str(run.config.get("dataset") or "")
    at_hand = configured and ("://" not in configured or "://" in str(run.directory))
    return [run.directory / DATASET, *([configured] if at_hand else [])]
