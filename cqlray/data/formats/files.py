"""Files and directories of data, on local disk or behind a URI; errors of reading them as one
line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from cqlray.config.secrets import refuse_keys
from cqlray.errors import UserError
from cqlray.storage.outside import LARGEST_JSON, parse_json, require_memory


@dataclass(frozen=True)
class DataPath:
    """A file or directory: `name` as messages call it, and where it is."""

    name: str
    filesystem: fs.FileSystem
    path: str

    def __truediv__(self, child: str) -> DataPath:
        return DataPath(
            f"{self.name.rstrip('/')}/{child}", self.filesystem, f"{self.path.rstrip('/')}/{child}"
        )

    @property
    def suffix(self) -> str:
        """`.parquet`, `.csv`; of log.csv.gz it is `.csv`."""
        parts = self.path.rstrip("/").rpartition("/")[2].lower().removesuffix(".gz").split(".")
        return f".{parts[-1]}" if len(parts) > 1 else ""

    @property
    def is_local(self) -> bool:
        return bool(self.filesystem.type_name == "local")

    @property
    def is_file(self) -> bool:
        return bool(self._kind() == fs.FileType.File)

    @property
    def is_directory(self) -> bool:
        return bool(self._kind() == fs.FileType.Directory)

    def _kind(self) -> fs.FileType:
        with unreachable(self.name):
            return self.filesystem.get_file_info(self.path).type

    def files(self, recursive: bool = True) -> list[DataPath]:
        """The directory's files in natural order of their paths, those in folders too; without
        those whose names begin with a dot or an underscore, such as _SUCCESS.
        """
        with unreachable(self.name):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive))
        start = len(self.path.rstrip("/")) + 1
        below = [info.path[start:] for info in infos if info.type == fs.FileType.File]
        shown = [
            path
            for path in below
            if not any(part.startswith((".", "_")) for part in path.split("/"))
        ]
        return [self / path for path in sorted(shown, key=natural_key)]

    def open(self) -> pa.NativeFile:
        """The file, for reading anywhere in it."""
        self._require_file()
        return self.filesystem.open_input_file(self.path)

    def stream(self) -> pa.NativeFile:
        """The file from its beginning, unpacked where its name ends in .gz."""
        self._require_file()
        return self.filesystem.open_input_stream(self.path)

    def _require_file(self) -> None:
        """Raises OSError for a pipe or a device: to open it would hang."""
        if self.is_local and not self.is_file:
            raise OSError("no such file")

    def read(self, largest: int | None = None) -> bytes:
        """All its bytes, at most `largest`. Raises what the filesystem raises, and UserError where
        there are more or more than memory: call it within `readable`.
        """
        with self.open() as file:
            if largest is not None and file.size() > largest:
                raise UserError(f"{self.name}: {file.size():,} bytes; {largest:,} at most are read")
            require_memory(file.size(), self.name)
            data: bytes = file.read()
            return data

    def json(self) -> Any:
        """The value in a JSON file. Raises UserError."""
        with readable(self.name, "JSON file"):
            data = self.read(LARGEST_JSON)
        return parse_json(data, self.name)


def locate(name: str) -> DataPath:
    """The file or directory that a path or URI names, which need not exist.

    Raises:
        UserError: the URI has a key in it, cannot be understood, or its store cannot be reached.
    """
    refuse_keys(name, "dataset")
    if "://" not in name:
        return DataPath(name, fs.LocalFileSystem(), name)
    with unreachable(name):
        filesystem, path = fs.FileSystem.from_uri(name)
    return DataPath(name.partition("?")[0], filesystem, path)


@contextmanager
def unreachable(name: str) -> Iterator[None]:
    """Errors of a file system as one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"dataset {name!r} cannot be reached: {first_line(error)}") from None


@contextmanager
def readable(file: str, kind: str) -> Iterator[None]:
    """Errors of a library that meets a damaged or foreign file, as one line.

    The list is long because h5py and pyarrow raise nearly anything when a file is damaged.
    """
    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise UserError(f"{file}: not a readable {kind} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """An error's message in one line of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def natural_key(text: str) -> list[tuple[int, str]]:
    """Key for sorting: sensor_2 before sensor_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]
