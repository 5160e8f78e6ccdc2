"""A pool of actors that are no processes: every order of arrival, slow calls, deaths, callers that
go away.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from cqlray.errors import ActorLost, Hung, Lost, UserError
from cqlray.runtime import pool as pools
from cqlray.runtime.event_loop import results
from cqlray.runtime.pool import Pool


class Answer:
    """What a coroutine says, as Ray's references do: again and again."""

    def __init__(self, work: Any, returns: int) -> None:
        self.future = asyncio.ensure_future(work)
        self.references = [self.future, *[object()] * (returns - 1)]

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self.future).__await__()


class Fake:
    """An actor; what it does with a call is its pool's business."""

    def __init__(self, number: int, work: Callable[[int, Any], Any]) -> None:
        self.number, self.work, self.killed, self.asked = number, work, False, 0

    def ask(self, method: str, *args: Any, returns: int = 1) -> Answer:
        assert method == "work" and not self.killed
        self.asked += 1
        return Answer(self.work(self.number, *args), returns)

    def kill(self) -> None:
        self.killed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    monkeypatch.setattr(pools, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(pools, "SECONDS_BETWEEN_LOOKS", 0.005)


@pytest.mark.parametrize("seed", range(20))
def test_results_are_in_the_calls_order_whatever_the_order_of_arrival(seed: int) -> None:
    """Also where processes die now and then, in which case a call is lost and made again by whoever
    asked.
    """
    rng = random.Random(seed)
    hired: list[Fake] = []

    async def work(number: int, task: int) -> int:
        await asyncio.sleep(rng.random() * 0.01)
        if rng.random() < 0.2:
            raise Lost("died", for_good=rng.random() < 0.5)
        return task * task

    def hire(number: int) -> Fake:
        hired.append(Fake(number, work))
        return hired[-1]

    async def made(pool: Pool, task: int) -> int:
        while True:
            try:
                return int(await pool.call("work", task))
            except Lost:
                continue

    async def story() -> list[int]:
        pool = Pool("workers", 3, hire)
        found = await results((made(pool, task) for task in range(40)), at_once=rng.randint(1, 10))
        assert pool.idle.qsize() == 3 and not pool.attempts and pool.waiting == 0
        pool.close()
        return found

    assert asyncio.run(story()) == [task * task for task in range(40)]
    assert len(hired) >= 3, "who died for good is replaced"


def test_who_was_given_what_is_lost_for_good_is_not_replaced_itself() -> None:
    hired: list[int] = []

    async def work(number: int, task: int) -> None:
        raise Lost("the learner that made the snapshot died", of_argument=True, for_good=True)

    def hire(number: int) -> Fake:
        hired.append(number)
        return Fake(number, work)

    async def story() -> None:
        pool = Pool("workers", 1, hire)
        with pytest.raises(Lost):
            await pool.call("work", 0)
        assert hired == [0] and pool.idle.qsize() == 1
        pool.close()

    asyncio.run(story())


def test_a_slow_call_is_made_by_an_idle_actor_as_well() -> None:
    async def work(number: int, task: int) -> tuple[int, int]:
        await asyncio.sleep(60 if number == 0 and task == 3 else 0.002)
        return number, task

    actors: dict[int, Fake] = {}

    async def story() -> None:
        pool = Pool("workers", 2, lambda number: actors.setdefault(number, Fake(number, work)))
        began = time.monotonic()
        found = await results((pool.call("work", task) for task in range(12)), at_once=4)
        assert time.monotonic() - began < 5
        assert [task for _, task in found] == list(range(12))
        assert len(pool.attempts) <= 1, "the slow one is still at it"
        assert pool.idle.qsize() + len(pool.attempts) == 2, "and is not asked before it is free"
        pool.close()

    asyncio.run(story())


def test_a_call_that_kills_who_makes_it_is_relieved_once() -> None:
    made: list[int] = []

    async def work(number: int, task: str) -> str:
        made.append(number)
        if task == "deadly":
            await asyncio.sleep(0.1 if len(made) < 9 else 0.01)
            raise Lost("died of it")
        return task

    async def story() -> None:
        pool = Pool("workers", 4, lambda number: Fake(number, work))
        for _ in range(7):
            await pool.call("work", "quick")
        with pytest.raises(Lost, match="died of it"):
            await pool.call("work", "deadly")
        assert len(made) == 9
        assert await pool.call("work", "quick") == "quick"
        pool.close()

    asyncio.run(story())


def test_what_a_method_raises_goes_to_who_called() -> None:
    async def work(number: int, task: str) -> str:
        if task == "wrong":
            raise UserError("wrong")
        return task

    async def story() -> None:
        pool = Pool("workers", 1, lambda number: Fake(number, work))
        with pytest.raises(UserError, match="wrong"):
            await pool.call("work", "wrong")
        assert await pool.call("work", "right") == "right"
        value, reference = await pool.call("work", "right", returns=2)
        assert value == "right" and reference is not None
        pool.close()

    asyncio.run(story())


def test_an_actor_is_free_when_its_attempt_has_ended_whoever_still_waits() -> None:
    async def work(number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return number

    async def story() -> None:
        pool = Pool("workers", 1, lambda number: Fake(number, work))
        caller = asyncio.create_task(pool.call("work", 0.1))
        waiting = asyncio.create_task(pool.call("work", 0.0))
        await asyncio.sleep(0.01)
        caller.cancel()
        waiting.cancel()
        await asyncio.wait([caller, waiting])
        assert pool.idle.empty() and pool.waiting == 0 and pool.actors[0].asked == 1  # type: ignore[attr-defined]
        assert await pool.call("work", 0.0) == 0
        pool.close()

    asyncio.run(story())


def test_a_closed_pool_replaces_nobody() -> None:
    hired: list[Fake] = []

    async def work(number: int) -> None:
        while not hired[0].killed:
            await asyncio.sleep(0.001)
        raise Lost("killed", for_good=True)

    def hire(number: int) -> Fake:
        hired.append(Fake(number, work))
        return hired[-1]

    async def story() -> None:
        pool = Pool("workers", 1, hire)
        callers = [asyncio.create_task(pool.call("work")) for _ in range(3)]  # two wait
        await asyncio.sleep(0.01)
        pool.close()
        await asyncio.wait(callers, timeout=10)
        await asyncio.sleep(0.01)
        assert all(caller.cancelled() for caller in callers)
        assert len(hired) == 1 and not pool.attempts

    asyncio.run(story())


def hanging_pool(hangs: int, said: list[str], hired: list[int]) -> Pool:
    """A pool of one actor, of which the first `hangs` hang."""

    async def work(number: int) -> str:
        if len(hired) <= hangs:
            raise Hung(f"evaluator {number} on node a did not answer work within 1 s")
        return "done"

    def hire(number: int) -> Fake:
        hired.append(number)
        return Fake(number, work)

    return Pool("evaluator", 1, hire, said.append)


@pytest.mark.parametrize("hangs", [1, 2])
def test_a_call_that_hangs_is_made_again_by_a_new_actor(hangs: int) -> None:
    said: list[str] = []
    hired: list[int] = []

    async def work() -> Any:
        return await hanging_pool(hangs, said, hired).call("work")

    assert asyncio.run(work()) == "done"
    line = "evaluator 0 on node a did not answer work within 1 s; it is replaced, and the call"
    assert said == [f"{line} made again"] * hangs and hired == [0] * (hangs + 1)


def test_a_call_that_hangs_every_time_ends_in_a_line_that_says_what_and_where() -> None:
    said: list[str] = []

    async def work() -> None:
        await hanging_pool(9, said, []).call("work")

    line = "^evaluator 0 on node a did not answer work within 1 s, 3 times in a row$"
    with pytest.raises(ActorLost, match=line):
        asyncio.run(work())
    assert len(said) == 2


def test_what_a_pool_tells_of_itself() -> None:
    told: list[tuple[int, int, int]] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.01)

    async def story() -> None:
        pool = Pool(
            "workers",
            2,
            lambda number: Fake(number, work),
            watch=lambda *numbers: told.append(numbers),
        )
        await results((pool.call("work") for _ in range(6)), at_once=6)
        assert 0.06 <= pool.busy_seconds < 1
        pool.close()

    asyncio.run(story())
    assert (
        max(waiting for waiting, _, _ in told) == 4 and max(at_work for _, at_work, _ in told) == 2
    )
    assert told[-1] == (0, 0, 2) and all(size == 2 for _, _, size in told)
