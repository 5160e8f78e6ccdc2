"""Run directories: every file is complete or absent, and one process at a time writes.

JSON lines are the one kind of file that grows; a line that a kill cut off is dropped when the file
is next opened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cqlray.errors import StorageFailure, UserError
from cqlray.storage import outside
from cqlray.storage.lease import Lease
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.locks import LEASE, LOCK, exclusive, is_locked
from cqlray.storage.row_types import require
from cqlray.storage.rows import EvaluationRow, Event, FittedQRow, Manifest, MetricsRow

FORMAT = 1

# The names of all files in a run directory; no other module spells them out.
CONFIG = "config.yaml"  # as resolved
MANIFEST = "manifest.json"  # versions, plan, what happened to the run
MEMBERS = "members.json"
METRICS = "metrics.jsonl"  # rows.MetricsRow
EVALUATIONS = "evaluations.jsonl"  # rows.EvaluationRow
FITTED_Q = "fqe.jsonl"  # rows.FittedQRow
EVENTS = "events.jsonl"  # rows.Event
TEACHER = "teacher/teacher.json"  # the teacher's result: it is done
TEACHER_CHECKPOINT = "teacher/checkpoint.safetensors"
DATASET = "dataset"  # a directory: data/dataset.py has the names in it
REPORT = "report.html"
TENSORBOARD = "tensorboard"
VIDEO = "video.gif"
ROW_TYPES: dict[str, Any] = {
    METRICS: MetricsRow,
    EVALUATIONS: EvaluationRow,
    FITTED_Q: FittedQRow,
    EVENTS: Event,
}
LINES_AT_ONCE = 32  # of a file of rows that are decoded together

_HALF_MADE = (f".{MANIFEST}.tmp", f".{CONFIG}.tmp")


def round_name(index: int) -> str:
    """The file with the episodes of a teacher's round."""
    return f"teacher/replay-{index:05d}.parquet"


def teacher_snapshot_name(rounds: int) -> str:
    """The file with the teacher's policy, as tested after `rounds` rounds."""
    return f"teacher/snapshot-{rounds:05d}.safetensors"


def snapshot_name(population: int, updates: int) -> str:
    """The file with a population's policies and critics at an update count."""
    return f"{_snapshots(population)}/{updates:09d}.safetensors"


def checkpoint_name(population: int) -> str:
    """The file that a population's training resumes from."""
    return f"checkpoints/population-{population}.safetensors"


def _snapshots(population: int) -> str:
    return f"snapshots/population-{population}"


@contextmanager
def writing_to(place: AnyPath) -> Iterator[None]:
    """Turn a failed write into an error with a one-line message.

    Raises:
        StorageFailure: the disk is full, gone, or refuses.
    """
    try:
        yield
    except OSError as error:
        raise StorageFailure(f"{place} cannot be written: {error.strerror or error}") from None


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file atomically: it has the old content or all of the new, however this process ends.

    Raises:
        StorageFailure: the disk is full, gone, or refuses.
    """
    with writing_to(path):
        Location.parse(path).write(data)


def write_json(path: AnyPath, value: Any) -> None:
    """Write JSON for people: indented; numbers that are not finite become null."""
    write_bytes(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        value = outside.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}; it should be a JSON object")
    return value


def finite(value: Any) -> Any:
    """Replace every number that is not finite by None, since JSON has no other way to write it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


