"""What a run writes down as it goes on: rows, the events of its time line, notes in its manifest.

All in order and in the background, by the writer that also writes relayed files: what a kill leaves
behind is a beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

from cqlray.runtime.event_loop import Stop, group
from cqlray.storage.row_index import RowIndex
from cqlray.storage.run_directory import EVENTS, RunDirectory, write_bytes, write_json
from cqlray.storage.writer import Writer

Row: TypeAlias = dict[str, Any]


class Journal:
    """One run's journal; nobody else writes to the directory while it is open."""

    def __init__(self, directory: RunDirectory, writer: Writer, stop: Stop) -> None:
        self.directory, self.writer, self.stop = directory, writer, stop
        self.index = RowIndex(directory)  # of the students' rows that the files have or will have
        self.stage_name, self.stage_began = "", 0.0

    # -- files -------------------------------------------------------------------------------------

    async def write(self, name: str, data: bytes) -> None:
        """Write a file of the run; waits while too much waits to be written."""
        await asyncio.wrap_future(self.writer.room(len(data)))
        self.writer.put(partial(write_bytes, self.directory / name, data), len(data))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run."""
        self.writer.put(partial(write_json, self.directory / name, value))

    def append(self, name: str, rows: list[Row]) -> None:
        """Append JSON lines of members' metrics or judgements."""
        self.writer.put(partial(self.directory.append, name, rows))
        self.index.add(name, rows)

    def note(self, **values: Any) -> None:
        """Set keys of the manifest."""
        self.writer.put(partial(self.directory.update_manifest, **values))

    async def flush(self) -> None:
        """Wait until all is written, also once asked to stop, unless asked again.

        `stop.check` is to be called before anything new begins.
        """
        while True:
            self.stop.check_hurry()
            try:
                return await asyncio.wrap_future(self.writer.written())
            except asyncio.CancelledError:
                if not self.stop.requested:
                    raise

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """End what is done within as soon as something cannot be written, which is then what is
        raised.
        """
        async with group() as tasks:
            failure = tasks.create_task(_awaited(self.writer.failure))
            yield
            failure.cancel()

    # -- the time line -----------------------------------------------------------------------------

    def event(self, event: str, **values: Any) -> None:
        """A line of the time line."""
        row = {"at": round(time.time(), 3), "event": event, **values}
        self.writer.put(partial(self.directory.append, EVENTS, [row]))

    def died(self, role: str, error: Exception) -> None:
        """Note that a process is gone."""
        self.event("death", role=role, what=str(error))

    def busy(self, role: str, processes: int, seconds: float) -> None:
        """How many seconds the processes of a role were at work in this stage."""
        self.event(
            "busy",
            stage=self.stage_name,
            role=role,
            processes=processes,
            busy_seconds=round(seconds, 3),
            seconds=round(time.monotonic() - self.stage_began, 3),
        )

    @asynccontextmanager
    async def stage(self, name: str, ending: Callable[[], None]) -> AsyncIterator[None]:
        """A stage: when it began and ended, and its seconds over all sessions. All is written then.

        `ending` is called last, however it ends.
        """
        self.stop.check()
        self.stage_name, self.stage_began = name, time.monotonic()
        self.event("stage", stage=name, what="began")
        try:
            yield
            self.event("stage", stage=name, what="ended")
        finally:
            ending()
            seconds = time.monotonic() - self.stage_began
            self.writer.put(partial(self._add_seconds, name, seconds))
            await self.flush()

    def _add_seconds(self, stage: str, seconds: float) -> None:
        before = self.directory.manifest().get("stages", {})
        stages = {**before, stage: round(before.get(stage, 0.0) + seconds, 2)}
        self.directory.update_manifest(stages=stages)


async def _awaited(future: Callable[[], Any]) -> None:
    await asyncio.wrap_future(future())
