"""How a run's workers deliver files: they write them where every node sees the run directory, or
return them with their results where only the driver's machine has it.

A worker gets an outbox to write to and sources to read from, and does not know which of the two
it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cqlray.errors import NotShared, StorageFailure, UserError
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.patience import patiently
from cqlray.storage.run_directory import MANIFEST, read_json, writing_to
from cqlray.storage.writer import Writer


@dataclass(frozen=True)
class SharedDirectory:
    """The run directory, where every node sees the same storage: files are written at once."""

    path: AnyPath
    run_id: (
        str  # from its manifest: another machine's local disk may have a directory of the same name
    )

    def leave(self, name: str, data: bytes) -> bytes | None:
        """Write a file of the run atomically; several processes may write the same bytes at once.

        Raises:
            StorageFailure: it cannot be written.
            NotShared: this node has another directory there, or none.
        """
        self.require()
        with writing_to(self.path / name):
            Location.parse(self.path / name).write(data, writer=f".{os.urandom(4).hex()}")
        return None

    def in_background(self) -> Outbox:
        """An outbox that writes the same files in a thread."""
        return Background(self)

    def flush(self) -> None:
        """Nothing to wait for: everything is written."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises StorageFailure, and NotShared where this node does not see the run
        directory.
        """
        self.require()
        return Location.parse(self.path / name).read_bytes()

    def require(self) -> None:
        """Raises NotShared unless this node sees the run directory."""
        if not self.is_here():
            raise not_shared(self.path)

    def is_here(self) -> bool:
        """Whether this node sees the run directory.

        Raises:
            StorageFailure: its file system fails, for half a minute.
        """
        return isinstance(self.path, Location) or is_there(self.path / MANIFEST, self.run_id)


class HandedBack:
    """Files go back to the driver, with the result of the call that made them."""

    def leave(self, name: str, data: bytes) -> bytes | None:
        """The bytes to return to the driver."""
        return data

    def in_background(self) -> Outbox:
        """This outbox itself, since nothing is slow here."""
        return self

    def flush(self) -> None:
        """Nothing to wait for."""


class Background:
    """A thread writes files to a shared directory, in order, while the worker continues."""

    def __init__(self, directory: SharedDirectory) -> None:
        self.directory, self.writer = directory, Writer()
        directory.require()

    def leave(self, name: str, data: bytes) -> bytes | None:
        """Queue a file to be written.

        Raises StorageFailure if an earlier one could not be written.
        """
        self.writer.submit(partial(self._write, name, data), len(data))
        return None

    def in_background(self) -> Outbox:
        """This outbox itself."""
        return self

    def flush(self) -> None:
        """Wait until all is written. Raises StorageFailure."""
        self.writer.flush()

    def _write(self, name: str, data: bytes) -> None:
        self.directory.leave(name, data)


Outbox: TypeAlias = SharedDirectory | HandedBack | Background


@dataclass(frozen=True)
class StoredFiles:
    """Files of a run that a worker reads from storage."""

    directory: SharedDirectory
    names: tuple[str, ...]


Source: TypeAlias = bytes | StoredFiles


def contents(*sources: Source) -> Iterator[bytes]:
    """The files' bytes, in their order.

    Raises NotShared if this node should read them and does not have them.
    """
    for source in sources:
        if isinstance(source, bytes):
            yield source
        else:
            yield from (source.directory.read(name) for name in source.names)


def is_there(file: Path, run_id: str | None = None) -> bool:
    """Whether this node has the file; with `run_id`, the manifest of that run.

    Raises:
        StorageFailure: its file system fails, for half a minute.
    """
    try:
        patiently(file.stat, file)
        return run_id is None or read_json(file).get("id", "") == run_id
    except StorageFailure:
        raise
    except (OSError, UserError):  # missing, or damaged and so not this run's
        return False


def not_shared(path: AnyPath) -> NotShared:
    """What to raise on a node that does not have a directory."""
    where = f"{path} is not on node {socket.gethostname()}, though others share it"
    return NotShared(f"{where}; mount it there too, or use s3://")
