"""One class for all places of files: a local path, s3://BUCKET/… or gs://BUCKET/…."""

from __future__ import annotations

import errno
import functools
import io
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from cqlray.errors import UserError
from cqlray.storage import disk
from cqlray.storage.patience import patiently

if TYPE_CHECKING:
    from cqlray.storage.object_store import ObjectStore

SCHEMES = ("s3", "gs")
LONGEST_LINE = 2**24  # characters


@dataclass(frozen=True, order=True)
class Location:
    """A place that may hold a file or a directory; its methods are pathlib's, where those exist.

    Every write is complete or absent. In an object store, a method raises StorageFailure if it is
    refused or gets no answer for minutes; on a disk it raises OSError, and StorageFailure where a
    read fails in passing for half a minute.
    """

    scheme: str  # "" on the local disk
    path: PurePosixPath  # in an object store the bucket, then the key

    @staticmethod
    def parse(place: Place) -> Location:
        """The place that an address names; nothing need be there.

        Raises:
            UserError: an address of another kind, without a bucket, or with more in it than bucket
                and key.
        """
        if isinstance(place, Location):
            return place
        scheme, separator, path = os.fspath(place).partition("://")
        if not separator or isinstance(place, os.PathLike):
            return Location("", PurePosixPath(place))
        if scheme not in SCHEMES:
            raise UserError(
                f"{scheme}:// is not known here; it should be a local path, s3://BUCKET/… or"
                " gs://BUCKET/…"
            )
        bucket, _, key = path.partition("/")
        if "@" in bucket or ":" in bucket:  # not repeated in the message: it may hold a password
            raise UserError(
                f"an address {scheme}://… has no credentials or port in it; they belong in"
                " environment variables"
            )
        if not bucket or "?" in path or ".." in key.split("/"):
            raise UserError(
                f"{scheme}://{path.partition('?')[0]}: it should be {scheme}://BUCKET/KEY, without"
                " '?' and '..'"
            )
        return Location(scheme, PurePosixPath(bucket, key.lstrip("/")))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" if self.scheme else str(self.path)

    def __fspath__(self) -> str:
        if self.scheme:
            raise UserError(f"{self}: a local path is needed here")
        return str(self.path)

    def __truediv__(self, name: str) -> Location:
        if self.scheme and name.startswith("/"):
            raise ValueError(f"{name!r} is not below {self}")
        return Location(self.scheme, self.path / name)

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self.path.stem

    @property
    def parent(self) -> Location:
        """The directory that contains it; a bucket's parent is the bucket."""
        is_bucket = bool(self.scheme) and len(self.path.parts) == 1
        return self if is_bucket else Location(self.scheme, self.path.parent)

    def absolute(self) -> Location:
        """The same place, independent of the working directory."""
        return self if self.scheme else Location.parse(self._local.absolute())

    # -- reading -----------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        if self.scheme:
            return self._store.read(str(self.path))
        return patiently(lambda: _read(self._local), self)

    def read_start(self, count: int) -> bytes:
        """The file's first `count` bytes, or all there are. Raises FileNotFoundError."""
        if self.scheme:
            return self._store.read(str(self.path), count)
        return patiently(lambda: _read(self._local, count), self)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file's text. Raises FileNotFoundError, UnicodeDecodeError."""
        return self.read_bytes().decode(encoding)

    def exists(self) -> bool:
        """Whether there is a file or directory."""
        return self._kind() != "NotFound"

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self._kind() == "File"

    def is_dir(self) -> bool:
        """Whether there is a directory; in an object store: anything below, or made by `mkdir`."""
        return self._kind() == "Directory"

    def iterdir(self) -> Iterator[Location]:
        """What the directory contains, sorted by name; nothing if there is no directory."""
        if self.scheme:
            names = self._store.names(str(self.path))
        else:
            names = (
                sorted(patiently(partial(os.listdir, self._local), self)) if self.is_dir() else []
            )
        return (self / name for name in names)

    def glob(self, pattern: str) -> Iterator[Location]:
        """What the directory contains under names that match the pattern, without hidden files
        such as `._NAME`, which macOS leaves beside NAME.
        """
        shown = (below for below in self.iterdir() if not below.name.startswith("."))
        return (below for below in shown if fnmatchcase(below.name, pattern))

    # -- writing -----------------------------------------------------------------------------------

    def mkdir(self) -> None:
        """Make the directory and its parents, unless they exist."""
        if self.scheme:
            self._store.mkdir(str(self.path))
        else:
            disk.make_directory(self._local)

    def write(self, data: bytes, writer: str = "") -> None:
        """Write the file and its directories: readers see all of the old content or of the new.

        If several processes may write the same file at once, each needs a distinct `writer`.
        """
        if self.scheme:
            self._store.write(str(self.path), data)
        else:
            disk.write_file(self._local, data, writer)

    def remove(self) -> None:
        """Remove a file, or a directory with everything in it; do nothing if there is neither."""
        if self.scheme:
            self._store.remove(str(self.path))
        elif self._local.is_dir() and not self._local.is_symlink():
            shutil.rmtree(self._local)
        else:
            self._local.unlink(missing_ok=True)

    def append(self, text: str) -> None:
        """Append whole lines, for `read_appended`; a kill may cut them short on a disk, not in a
        bucket.
        """
        if self.scheme:
            self._store.append(str(self.path), text)
        else:
            disk.append_lines(self._local, text)

    def read_appended(self) -> str:
        """All appended lines, the last perhaps cut off by a kill; empty if there are none."""
        if self.scheme:
            return self._store.read_appended(str(self.path))
        return self.read_bytes().decode("utf-8", "replace") if self._local.exists() else ""

    def appended_lines(self) -> Iterator[str]:
        """The lines of `read_appended` one by one; from a disk, without holding all in memory.

        Raises:
            UserError: a line of more than LONGEST_LINE characters.
        """
        if self.scheme:
            yield from self.read_appended().splitlines()
        elif self._local.exists():
            with io.TextIOWrapper(open_regular(self._local), "utf-8", "replace") as file:
                while line := file.readline(LONGEST_LINE):
                    if len(line) == LONGEST_LINE:
                        raise UserError(f"{self}: not lines of text; the file is damaged")
                    yield line

    # -- where it is stored ------------------------------------------------------------------------

    @property
    def _local(self) -> Path:
        return Path(self.path)

    @property
    def _store(self) -> ObjectStore:
        return _object_store(self.scheme, self.path.parts[0])

    def _kind(self) -> str:
        if self.scheme:
            return str(self._store.kind(str(self.path)).name)
        if patiently(self._local.is_dir, self):
            return "Directory"
        return "File" if patiently(self._local.exists, self) else "NotFound"


def file_size(place: Location) -> int:
    """Bytes of a file on a disk; 0 in an object store. Raises OSError as `open_regular`."""
    if place.scheme:
        return 0
    return patiently(lambda: _size(Path(place)), place)


def _size(path: Path) -> int:
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def _read(path: Path, count: int | None = None) -> bytes:
    """A file's bytes, or its first ones, without taking memory for more than there are."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return file.read() if count is None else file.read(min(count, size))


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it. Raises OSError for all that is none: to open a pipe would hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file, but a directory, a pipe or a device")
    return os.fdopen(descriptor, "rb")


Place: TypeAlias = str | os.PathLike[str] | Location
AnyPath: TypeAlias = Path | Location


def any_path(place: Place) -> AnyPath:
    """What `place` names: on the local disk a Path, as users of the Python API expect, else a
    Location.

    Raises:
        UserError: as Location.parse.
    """
    location = Location.parse(place)
    return location if location.scheme else Path(location)


@functools.cache
def _object_store(scheme: str, bucket: str) -> ObjectStore:
    from cqlray.storage.object_store import ObjectStore

    return ObjectStore(scheme, bucket)
