"""What the readers share: places on local disk or a URI, errors as one line, numbers as float32."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from cqlray.data.episode import Array
from cqlray.errors import UserError

# Transitions in a piece, about: large enough that the work for each piece vanishes, small enough
# that several fit in memory.
TRANSITIONS = 65_536
# The tier of data that says none.
TIER = "logged"
_TIERS = ("random", "medium", "expert", "replay")


_WALK = """
import sys, h5py
with h5py.File(sys.argv[1]) as file:
    file.visititems(lambda name, part: list(part.attrs.items()) and None)
"""
SECONDS_TO_WALK = 20.0
BYTES_WALKED_PER_SECOND = 20e6


@dataclass(frozen=True)
class Location:
    """A file or directory: `name` as messages call it, and where it is."""

    name: str
    filesystem: fs.FileSystem
    path: str

    def __truediv__(self, child: str) -> Location:
        return Location(
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

    def files(self, recursive: bool = True) -> list[Location]:
        """The directory's files in natural order of their paths, those in folders too; without
        hidden ones and _SUCCESS.
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
        return self.filesystem.open_input_file(self.path)

    def read(self) -> bytes:
        """All its bytes. Raises what the filesystem raises: call it within `readable`."""
        with self.open() as file:
            data: bytes = file.read()
            return data


def locate(name: str) -> Location:
    """The place that a path or URI names; nothing need be there.

    Raises:
        UserError: the URI cannot be understood, or its store cannot be reached.
    """
    if "://" not in name:
        return Location(name, fs.LocalFileSystem(), name)
    with unreachable(name):
        filesystem, path = fs.FileSystem.from_uri(name)
    return Location(name.partition("?")[0], filesystem, path)


@contextmanager
def unreachable(name: str) -> Iterator[None]:
    """Errors of a file system as one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"dataset {name!r} cannot be reached: {first_line(error)}") from None


@contextmanager
def readable(file: str, kind: str) -> Iterator[None]:
    """Whatever a library says of a damaged or foreign file, as one line.

    The list is long because h5py and pyarrow answer damage with nearly everything they have.
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
    ) as error:
        raise UserError(f"{file}: not a readable {kind} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def load_h5py() -> ModuleType:
    """h5py, which is an optional dependency.

    Raises:
        UserError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            'HDF5 files need h5py, which is not installed: pip install "cqlray[minari]"'
        ) from None
    module: ModuleType = h5py
    return module


def probe_hdf5(file: Location) -> None:
    """Walk through a local HDF5 file in a process that can be ended: of some damaged files HDF5's C
    library finds no end.

    Raises:
        UserError: it found none, or crashed. What it merely complains of is left to the reader.
    """
    load_h5py()
    if not file.is_local:
        return
    patience = SECONDS_TO_WALK + Path(file.path).stat().st_size / BYTES_WALKED_PER_SECOND
    try:
        walked = subprocess.run(
            [sys.executable, "-c", _WALK, file.path],
            capture_output=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{file.name}: HDF5 finds no end in it within {patience:.0f} s; the file is damaged"
        ) from None
    if walked.returncode < 0:
        raise UserError(
            f"{file.name}: HDF5 crashes on it (signal {-walked.returncode}); the file is damaged"
        )


def natural_key(text: str) -> list[tuple[int, str]]:
    """Key for sorting: sensor_2 before sensor_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]


def tier_of(name: str) -> str:
    """The tier that a name such as hopper_medium_replay-v2 tells, else `logged`."""
    words = re.split(r"[^a-z]+", name.lower())
    return "-".join(word for word in words if word in _TIERS) or TIER


def narrow(values: Array) -> Array:
    """Numbers as float32, rounded; as they are where that would lose more (beyond its range) or
    where they are none.
    """
    if values.dtype == np.float32 or values.dtype.kind not in "fiu":
        return values
    with np.errstate(over="ignore"):
        narrowed = values.astype(np.float32)
    lost = np.isinf(narrowed) & np.isfinite(values)
    return values if lost.any() else narrowed


def describe_environment(observation_dim: int, action_dim: int, **known: Any) -> dict[str, Any]:
    """A source's environment: what is not in `known` is None."""
    unknown = dict.fromkeys(("id", "action_low", "action_high", "max_episode_steps"))
    return {
        **unknown,
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "kwargs": {},
        **known,
    }


def complete_environment(
    name: str, said: Mapping[str, Any], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the data says of its environment, and where it says nothing, what was given.

    Raises:
        UserError: both say something, and not the same.
    """
    complete = dict(said)
    for key, value in (given or {}).items():
        if complete.get(key) in (None, {}):
            complete[key] = value
        elif value is not None and not _same(complete[key], value):
            raise UserError(
                f"dataset {name!r}: its {key} is {complete[key]}, but {value} was given; they must"
                " agree"
            )
    return complete


def _same(one: Any, other: Any) -> bool:
    try:
        a, b = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    except (ValueError, TypeError):
        return bool(one == other)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-5, atol=1e-7))
