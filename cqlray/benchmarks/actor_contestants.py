"""The contestants of `cqlray benchmark actor`: the bare learner and players in plain processes, the
learner in its Ray actor with evaluators, and the data that they all use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from cqlray import seeding
from cqlray.benchmarks.contestants import Turn, timed
from cqlray.config.members import Member
from cqlray.config.schema import EnvConfig, RunConfig
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvSpec
from cqlray.envs.scaling import ActionScaling
from cqlray.runtime.event_loop import group
from cqlray.runtime.pool import Pool, Reply
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.learner import CHUNK, Advance, Learner, LearnerSpec
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask

if TYPE_CHECKING:
    from cqlray.runtime.cluster import Actor

ENV = EnvConfig("Pendulum-v1")
SHARDS, EPISODES_PER_SHARD = 10, 10  # of 200 steps
FOREVER = 10**9  # updates
CALLS = 100  # of each kind, one after another, to measure what they cost the driver


class BareLearner:
    """A learner in a plain process, which makes updates and nothing else."""

    def __init__(
        self, members: list[Member], scaling: ActionScaling, threads: int, *shards: Shard
    ) -> None:
        spec = LearnerSpec(members, 0, scaling, FOREVER, "cpu", threads, "float32")
        self.learner = Learner(spec, None, *shards)

    def turn(self, seconds: float) -> Turn:
        """Make updates for at least so many seconds."""

        def work() -> int:
            before, deadline = self.learner.updates(), time.perf_counter() + seconds
            while True:
                self.learner.population.advance(CHUNK, self.learner.gather)
                if time.perf_counter() >= deadline:
                    return self.learner.updates() - before

        return timed(work)


class BarePlayer:
    """An evaluator in a plain process."""

    def __init__(self, spec: EnvSpec) -> None:
        self.evaluator = Evaluator(ENV, spec)

    def play(self, snapshot: bytes, part: tuple[int, ...], seconds: float) -> None:
        """Test a snapshot again and again, for at least so many seconds."""
        deadline = time.perf_counter() + seconds
        while True:
            self.evaluator.evaluate(snapshot, part)
            if time.perf_counter() >= deadline:
                return


class DrivenLearner:
    """A learner actor, called as the driver calls it, and evaluators for its snapshots."""

    def __init__(self, learner: Actor, evaluators: Pool) -> None:
        from cqlray.stages import evaluate, train

        self.learner, self.evaluators = learner, evaluators
        self.seconds_per_advance = train.SECONDS_PER_ADVANCE
        episodes, size = RunConfig().evaluation.episodes, evaluate.EPISODES_PER_CALL
        seeds = seeding.integer_seeds(0, "benchmark", count=episodes)
        self.parts = [tuple(seeds[first : first + size]) for first in range(0, episodes, size)]
        self.updates = 0
        self.snapshot: bytes | None = None
        self.busy = False  # evaluators play on and on
        self.inside = 0.0  # seconds inside calls of `advance`
        self.tests = 0  # calls that the evaluators finished

    async def warm_up(self) -> None:
        """Go on until there is a snapshot that every evaluator has played."""
        while self.snapshot is None:
            await self.turn(0.0, "actor")
        await self.turn(0.0, "contended")

    async def turn(self, seconds: float, mode: str) -> Turn:
        """Call the learner for at least so many seconds."""
        before, cpu_before, ended = self.updates, await self._cpu_seconds(), 0.0
        self.inside, self.busy = 0.0, mode == "contended"
        started = time.perf_counter()
        async with group() as tasks:
            reply = self._advance()
            for _ in self.evaluators.actors if self.busy else []:
                tasks.create_task(self._test(self.parts[0]))
            while True:
                result: Advance = await reply
                ended = time.perf_counter() - started
                if ended < seconds:
                    reply = self._advance()
                self.updates, self.snapshot = result.updates, result.snapshot or self.snapshot
                self.inside += result.seconds
                if mode == "tested" and result.snapshot is not None:
                    for part in self.parts:
                        tasks.create_task(self._test(part))
                if ended >= seconds:
                    break
            self.busy = False
        return Turn(self.updates - before, ended, await self._cpu_seconds() - cpu_before)

    def _advance(self) -> Reply:
        return self.learner.ask("advance", self.seconds_per_advance, False)

    async def _test(self, part: tuple[int, ...]) -> None:
        """Test once, or again and again while the evaluators are to be busy."""
        while True:
            await self.evaluators.call("evaluate", self.snapshot, part)
            self.tests += 1
            if not self.busy:
                return

    async def driver_ms(self) -> dict[str, float]:
        """CPU time of this process for a call of the learner and for a test, made as in a run."""
        from cqlray.runtime.cluster import put

        snapshot, part = put(self.snapshot), self.parts[0][:1]

        async def step() -> None:
            await self.learner.ask("step", 0.0, False, returns=3)

        async def test() -> None:
            await self.evaluators.call("evaluate", snapshot, part)

        return {"learner": await self._ms_each(step), "evaluation": await self._ms_each(test)}

    async def _ms_each(self, call: Callable[[], Awaitable[None]]) -> float:
        before = time.process_time()
        for _ in range(CALLS):
            await call()
        return 1e3 * (time.process_time() - before) / CALLS

    async def _cpu_seconds(self) -> float:
        return float(await self.learner.ask("__ray_call__", _process_time))

    async def niceness(self) -> int:
        """The priority of the actor's process: 0 is usual, 19 the lowest."""
        return int(await self.learner.ask("__ray_call__", _niceness))


def _process_time(_: Any) -> float:
    return time.process_time()


def _niceness(_: Any) -> int:
    return os.nice(0)


def played_shards(spec: EnvSpec) -> list[Shard]:
    """A dataset of 20,000 steps with uniform actions."""
    worker = RolloutWorker(ENV, spec)
    seeds = seeding.integer_seeds(0, "benchmark-data", count=SHARDS * EPISODES_PER_SHARD)
    parts = [tuple(seeds[first::SHARDS]) for first in range(SHARDS)]
    return [
        worker.collect(ShardTask(index, "random", part), None) for index, part in enumerate(parts)
    ]
