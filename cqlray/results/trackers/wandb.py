"""A run in Weights & Biases: a group of W&B runs, one for each member, one for the teacher, and one
for all members together.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import wandb
from wandb import Settings

from cqlray.errors import UserError
from cqlray.results.trackers.series import Series, TrackedRun

NEXT_STEP = "cqlray-next-step"  # in an offline run's folder: the step after the last one in it


def send(tracked: TrackedRun) -> str:
    """Bring the group up to date; WANDB_MODE, WANDB_DIR, WANDB_PROJECT and W&B's other variables
    apply.

    A row of a W&B run belongs to one update count and is sent once, when everything at that count
    is known; a W&B run that is already there gets the rows after its last. Offline, what was
    written earlier and has not been synced yet is written again.

    Returns:
        Where to look at it, in one line.

    Raises:
        UserError: no key, no network, or W&B refuses.
    """
    group = f"{tracked.name}-{tracked.identity[:6]}"
    where = ""
    for series in tracked.series:
        try:
            where = _send_series(tracked, series, group)
        except (wandb.Error, OSError, ValueError) as error:
            raise UserError(f"{series.name} was not sent: {error}") from error
    return where


def _send_series(tracked: TrackedRun, series: Series, group: str) -> str:
    identity = hashlib.sha256(f"{tracked.identity} {series.name}".encode()).hexdigest()[:16]
    run = _begin(tracked, series, group, identity)
    if run.disabled:
        run.finish()
        return "WANDB_MODE is disabled: nothing was sent"
    folder = Path(run.dir).parent
    # Rows before this step are on the server already.
    first = _next_to_sync(folder, identity) if run.offline else run.starting_step
    rows = {step: row for step, row in _rows(series).items() if step >= first}
    try:
        if run.offline:
            (folder / NEXT_STEP).write_text(str(max(rows, default=first - 1) + 1))
        for step, row in rows.items():
            run.log(row, step=step)
        run.summary.update({**series.summary, "state": tracked.state})
    finally:
        run.finish()
    for earlier in _offline(folder, identity):
        if not _is_synced(earlier, identity):
            shutil.rmtree(earlier)  # all of it was sent, or written again
    if run.offline:
        return f"offline; to send it: wandb sync {folder.parent}/offline-run-*"
    return f"{run.project_url}/groups/{group}"


def _begin(tracked: TrackedRun, series: Series, group: str, identity: str) -> wandb.Run:
    kind = str(series.settings["kind"])
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or re.sub(r"[^\w.-]+", "-", tracked.environment),
        id=identity,
        resume="allow",
        reinit="create_new",
        name=f"{tracked.name} {series.name}",
        group=group,
        job_type=kind,
        tags=sorted({"cqlray", kind, str(series.settings.get("algorithm", kind))}),
        config=series.settings,
        allow_val_change=True,
        settings=_SETTINGS,
    )


def _offline(folder: Path, identity: str) -> list[Path]:
    """The folders that were written offline for the same W&B run earlier."""
    files = folder.parent.glob(f"offline-run-*/run-{identity}.wandb")
    return [file.parent for file in files if file.parent != folder]


def _is_synced(folder: Path, identity: str) -> bool:
    return (folder / f"run-{identity}.wandb.synced").exists()  # `wandb sync` leaves this file


def _next_to_sync(folder: Path, identity: str) -> int:
    """The step after the last one that `wandb sync` has sent: a step sent twice would be on the
    server twice.
    """
    synced = [
        earlier / NEXT_STEP
        for earlier in _offline(folder, identity)
        if _is_synced(earlier, identity)
    ]
    return max((int(file.read_text()) for file in synced if file.exists()), default=0)


# This process and machine only report, so W&B gets nothing of them: no output, load, code, packages
# or command line.
_SETTINGS = Settings(
    console="off",
    silent=True,
    disable_code=True,
    disable_git=True,
    x_disable_meta=True,
    x_disable_stats=True,
    x_save_requirements=False,
)


def _rows(series: Series) -> dict[int, dict[str, Any]]:
    """What is logged at each settled step, in rising order: W&B drops whatever arrives for an
    earlier step.
    """
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for tag, value, step in sorted(series.scalars, key=lambda scalar: scalar[2]):
        if step < series.settled:
            rows[step][tag] = value
    return rows
