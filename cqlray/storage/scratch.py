"""Scratch: a large file that the processes of one machine share while a run goes on."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cqlray.errors import UserError
from cqlray.storage.machine import file_system

IN_MEMORY = ("tmpfs", "ramfs")
LEFT_BEHIND_SECONDS = 3600.0  # a file that nobody has had open for this long is abandoned


@dataclass(frozen=True)
class Scratch:
    """A file of a run on each of its machines: where it may be, and how it is removed."""

    name: str  # the same for all processes of a run
    chosen: str | None = None  # the place that the user named; else the first on a disk of
    home: str | None = None  # this one, where there is one, and the machine's temporary ones

    def path(self) -> Path:
        """Where the file belongs, in a directory that only this user can read.

        Raises:
            UserError: there is no disk for it, or the directory belongs to another user.
        """
        folder = self._folder()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or found.st_mode & 0o077:
            raise UserError(
                f"{folder} is not a directory of this user alone (mode 0700); remove it, or name"
                " another place with resources.scratch"
            )
        _sweep(folder, self.name)
        return folder / self.name

    def remove(self) -> bool:
        """Remove the file from this machine; processes that have it mapped keep their mapping."""
        for place in self._places():
            folder = _own(place)
            with suppress(OSError):
                if folder.is_dir() and not folder.is_symlink():
                    (folder / self.name).unlink(missing_ok=True)
                    (folder / f".{self.name}.lock").unlink(missing_ok=True)
                    folder.rmdir()  # unless something else is in it
        return True

    def _places(self) -> list[Path]:
        default = [self.home, tempfile.gettempdir(), "/var/tmp"]
        return [Path(place) for place in ([self.chosen] if self.chosen else default) if place]

    def _folder(self) -> Path:
        places = self._places()
        for place in places:
            if place.is_dir() and not is_in_memory(place):
                return _own(place)
        raise UserError(
            f"no disk for data that exceeds memory: {' and '.join(map(str, places))}: missing or in"
            " memory (tmpfs); resources.scratch names a directory on a disk"
        )


def is_in_memory(folder: Path) -> bool:
    """Whether a directory's file system is kept in memory."""
    return file_system(folder) in IN_MEMORY


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: only the owner has access, a symbolic link raises OSError, and a pipe
    does not hang.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _own(place: Path) -> Path:
    """This user's directory in a place that others may write to as well."""
    return place / f"cqlray-{os.geteuid()}"


def _sweep(folder: Path, name: str) -> None:
    """Remove the files of killed runs: whoever uses a file holds a lock on it."""
    for file in folder.iterdir():
        if file.name in (name, f".{name}.lock", f".{name}.tmp"):
            continue
        with suppress(OSError), open(file, "rb", opener=open_private) as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(held.fileno()).st_mtime > LEFT_BEHIND_SECONDS:
                file.unlink()
