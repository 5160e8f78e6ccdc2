"""Open HDF5 files with h5py, after a check that the C library can read them at all."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cqlray.data.formats.files import DataPath, readable
from cqlray.data.parquet import COPIES, require_expansion
from cqlray.errors import UserError
from cqlray.storage.outside import require_memory

_WALK = """
import sys, h5py
with h5py.File(sys.argv[1]) as file:
    file.visititems(lambda name, part: list(part.attrs.items()) and None)
"""
SECONDS_TO_WALK = 20.0
BYTES_WALKED_PER_SECOND = 20e6


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


def probe_hdf5(file: DataPath) -> None:
    """Walk through a local HDF5 file in a process that can be killed: HDF5's C library loops for
    ever in some damaged files.

    Raises:
        UserError: it did, or it crashed. Errors that it reports are left to the reader.
    """
    load_h5py()
    if not file.is_local:
        return
    found = Path(file.path).stat()
    size = min(found.st_size, 512 * found.st_blocks)  # holes are not walked through
    patience = SECONDS_TO_WALK + size / BYTES_WALKED_PER_SECOND
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


def read_part(dataset: Any, place: str, rows: slice | None = None) -> Any:
    """The values of a data set, or of these rows of it.

    Raises:
        UserError: they take more memory than there is, or expand too far; HDF5 stores what was
            never written in no space.
    """
    shape, item = dataset.shape, dataset.dtype.itemsize
    if shape is None:
        raise UserError(f"{place}: {dataset.name} is empty")
    whole = math.prod(shape) * item
    require_expansion(whole, dataset.file.id.get_filesize(), place)
    count = shape[0] if rows is None and shape else 1
    if rows is not None:
        count = max(0, min(rows.stop, shape[0]) - rows.start)
    held = max(count * math.prod(shape[1:]), math.prod(dataset.chunks or ())) * item
    require_memory(COPIES * held, place)
    return dataset[() if rows is None else rows]


@contextmanager
def opened_hdf5(file: DataPath) -> Iterator[Any]:
    """The file, opened by h5py.

    Raises:
        UserError: h5py is missing, or the file cannot be read.
    """
    h5py = load_h5py()
    with readable(file.name, "HDF5 file"):
        if file.is_local:
            with h5py.File(file.path, "r") as opened:
                yield opened
        else:
            with file.open() as stream, h5py.File(stream, "r") as opened:
                yield opened
