"""Run directories: every file appears whole or not at all, and one process at a time writes.

JSON lines are the one kind of file that grows; a line that a kill cut off is dropped when the file is next opened.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cqlray.errors import UserError

FORMAT = 1


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: under another name first, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same other name: what a kill leaves behind is overwritten when the file is written again.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented; numbers that are not finite become null."""
    write_bytes(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
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

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(path: Path, manifest: dict[str, Any]) -> RunDirectory:
        """Make a new run directory with its manifest.

        Raises:
            UserError: it exists and is not empty, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"out {str(path)!r} exists already; choose another, or go on with it: cqlray resume {path}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "manifest.json", manifest)
        except OSError as error:
            raise UserError(f"out {str(path)!r} cannot be written: {error.strerror or error}") from None
        return RunDirectory(path)

    @staticmethod
    def open(path: Path) -> RunDirectory:
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
    def locked(self) -> Iterator[None]:
        """Hold the directory; the kernel lets go of it however this process ends.

        Raises:
            UserError: another process holds it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is in use by another cqlray process; wait for it or stop it first") from None
            yield

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        return read_json(self / "manifest.json")

    def update_manifest(self, **values: Any) -> None:
        """Set keys of the manifest."""
        write_json(self / "manifest.json", {**self.manifest(), **values})

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append JSON lines in one write."""
        path = self / name
        text = "".join(json.dumps(finite(row)) + "\n" for row in rows)
        with path.open("ab") as file:
            if file.tell() and not _ends_with_newline(path):
                text = "\n" + text  # the last line was cut off by a kill; readers pass over it
            file.write(text.encode())

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of a file; lines that a kill cut off are passed over. No file is no lines."""
        path = self / name
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
