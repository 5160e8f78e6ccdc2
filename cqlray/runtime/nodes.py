"""Ask every node of the cluster whether it sees a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cqlray.errors import ActorLost, Lost, UserError
from cqlray.runtime.cluster import TASK_RETRIES, value
from cqlray.runtime.event_loop import results

SECONDS_TO_ANSWER, TIMES = 60.0, 2


async def nodes_without(probe: Callable[[], bool], say: Callable[[str], None]) -> list[str]:
    """The nodes where `probe`, called on each, is not true: a phrase about each of them."""

    def there() -> bool:  # Ray takes no bound method
        return probe()

    task = ray.remote(num_cpus=0, max_retries=TASK_RETRIES)(there)
    names = _alive()
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in names]
    asked = [task.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    answers = (_against(*node, say) for node in zip(names.values(), asked, strict=True))
    found = dict(zip(names, await results(answers, at_once=len(asked)), strict=True))
    still_there = _alive() if any(found.values()) else {}
    return [phrase for node, phrase in found.items() if phrase and node in still_there]


def _alive() -> dict[str, str]:
    """The nodes' names by their ids."""
    return {n["NodeID"]: f"node {n['NodeManagerHostname']}" for n in ray.nodes() if n["Alive"]}


async def _against(node: str, reply: Any, say: Callable[[str], None]) -> str | None:
    """None if a node's reply is true, else a phrase about it. A slow node is waited for twice."""
    for _ in range(TIMES):
        try:
            async with asyncio.timeout(SECONDS_TO_ANSWER):
                return None if await value(reply) else node
        except TimeoutError:
            say(f"{node} has not yet answered whether it sees the run's files")
        except (RayError, Lost, ActorLost, UserError) as error:
            return f"{node} ({error})"
    return f"{node} (no answer in {TIMES * SECONDS_TO_ANSWER:.0f} s)"
