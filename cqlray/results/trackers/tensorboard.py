"""A run's metrics and tests as TensorBoard event files."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.series import Scalar, TrackedRun, curves
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.run_directory import TENSORBOARD


def send(tracked: TrackedRun) -> str:
    """Write the event files, and return the command that shows them.

    Raises UserError where the `tensorboard` package is not installed.
    """
    if not write_tensorboard(tracked.directory):
        raise UserError("the package is not installed; pip install 'cqlray[tensorboard]'")
    return f"tensorboard --logdir {tracked.directory / TENSORBOARD}"


def write_tensorboard(directory: AnyPath) -> bool:
    """Write DIRECTORY/tensorboard from the run directory, replacing what was there: a folder for
    each member and one for the teacher.

    Returns:
        False, with nothing written, where the `tensorboard` package is not installed.

    Raises:
        UserError: as load_run.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return False
    run = load_run(directory)
    if isinstance(directory, Location):
        with tempfile.TemporaryDirectory() as temporary:
            for name, scalars in curves(run):
                _write(Path(temporary, name), scalars)
            (directory / TENSORBOARD).remove()
            for file in (path for path in Path(temporary).rglob("*") if path.is_file()):
                (directory / TENSORBOARD / str(file.relative_to(temporary))).write(
                    file.read_bytes()
                )
        return True
    # Written elsewhere and moved into place whole, so that all of it comes from one reading of the
    # run.
    fresh = Path(tempfile.mkdtemp(prefix=".tensorboard-", dir=directory))
    try:
        fresh.chmod(0o755)
        for name, scalars in curves(run):
            _write(fresh / name, scalars)
        shutil.rmtree(directory / TENSORBOARD, ignore_errors=True)
        fresh.rename(directory / TENSORBOARD)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _write(folder: Path, scalars: list[Scalar]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, value, step in scalars:
            writer.add_scalar(tag, value, step)
