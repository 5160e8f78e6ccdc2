"""A run in MLflow: a parent run in the experiment named after its environment, and a child run for
each member.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from cqlray.errors import UserError
from cqlray.results.trackers.series import EVERYONE, Series, TrackedRun

STATUS = {"finished": "FINISHED", "running": "RUNNING", "interrupted": "KILLED"}
METRICS_IN_A_BATCH, PARAMS_IN_A_BATCH = 1000, 100  # what MLflow's servers accept


def send(tracked: TrackedRun) -> str:
    """Bring MLflow's runs up to date; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLflow's
    other variables apply.

    Runs that are already there are found by their tags; a metric gets the steps that it does not
    have yet. Every point carries the time at which the run began: the run directory has no other.

    Returns:
        Where to look at it, in one line.

    Raises:
        UserError: no network, or MLflow refuses.
    """
    _require_sqlalchemy()
    try:
        client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or tracked.environment
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        _send_runs(client, experiment, tracked)
    except (MlflowException, OSError) as error:
        raise UserError(str(error)) from error
    return f"experiment {name}, run {tracked.name} at {client.tracking_uri}"


def _require_sqlalchemy() -> None:
    """Raises UserError where the runs go into a database and sqlalchemy is missing, as it is after
    installing mlflow-skinny.
    """
    database = re.match(r"(sqlite|postgresql|mysql|mssql)\b", mlflow.get_tracking_uri())
    if database and find_spec("sqlalchemy") is None:
        raise UserError("a database store needs sqlalchemy; pip install mlflow")


def _send_runs(client: MlflowClient, experiment: str, tracked: TrackedRun) -> None:
    found = client.search_runs(
        [experiment], f"tags.`cqlray.run` = '{tracked.identity}'", max_results=10_000
    )
    known = {run.data.tags["cqlray.series"]: run for run in found}
    parent = ""
    for series in tracked.series:
        tags = {
            "cqlray.run": tracked.identity,
            "cqlray.series": series.name,
            "cqlray.state": tracked.state,
        }
        if series.name != EVERYONE:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        tags |= {f"cqlray.{tag}": str(value) for tag, value in series.summary.items()}
        name = tracked.name if series.name == EVERYONE else series.name
        run = known.get(series.name) or client.create_run(
            experiment, start_time=_milliseconds(tracked), tags=tags, run_name=name
        )
        parent = parent or run.info.run_id
        _update(client, run, tracked, series, tags)


def _update(
    client: MlflowClient, run: Run, tracked: TrackedRun, series: Series, tags: dict[str, str]
) -> None:
    """Log what MLflow's run does not have yet."""
    identity = run.info.run_id
    params = [
        Param(name, value)
        for name, value in _dotted(series.settings)
        if name not in run.data.params
    ]
    for batch in _batches(params, PARAMS_IN_A_BATCH):
        client.log_batch(identity, params=batch)
    client.log_batch(identity, tags=[RunTag(name, value) for name, value in tags.items()])
    logged = {
        (name, point.step)
        for name in run.data.metrics
        for point in client.get_metric_history(identity, name)
    }
    began = _milliseconds(tracked)
    metrics = [
        Metric(name, value, began, step)
        for name, value, step in series.scalars
        if (name, step) not in logged
    ]
    for batch in _batches(metrics, METRICS_IN_A_BATCH):
        client.log_batch(identity, metrics=batch)
    if tracked.state == "running":
        client.update_run(identity, status=STATUS[tracked.state])
    else:
        client.set_terminated(
            identity, STATUS[tracked.state], end_time=began + round(1000 * tracked.seconds)
        )


def _dotted(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as flat names: cql.discount and its value, and so on."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _batches(entries: list[Any], size: int) -> list[list[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]


def _milliseconds(tracked: TrackedRun) -> int:
    """When the run began, in milliseconds since 1970."""
    return round(1000 * tracked.began.timestamp())
