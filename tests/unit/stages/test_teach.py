"""The teacher's rounds without Ray: whenever they are stopped, a checkpoint counts what the teacher
has learnt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cqlray.config.schema import TeacherConfig
from cqlray.runtime.event_loop import Stop
from cqlray.stages.teach import Lessons
from cqlray.storage.run_directory import RunDirectory

SECONDS = 0.02  # of each call, and of each file


class Reply:
    """A teacher's, on its way."""

    def __init__(self, value: Any) -> None:
        self.future = asyncio.ensure_future(asyncio.sleep(SECONDS, value))
        self.references = [self, self]

    def __await__(self) -> Any:
        return asyncio.shield(self.future).__await__()


class Teacher:
    """Counts its rounds, and says with each checkpoint how many it has learnt."""

    def __init__(self) -> None:
        self.learnt = 0
        self.saved: list[tuple[int, int]] = []  # rounds that the checkpoint counts; learnt

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply:
        if method == "learn":
            self.learnt += 1
            return Reply({"diverged": False})
        assert method == "save"
        self.saved.append((args[0]["rounds"], self.learnt))
        return Reply(b"saved")


@pytest.mark.parametrize("stop_after", [SECONDS * (place + 0.5) for place in range(7)])
def test_a_last_checkpoint_counts_the_rounds_that_the_teacher_has_learnt(
    tmp_path: Path, stop_after: float
) -> None:
    stop, teacher, kept = Stop(lambda line: None), Teacher(), list[str]()

    async def keep(references: Mapping[str, Any]) -> None:
        await asyncio.sleep(SECONDS)
        kept.extend(references)

    async def write(name: str, data: bytes) -> None:
        await asyncio.sleep(0)

    quiet = lambda *_, **__: None  # noqa: E731
    run: Any = SimpleNamespace(stop=stop, is_checkpoint_due=lambda *_: False)
    run.config = SimpleNamespace(teacher=TeacherConfig(rounds=90, evaluation_interval=90))
    run.directory = RunDirectory.create(tmp_path / "run", {"id": "x"})
    run.files = SimpleNamespace(keep=keep)
    run.journal = SimpleNamespace(append=quiet, write=write)
    run.progress = SimpleNamespace(advance=quiet)

    async def story() -> None:
        stop.attach()
        lessons = Lessons(run)

        async def no_episodes(teacher: Any) -> list[Any]:
            return []

        lessons._play = no_episodes  # type: ignore[method-assign]
        asyncio.get_running_loop().call_later(stop_after, stop.request)
        await lessons._go_on(teacher)  # type: ignore[arg-type]

    with suppress(asyncio.CancelledError):
        asyncio.run(story())
    assert stop.requested and teacher.saved, "it was stopped after a round, and saved"
    for counted, learnt in teacher.saved:
        assert counted == learnt == len(kept)
