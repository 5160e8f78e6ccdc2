"""Writes on a disk that are there after a power loss, once they have returned.

A file that was flushed (fsync) is found again only if its directory was flushed after the file's
name came into it; the same holds for a directory in its parent.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Network disks answer so that cannot flush a directory; the last two: it is another user's.
_NOT_FOR_DIRECTORIES = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
_flushed: set[Path] = set()  # what this process knows to have an entry that lasts


def write_file(path: Path, data: bytes, writer: str = "") -> None:
    """Write a file and its directories: readers see all of the old content or of the new."""
    make_directory(path.parent)
    # A writer always uses the same temporary name, so what a kill leaves behind is overwritten.
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with open(temporary, "wb", opener=without_links) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_lines(path: Path, text: str) -> None:
    """Append whole lines, after one that a kill cut short if need be."""
    make_directory(path.parent)
    with open(path, "ab+", opener=without_links) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text  # the last line was cut off by a kill; readers skip it
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    if path not in _flushed:
        _flush_directory(path.parent)
        _flushed.add(path)


def without_links(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: a symbolic link, by which a run directory from elsewhere could have
    another file written to, raises OSError.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def make_directory(folder: Path) -> None:
    """Make a directory and its parents, unless they exist."""
    folder = folder.absolute()
    if folder in _flushed and folder.is_dir():
        return
    for place in [*reversed(folder.parents), folder]:
        if not place.exists():
            place.mkdir(exist_ok=True)
        elif place in _flushed:
            continue
        _flush_directory(place.parent)
        _flushed.add(place)


def move(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its name, once all of it has reached the disk."""
    for below in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
        (_flush_directory if below.is_dir() else _flush)(below)
    os.replace(temporary, path)
    _flush_directory(path.parent)


def _flush_directory(folder: Path) -> None:
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in _NOT_FOR_DIRECTORIES:
            raise


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
