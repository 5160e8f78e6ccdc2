"""Calls that nobody answers: who is named, when, and what ends them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from cqlray.errors import Hung, Lost
from cqlray.runtime import calls as module
from cqlray.runtime.calls import Call, Calls


class Evaluator:
    """An actor that answers when it is told to, or dies."""

    name, role = "evaluator 3", "Evaluator"

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        self.answer.set_exception(Lost("The actor died"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [0.0]
    moved = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr(module, "time", moved)
    return lambda seconds: now.__setitem__(0, seconds)


def test_after_a_minute_it_is_said_who_does_not_answer_since_when_and_where(
    clock: Callable[[float], None],
) -> None:
    said: list[str] = []

    async def work() -> None:
        calls, actor = Calls(said.append, None, lambda actor: "node a"), Evaluator()
        waiting = asyncio.create_task(calls.answer(actor.answer, Call(actor, "evaluate")))
        await asyncio.sleep(0)
        for seconds in (30.0, 60.0, 61.0, 100.0, 1e6):
            clock(seconds)
            calls.look()
            assert len(said) == (seconds > 60)
        actor.answer.set_result("there")
        assert await waiting == "there" and not calls.open
        calls.look()

    asyncio.run(work())
    (line,) = said
    assert re.fullmatch(
        r"no answer from evaluator 3 on node a for 61 s \(evaluate, since \d\d:\d\d:\d\d\);"
        r" waiting for it",
        line,
    )


def test_a_call_that_usually_takes_long_is_given_four_times_as_long(
    clock: Callable[[float], None],
) -> None:
    said: list[str] = []

    async def work() -> None:
        calls = Calls(said.append, None, lambda actor: "node a")
        for asked, seconds in ((0, 50.0), (0, 199.0), (1, 201.0)):
            actor = Evaluator()
            clock(0.0)
            waiting = asyncio.create_task(calls.answer(actor.answer, Call(actor, "evaluate")))
            await asyncio.sleep(0)
            clock(seconds)
            calls.look()
            assert len(said) == asked
            clock(50.0)
            actor.answer.set_result("there")
            await waiting

    asyncio.run(work())


def test_a_call_beyond_the_limit_ends_with_its_actor(clock: Callable[[float], None]) -> None:
    said: list[str] = []

    async def work() -> None:
        calls, actor = Calls(said.append, 90.0, lambda actor: "node a"), Evaluator()
        waiting = asyncio.create_task(calls.answer(actor.answer, Call(actor, "evaluate")))
        await asyncio.sleep(0)
        for seconds in (61.0, 90.0, 91.0):
            assert not actor.answer.done()
            clock(seconds)
            calls.look()
        line = (
            r"^evaluator 3 on node a did not answer evaluate within 90 s \(resources.call_timeout"
        )
        with pytest.raises(Hung, match=line) as hung:
            await waiting
        assert hung.value.for_good and not calls.open

    asyncio.run(work())
    assert len(said) == 1 and said[0].endswith("; waiting for it, for at most 90 s")
