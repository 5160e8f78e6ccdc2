"""`cqlray report RUN --to NAME …`: a run in TensorBoard, Weights & Biases or MLflow, from its
directory alone.

Reporting a run again, because it was still under way or was resumed, adds what is new and repeats
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module

from cqlray.config.secrets import without_secrets
from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.trackers.series import TrackedRun, tracked_run
from cqlray.storage.locations import AnyPath

Sender = Callable[[TrackedRun], str]
"""Brings a tracker up to date and returns where to look, in one line; raises UserError."""

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Each has a module of the same name here, whose `send` is a Sender. The tracker's package is
imported with that module, only when it is asked for.
"""


def send_to(directory: AnyPath, names: Sequence[str]) -> dict[str, str]:
    """Bring each tracker up to date with a run, finished or not. In the run directory nothing but
    `tensorboard/` is written.

    Args:
        directory: the run directory.
        names: some of TRACKERS.

    Returns:
        For each name, where to look at the run, in one line.

    Raises:
        UserError: an unknown name, a package that is not installed, a tracker that refuses or does
            not answer; or as load_run.
    """
    senders = require_trackers(names)
    tracked = tracked_run(load_run(directory))
    sent = {}
    for name, send in senders.items():
        try:
            with redirect_stdout(sys.stderr):  # MLflow prints a line for each run
                sent[name] = without_secrets(send(tracked))
        except UserError as error:
            raise UserError(f"{name}: {without_secrets(str(error))}") from error
    return sent


def require_trackers(names: Sequence[str]) -> dict[str, Sender]:
    """The sender of each tracker. Raises UserError: there is none, or its package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker {name!r}; the trackers are {', '.join(TRACKERS)}")
    return {name: _sender(name) for name in names}


def _sender(name: str) -> Sender:
    try:
        sender: Sender = import_module(f"cqlray.results.trackers.{name}").send
    except ImportError as error:
        raise UserError(
            f"{name}: the package is not installed; pip install 'cqlray[{name}]'"
        ) from error
    return sender
