"""`cqlray report RUN --to NAME …`: a run in TensorBoard, Weights & Biases or MLflow, from its
directory alone.

Reporting again, of a run that is still under way or was resumed, adds what is new and doubles
nothing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module

from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.series import TrackedRun, tracked_run
from cqlray.storage.locations import AnyPath

Sender = Callable[
    [TrackedRun], str
]  # brings a tracker up to date, says in one line where; raises UserError

TRACKERS = {
    "tensorboard": "cqlray.results.trackers.tensorboard",
    "wandb": "cqlray.results.trackers.wandb_tracker",
    "mlflow": "cqlray.results.trackers.mlflow_tracker",
}
"""The module of each, whose `send` is a Sender; a tracker's package is loaded with it, when it is
asked for.
"""

_SECRET = re.compile(
    r"(WANDB|MLFLOW|DATABRICKS|AWS|AZURE)_.*(KEY|TOKEN|PASSWORD|SECRET)", re.IGNORECASE
)


def send_to(directory: AnyPath, names: Sequence[str]) -> dict[str, str]:
    """Bring each tracker up to date with a run, finished or not; the run directory gets at most
    `tensorboard/`.

    Args:
        directory: the run's.
        names: of TRACKERS.

    Returns:
        For each name where the run is to be seen, in one line.

    Raises:
        UserError: an unknown name, a package that is not installed, a tracker that refuses or has
            no answer; or as load_run.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker {name!r}; the trackers are {', '.join(TRACKERS)}")
    senders = {name: _sender(name) for name in names}
    tracked = tracked_run(load_run(directory))
    sent = {}
    for name, send in senders.items():
        try:
            with redirect_stdout(sys.stderr):  # MLflow prints a line for each run
                sent[name] = _without_secrets(send(tracked))
        except UserError as error:
            raise UserError(f"{name}: {_without_secrets(str(error))}") from error
    return sent


def _sender(name: str) -> Sender:
    try:
        sender: Sender = import_module(TRACKERS[name]).send
    except ImportError as error:
        raise UserError(
            f"{name}: the package is not installed; pip install 'cqlray[{name}]'"
        ) from error
    return sender


def _without_secrets(text: str) -> str:
    """One line, without the passwords in its addresses and without what the environment has in
    secret variables.
    """
    for name, value in os.environ.items():
        if len(value) > 3 and _SECRET.fullmatch(name):
            text = text.replace(value, "…")
    return re.sub(r"//[^/@\s]+@", "//…@", " ".join(text.split()))
