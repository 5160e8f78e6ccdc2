"""Decide, when a run is opened, who writes its workers' files.

If every node sees the run directory, the workers write there (`SharedFiles`). If only the driver's
machine has it, the bytes come back through the object store, and the driver writes them in the
background and in order (`RelayedFiles`). Stages and workers do not know which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from cqlray.data.dataset import DESCRIPTION
from cqlray.runtime.cluster import put, value
from cqlray.runtime.nodes import nodes_without
from cqlray.runtime.placement import Plan
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.outbox import HandedBack, Outbox, SharedDirectory, StoredFiles
from cqlray.storage.run_directory import RunDirectory, write_bytes
from cqlray.storage.writer import Writer


class SharedFiles:
    """Every node sees the run directory, so workers write and read its files."""

    shared = True

    def __init__(self, place: SharedDirectory, one_node: bool) -> None:
        """`one_node`: no other node exists that might not see a local directory."""
        self.place, self.one_node = place, one_node

    @property
    def outbox(self) -> Outbox:
        """Where workers leave their files."""
        return self.place

    def sources(self, names: Sequence[str]) -> list[Any]:
        """Arguments for a worker that is to read these files of the run."""
        return [StoredFiles(self.place, tuple(names))] if names else []

    def readable(self, names: set[str]) -> set[str]:
        """Those of the run's files that a worker can go on from without the driver reading them for
        it.
        """
        return names

    async def keep(self, references: Mapping[str, Any]) -> None:
        """Do nothing: the workers' files are in the run directory already."""

    def for_learners(self, shard: Any) -> Any:
        """The reference to keep for the learners: none, since they read the shard's file."""
        return None

    def seen_by_learners(self, path: AnyPath) -> bool:
        """Whether learners can read a directory themselves."""
        if not isinstance(path, Path) or self.one_node:
            return True
        run = self.place.path
        return isinstance(run, Path) and path.absolute().is_relative_to(run)


class RelayedFiles:
    """Only the driver's machine has the run directory, so the driver writes its files."""

    shared = False

    def __init__(self, directory: RunDirectory, writer: Writer) -> None:
        self.directory, self.writer = directory, writer

    @property
    def outbox(self) -> Outbox:
        """Where workers leave their files."""
        return HandedBack()

    def sources(self, names: Sequence[str]) -> list[Any]:
        """Arguments for a worker that is to read these files of the run."""
        return [put(Location.parse(self.directory / name).read_bytes()) for name in names]

    def readable(self, names: set[str]) -> set[str]:
        """Those of the run's files that a worker can go on from without the driver reading them for
        it.
        """
        return set()

    def for_learners(self, shard: Any) -> Any:
        """The reference to keep for the learners."""
        return shard

    async def keep(self, references: Mapping[str, Any]) -> None:
        """Write the workers' files, by name, in this order and after everything queued before.

        If this is cancelled or raises, none of them is written.

        Raises:
            Lost: a file is gone with its node.
        """
        found = {name: await value(reference) for name, reference in references.items()}
        size = sum(len(data) for data in found.values())
        await asyncio.wrap_future(self.writer.room(size))
        for name, data in found.items():
            self.writer.put(partial(write_bytes, self.directory / name, data), len(data))

    def seen_by_learners(self, path: AnyPath) -> bool:
        """Whether learners can read a directory themselves."""
        return not isinstance(path, Path)


Files: TypeAlias = SharedFiles | RelayedFiles


async def choose_files(
    directory: RunDirectory, plan: Plan, writer: Writer, say: Callable[[str], None]
) -> Files:
    """Ask every node whether it sees the run directory, and choose accordingly."""
    run_id = directory.manifest().get("id", "")
    place = SharedDirectory(directory.path.absolute(), run_id)
    one_node = plan.cluster.nodes == 1 and not plan.cluster.grows
    if not isinstance(place.path, Path) or one_node:
        return SharedFiles(place, one_node)
    missing = (
        await nodes_without(place.is_here, say)
        if run_id
        else ["any node, as its manifest has no id"]
    )
    if not missing:
        return SharedFiles(place, one_node)
    say(f"{place.path} is not seen by {_in_short(missing)}; all files go through the driver")
    return RelayedFiles(directory, writer)


async def who_lacks(files: Files, dataset: AnyPath, say: Callable[[str], None]) -> str:
    """Which nodes do not see a dataset's directory, even one outside the run's; "" if all do."""
    if files.seen_by_learners(dataset):
        return ""
    description = Location.parse(dataset.absolute() / DESCRIPTION)
    if not description.exists():
        return "this machine"
    probe = partial(_holds, description, description.read_bytes())
    return _in_short(await nodes_without(probe, say))


def _holds(file: Location, content: bytes) -> bool:
    """Whether a file exists with this content."""
    return file.exists() and file.read_bytes() == content


def _in_short(nodes: Sequence[str]) -> str:
    return f"{nodes[0]} and {len(nodes) - 1} more" if len(nodes) > 1 else "".join(nodes)
