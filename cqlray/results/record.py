"""A run directory, finished or not, read into one record."""

from __future__ import annotations

import json
from typing import Any

import yaml

from cqlray.errors import UserError
from cqlray.results.statistics.summary import Row, RunRecord
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import RunDirectory

SECTIONS = ("seed", "env", "cql", "evaluation")  # of the config, that reports look into
ROW_KEY = ("stage", "policy", "member", "updates", "round")


def load_run(directory: AnyPath) -> RunRecord:
    """Read a run directory. It may be running or interrupted: what is not there yet is empty or
    None in the record.

    Raises:
        UserError: it is not a run directory, or one of its files is damaged.
    """
    run = RunDirectory.open(directory)
    evaluations = _latest(run.rows("evaluations.jsonl"))
    return RunRecord(
        directory=directory,
        config=_config(directory / "config.yaml"),
        manifest=run.manifest(),
        teacher=_json(directory / "teacher" / "teacher.json"),
        dataset=_json(directory / "dataset" / "dataset.json"),
        members=_json(directory / "members.json") or [],
        metrics=_latest(run.rows("metrics.jsonl")),
        evaluations=[
            {**row, "returns": [_number(value) for value in row["returns"]]} for row in evaluations
        ],
        running=run.in_use(),
    )


def lines(run: RunRecord, name: str) -> list[Row]:
    """The rows of one of the run's files of JSON lines; none where there is no such file."""
    return RunDirectory(run.directory).rows(name)


def _config(path: AnyPath) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds {type(config).__name__}; it should be a mapping")
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; it should be the config that cqlray wrote")
    return config


def _json(path: AnyPath) -> Any:
    """A JSON file's value; None where the run has not come to it yet."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from None


def _latest(rows: list[Row]) -> list[Row]:
    """Rows sorted by what they are about; of rows about the same thing, the last written."""
    keyed = {_key(row): row for row in rows}
    return [keyed[key] for key in sorted(keyed)]


def _key(row: Row) -> tuple[tuple[bool, Any], ...]:
    """What a row is about. (False, 0) stands for what it does not have: None cannot be sorted."""
    values = [row.get(name) for name in ROW_KEY]
    return tuple((value is not None, 0 if value is None else value) for value in values)


def _number(value: float | None) -> float:
    """JSON lines have null for what was not finite."""
    return float("nan") if value is None else float(value)
