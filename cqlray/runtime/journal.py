"""What a run records as it goes: rows of results, events of its time line, and manifest entries.

The writer that also writes relayed files does so in the background and in order, so a kill can lose
only the latest writes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from cqlray.runtime.event_loop import Stop, group
from cqlray.storage.row_index import RowIndex
from cqlray.storage.rows import ResultRow
from cqlray.storage.run_directory import EVENTS, RunDirectory, write_bytes, write_json
from cqlray.storage.writer import Writer

SECONDS_OF_SILENCE = 60.0  # after which a write is reported
SECONDS_BETWEEN_LOOKS = 5.0


class Journal:
    """One run's journal; nothing else writes to the directory while it is open."""

    def __init__(self, directory: RunDirectory, writer: Writer, stop: Stop) -> None:
        self.directory, self.writer, self.stop = directory, writer, stop
        self.index = RowIndex(directory)  # the students' rows, written or queued
        self.stage_name, self.stage_began = "", 0.0

    # -- files -------------------------------------------------------------------------------------

    async def write(self, name: str, data: bytes) -> None:
        """Queue a file of the run to be written; wait while too much is queued."""
        await asyncio.wrap_future(self.writer.room(len(data)))
        self.writer.put(partial(write_bytes, self.directory / name, data), len(data))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run."""
        self.writer.put(partial(write_json, self.directory / name, value))

    def append(self, name: str, rows: Sequence[ResultRow]) -> None:
        """Append JSON lines: members' metrics or evaluations."""
        self.writer.put(partial(self.directory.append, name, rows))
        self.index.add(name, rows)

    def note(self, **values: Any) -> None:
        """Set keys of the manifest."""
        self.writer.put(partial(self.directory.update_manifest, **values))

    async def flush(self) -> None:
        """Wait until all is written, even after a request to stop, but not after a second one.

        Call `stop.check` before anything new begins.
        """
        while True:
            if self.stop.hurried:
                raise asyncio.CancelledError
            try:
                return await asyncio.wrap_future(self.writer.written())
            except asyncio.CancelledError:
                if not self.stop.requested:
                    raise

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel the block as soon as a write fails, and raise that failure; report one that takes
        long.
        """
        async with group() as tasks:
            failure = tasks.create_task(_awaited(self.writer.failure))
            slow = tasks.create_task(self._report_slow_writes())
            yield
            failure.cancel()
            slow.cancel()

    async def _report_slow_writes(self) -> None:
        """Report a write that takes long, once: storage that hangs raises nothing."""
        reported = False
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            seconds = self.writer.seconds_writing()
            if seconds > SECONDS_OF_SILENCE and not reported:
                where = self.directory.path
                self.stop.say(f"a write to {where} has taken {seconds:.0f} s; waiting for it")
            reported = seconds > SECONDS_OF_SILENCE

    # -- the time line -----------------------------------------------------------------------------

    def event(self, event: str, **values: Any) -> None:
        """Record an event of the time line."""
        row = {"at": round(time.time(), 3), "event": event, **values}
        self.writer.put(partial(self.directory.append, EVENTS, [row]))

    def died(self, role: str, error: Exception) -> None:
        """Record that a process died."""
        self.event("death", role=role, what=str(error))

    def busy(self, role: str, processes: int, seconds: float) -> None:
        """Record how many seconds a role's processes were busy in this stage."""
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
        """Run a stage; record its start, its end, and its seconds over all sessions, all written.

        `ending` is called last, however the stage ends.
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