class RunDirectory:
    """A run's directory, locked by this process while it writes."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.check: Callable[[], None] = lambda: None  # raises UserError if it is not held any more

    @staticmethod
    def create(path: AnyPath, manifest: dict[str, Any]) -> RunDirectory:
        """Make a new run directory with its manifest; hold it first (`locked`).

        Raises:
            UserError: it exists and is not empty, or cannot be written.
        """
        RunDirectory.require_blank(path)
        try:
            write_json(path / MANIFEST, manifest)
        except StorageFailure as error:
            raise UserError(
                f"out {str(path)!r} cannot be written: {str(error).rpartition(': ')[2]}"
            ) from None
        return RunDirectory(path)

    @staticmethod
    def is_free(path: AnyPath) -> bool:
        """Whether a run can be created there: it is empty, or has only the manifest of a run killed
        during its creation.
        """
        return _is_blank(path) and not RunDirectory(path).in_use()

    @staticmethod
    def require_blank(path: AnyPath) -> None:
        """Raise UserError where there is a run, or anything else."""
        if not _is_blank(path):
            raise UserError(
                f"out {str(path)!r} exists already; choose another, or go on with it: cqlray resume"
                f" {path}"
            )

    @staticmethod
    def open(path: AnyPath) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            UserError: it is not one.
        """
        if not path.is_dir():
            raise UserError(f"{path} is not a run directory: there is no such directory")
        if not (path / CONFIG).is_file() or not (path / MANIFEST).is_file():
            raise UserError(f"{path} is not a run directory: it has no {CONFIG} and {MANIFEST}")
        return RunDirectory(path)

    @contextmanager
    def locked(self, say: Callable[[str], None] = print) -> Iterator[None]:
        """Hold the directory, which need not be there yet: on a disk the kernel releases it however
        this process ends, elsewhere a lease expires.

        Raises:
            UserError: another process holds it, or it cannot be locked.
        """
        with exclusive(self.path, say) as self.check:
            self._sweep()
            yield
            self._sweep()

    def _sweep(self) -> None:
        """Remove what processes left on a disk when they were killed while writing."""
        if isinstance(self.path, Location):
            return
        for left in self.path.rglob(".*.tmp"):
            if left.parent.name != LEASE:  # which others may be claiming
                with contextlib.suppress(OSError):
                    left.unlink()

    def in_use(self) -> bool:
        """Whether a process holds the directory now."""
        if isinstance(self.path, Location):
            return Lease(self.path / LEASE).is_held()
        return is_locked(self.path / LOCK)

    def __truediv__(self, name: str) -> AnyPath:
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the run has a file. Raises StorageFailure."""
        return Location.parse(self / name).is_file()

    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        found: dict[str, Any] = require(read_json(self / MANIFEST), Manifest, str(self / MANIFEST))
        return found

    def update_manifest(self, **values: Any) -> None:
        """Set keys of the manifest."""
        self.check()
        write_json(self / MANIFEST, {**self.manifest(), **values})

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append JSON lines in one write."""
        self.check()
        if not rows:
            return
        with writing_to(self / name):
            Location.parse(self / name).append(
                "".join(json.dumps(finite(row)) + "\n" for row in rows)
            )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file, without lines that a kill cut off.

        Empty if there is no file.
        """
        return list(self.each_row(name))

    def each_row(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows one by one, for files that may be larger than memory."""
        lines = Location.parse(self / name).appended_lines()
        file, kind = str(self / name), ROW_TYPES.get(name, dict[str, Any])
        while batch := self._next(lines, name):
            for row in _decoded(batch, file):
                yield require(row, kind, file)

    def _next(self, lines: Iterator[str], name: str) -> list[str]:
        with outside.readable(self / name):
            return list(itertools.islice(lines, LINES_AT_ONCE))

    def snapshots(self, population: int) -> dict[int, Location]:
        """A population's snapshots by update count, ascending."""
        found = Location.parse(self / _snapshots(population)).glob("*.safetensors")
        return dict(sorted((int(path.stem), path) for path in found if path.stem.isdecimal()))

    def last_snapshot(self, population: int) -> tuple[int, Location]:
        """Updates and file of a population's newest snapshot.

        Raises:
            UserError: there is none yet.
        """
        found = self.snapshots(population)
        if not found:
            raise self.no_snapshots()
        return max(found.items())

    def best_teacher_snapshot(self) -> str:
        """The name of the teacher's snapshot with the highest return, once TEACHER is written."""
        return teacher_snapshot_name(read_json(self / TEACHER)["best_round"])

    def require_snapshots(self, populations: int) -> None:
        """Raise UserError if none of the run's populations has a snapshot yet."""
        if not any(self.snapshots(population) for population in range(populations)):
            raise self.no_snapshots()

    def no_snapshots(self) -> UserError:
        """The error to raise when the students have no snapshot yet."""
        return UserError(
            f"{self.path} has no snapshot of its students yet; go on with: cqlray resume"
            f" {self.path}"
        )


def _is_blank(path: AnyPath) -> bool:
    """Whether there is nothing, or only what a run leaves that is killed during its creation."""
    if not path.exists():
        return True
    # In Amazon's store the lease's directory stays after the lease was released.
    half_made = {MANIFEST, LOCK, LEASE, *_HALF_MADE}
    return path.is_dir() and {below.name for below in path.iterdir()} <= half_made


def _decoded(lines: list[str], file: str) -> list[dict[str, Any]]:
    """Decode lines to rows; decoded together they share keys, which halves time and memory.

    Raises:
        UserError: a whole line is no row.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        rows = outside.parse_json(f"[{','.join(lines)}]", file)
    if len(rows) != len(lines):
        rows = [outside.parse_json(line, file) for line in lines if _is_whole(line)]
    return rows


def _is_whole(line: str) -> bool:
    """Whether a line of JSON was not cut off by a kill, and has anything in it; a power loss can
    leave zeros where its first part should be.
    """
    return line.rstrip().endswith("}") and "\0" not in line
