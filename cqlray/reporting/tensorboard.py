"""A run's metrics and tests as TensorBoard event files."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cqlray.evaluation.summary import Row, RunRecord, observed_return
from cqlray.filesystem import AnyPath, Location
from cqlray.reporting.record import load_run

NOT_METRICS = {"stage", "member", "round", "updates"}

Scalar = tuple[str, float, int]  # tag, value, step in updates


def write_tensorboard(directory: AnyPath) -> bool:
    """Write DIRECTORY/tensorboard anew from the run directory: a folder for each member and one for the teacher.

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
            for name, scalars in _folders(run):
                _write(Path(temporary, name), scalars)
            (directory / "tensorboard").remove()
            for file in (path for path in Path(temporary).rglob("*") if path.is_file()):
                (directory / "tensorboard" / str(file.relative_to(temporary))).write(file.read_bytes())
        return True
    # Built aside and moved in whole: what stands there is always from one reading of the run.
    fresh = Path(tempfile.mkdtemp(prefix=".tensorboard-", dir=directory))
    try:
        fresh.chmod(0o755)
        for name, scalars in _folders(run):
            _write(fresh / name, scalars)
        shutil.rmtree(directory / "tensorboard", ignore_errors=True)
        fresh.rename(directory / "tensorboard")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _folders(run: RunRecord) -> Iterator[tuple[str, list[Scalar]]]:
    """Name and scalars of every folder."""
    teacher = [scalar for row in run.metrics if row["stage"] == "teacher" for scalar in _training(row)]
    tests = run.teacher["tests"] if run.teacher else []
    teacher += [("eval/return_mean", test["mean_return"], test["updates"]) for test in tests if test["mean_return"] is not None]
    if teacher:
        yield "teacher", teacher
    for entry in run.members:
        number = entry["member"]
        own = [row for row in run.metrics if row["stage"] == "students" and row["member"] == number]
        tested = [row for row in run.evaluations if row["policy"] == "student" and row["member"] == number]
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


def _write(folder: Path, scalars: list[Scalar]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, value, step in scalars:
            writer.add_scalar(tag, value, step)
