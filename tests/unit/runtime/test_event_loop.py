"""The driver's loop in its thread: results, failures and requests to stop, without Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cqlray.errors import Interrupted, Lost, UserError
from cqlray.runtime import event_loop
from cqlray.runtime.event_loop import Stop, group, results


async def after(seconds: float, value: Any) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def test_a_story_runs_in_a_thread_of_its_own_also_where_a_loop_runs_already() -> None:
    async def story() -> threading.Thread:
        return threading.current_thread()

    async def cell() -> threading.Thread:
        return event_loop.run(story, Stop(print))

    for thread in (event_loop.run(story, Stop(print)), asyncio.run(cell())):
        assert thread is not threading.current_thread() and thread.daemon


def test_what_a_story_raises_is_raised() -> None:
    with pytest.raises(UserError, match="wrong"):
        event_loop.run(lambda: after(0, UserError("wrong")), Stop(print))


def test_a_group_raises_the_first_failure_itself_and_cancels_the_others() -> None:
    ended: list[str] = []

    async def other() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("other")

    async def inner() -> None:
        async with group() as tasks:
            tasks.create_task(after(0.01, Lost("gone")))
            tasks.create_task(other())

    async def story() -> None:
        async with group() as tasks:
            tasks.create_task(inner())
            tasks.create_task(other())

    with pytest.raises(Lost, match=r"^gone$"):
        event_loop.run(story, Stop(print))
    assert ended == ["other", "other"]


def test_results_come_in_order_and_so_many_at_once() -> None:
    running, most = 0, 0

    async def story(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 - 0.002 * number)
        running -= 1
        return number

    asked: list[int] = []

    def stories() -> Iterator[Any]:
        for number in range(9):
            asked.append(running)
            yield story(number)

    assert asyncio.run(results(stories(), at_once=3)) == list(range(9))
    assert most == 3 and max(asked) == 2, "a story is made when there is room for it"
    assert asyncio.run(results(iter(()), at_once=3)) == []


def test_results_are_whole_or_none() -> None:
    async def cancelled() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(results((after(0, 0), cancelled(), after(0, 2)), at_once=2))


@pytest.mark.parametrize("requests", [1, 2])
def test_the_first_request_cancels_the_story_and_the_second_its_last_words(requests: int) -> None:
    said: list[str] = []
    stop = Stop(said.append)

    async def member(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stop.check_hurry()
            stop.announce("saving")
            await asyncio.sleep(0.3)
            said.append(f"saved {number}")
            raise

    async def story() -> None:
        async with group() as tasks:
            for number in range(2):
                tasks.create_task(member(number))

    for request in range(requests):
        threading.Timer(0.1 + 0.1 * request, stop.request).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        event_loop.run(story, stop)
    assert time.monotonic() - began < 5
    assert sorted(said) == (["saved 0", "saved 1", "saving"] if requests == 1 else ["saving"])


def test_a_request_that_came_before_the_story_began_counts() -> None:
    stop = Stop(print)
    stop.request()
    with pytest.raises(Interrupted):
        event_loop.run(lambda: after(60, None), stop)
    assert stop.requested and not stop.hurried


def test_a_reply_is_seen_out_and_what_follows_is_stopped() -> None:
    said: list[str] = []
    stop, work = Stop(said.append), []

    class Reply:
        """Can be awaited again."""

        def __await__(self) -> Any:
            return asyncio.shield(self.future).__await__()

        def __init__(self) -> None:
            self.future = asyncio.ensure_future(after(0.3, "done"))

    async def story() -> None:
        work.append(await stop.see_out(Reply(), "to the end"))  # type: ignore[func-returns-value]
        stop.check()
        work.append("more")

    threading.Timer(0.1, stop.request).start()
    with pytest.raises(Interrupted):
        event_loop.run(story, stop)
    assert work == ["done"] and said == ["to the end"]
