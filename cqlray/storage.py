"""Run directories: every file appears whole or not at all, and one process at a time writes.

JSON lines are the one kind of file that grows; a line that a kill cut off is dropped when the file is next opened.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cqlray.errors import UserError
from cqlray.filesystem import AnyPath, Location
from cqlray.lease import Lease, held, is_held

FORMAT = 1


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file whole: its old content or all of the new is there, however this process ends."""
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
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}; it should be a JSON object")
    return value


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None: JSON has no other way to say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


class RunDirectory:
    """A run's directory, held by this process alone while it writes."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.lease: Lease | None = None  # held while it is written to, where there is no lock

    @staticmethod
    def create(path: AnyPath, manifest: dict[str, Any]) -> RunDirectory:
        """Make a new run directory with its manifest.

        Raises:
            UserError: it exists and is not empty, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"out {str(path)!r} exists already; choose another, or go on with it: cqlray resume {path}")
        try:
            write_json(path / "manifest.json", manifest)
        except OSError as error:
            raise UserError(f"out {str(path)!r} cannot be written: {error.strerror or error}") from None
        return RunDirectory(path)

    @staticmethod
    def open(path: AnyPath) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            UserError: it is not one.
        """
        if not path.is_dir():
            raise UserError(f"{path} is not a run directory: there is no such directory")
        if not (path / "config.yaml").is_file() or not (path / "manifest.json").is_file():
            raise UserError(f"{path} is not a run directory: it has no config.yaml and manifest.json")
        return RunDirectory(path)

    @contextmanager
    def locked(self, say: Callable[[str], None] = print) -> Iterator[None]:
        """Hold the directory: on a disk the kernel lets go of it however this process ends, elsewhere a lease expires.

        Raises:
            UserError: another process holds it.
        """
        if isinstance(self.path, Location):
            with held(self.path / "lease.json", say) as self.lease:
                yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is in use by another cqlray process; wait for it or stop it first") from None
            yield

    def in_use(self) -> bool:
        """Whether a process holds the directory now."""
        if isinstance(self.path, Location):
            return is_held(self.path / "lease.json")
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def __truediv__(self, name: str) -> AnyPath:
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        return read_json(self / "manifest.json")

    def update_manifest(self, **values: Any) -> None:
        """Set keys of the manifest."""
        if self.lease is not None:
            self.lease.check()
        write_json(self / "manifest.json", {**self.manifest(), **values})

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append JSON lines in one write."""
        if self.lease is not None:
            self.lease.check()
        if rows:
            Location.parse(self / name).append("".join(json.dumps(finite(row)) + "\n" for row in rows))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of a file; lines that a kill cut off are passed over. No file is no lines."""
        rows = []
        for line in Location.parse(self / name).read_appended().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows
