"""A run's record while its storage hangs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from cqlray.runtime import journal as module
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.journal import Journal
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.writer import Writer


def test_a_write_that_hangs_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_OF_SILENCE", 0.1)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.01)
    said: list[str] = []
    mount, writer = threading.Event(), Writer()
    journal = Journal(RunDirectory.create(tmp_path, {"id": "x"}), writer, Stop(said.append))

    async def work() -> None:
        async with journal.watched():
            for stuck in range(2):
                writer.put(mount.wait)
                async with asyncio.timeout(20):
                    while len(said) == stuck:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                assert len(said) == stuck + 1, "once each"
                mount.set()
                await journal.flush()
                mount.clear()
                await asyncio.sleep(0.1)

    asyncio.run(work())
    assert set(said) == {f"a write to {tmp_path} has taken 0 s; waiting for it"}
