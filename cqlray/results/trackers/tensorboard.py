"""A run's metrics and tests as TensorBoard event files."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.statistics.summary import RunRecord
from cqlray.results.trackers.event_files import event_file
from cqlray.results.trackers.series import TrackedRun, curves
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.run_directory import TENSORBOARD


def send(tracked: TrackedRun) -> str:
    """Write the event files, and return the command that shows them.

    Raises UserError where the `tensorboard` package is not installed.
    """
    if not write_tensorboard(tracked.directory):
        raise UserError("the package is not installed; pip install 'cqlray[tensorboard]'")
    return f"tensorboard --logdir {tracked.directory / TENSORBOARD}"


def write_tensorboard(directory: AnyPath, run: RunRecord | None = None) -> bool:
    """Write DIRECTORY/tensorboard from the run directory, replacing what was there: a folder for
    each member and one for the teacher. `run` is the run's record, if it was read already.

    Returns:
        False, with nothing written, where the `tensorboard` package is not installed.

    Raises:
        UserError: as load_run.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return False
    files = _files(run or load_run(directory))
    if isinstance(directory, Location):
        (directory / TENSORBOARD).remove()
        for name, data in files:
            (directory / TENSORBOARD / name).write(data)
        return True
    # Written elsewhere and moved into place whole, so that all of it comes from one reading of the
    # run.
    fresh = Path(tempfile.mkdtemp(prefix=".tensorboard-", dir=directory))
    try:
        fresh.chmod(0o755)
        for name, data in files:
            (fresh / name).parent.mkdir()
            (fresh / name).write_bytes(data)
        shutil.rmtree(directory / TENSORBOARD, ignore_errors=True)
        fresh.rename(directory / TENSORBOARD)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _files(run: RunRecord) -> Iterator[tuple[str, bytes]]:
    """Each file's name below tensorboard/ and its content."""
    now = time.time()
    file = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"
    for name, scalars in curves(run):
        yield f"{name}/{file}", event_file(scalars, now)
