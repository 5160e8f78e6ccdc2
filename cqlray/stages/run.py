"""What the stages of a run share: its config, its directory, its actors, and who writes files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from cqlray.config.schema import RunConfig
from cqlray.data.dataset import ShardSummary
from cqlray.envs.make import EnvSpec
from cqlray.errors import ActorLost, Hung, Lost, NotShared
from cqlray.runtime.cluster import Actor, Cluster
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.files import Files, RelayedFiles
from cqlray.runtime.journal import Journal
from cqlray.runtime.metrics import RunMetrics
from cqlray.runtime.placement import Plan
from cqlray.runtime.pool import Pool
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.writer import Writer
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.files import StoredData
from cqlray.workers.rollout_worker import RolloutWorker

ROLES = {"rollout_worker": "rollout worker", "evaluator": "evaluator", "fitted_q": "fitted Q"}
SECONDS_BETWEEN_CHECKPOINTS = 60.0
SECONDS_BETWEEN_LAST_CHECKPOINTS = 5.0  # on a node that is being drained
DEATHS_IN_A_ROW = 3  # of one actor, without progress in between
STOPPING = "stopping after a last checkpoint (Ctrl-C again: without it)"


class Run:
    """An open run."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        plan: Plan,
        spec: EnvSpec,
        progress: ProgressDisplay,
        stop: Stop,
        cluster: Cluster,
        writer: Writer,
        files: Files,
    ) -> None:
        self.config, self.directory, self.plan, self.spec = config, directory, plan, spec
        self.progress, self.stop, self.cluster, self.writer = progress, stop, cluster, writer
        self.files = files
        self.journal = Journal(directory, writer, stop)
        self.metrics = RunMetrics(lambda: len(writer.waiting))
        self.pools: dict[str, Pool] = {}
        self.data: list[Any] = []  # for the learners: references to shards, or one StoredData
        self.providing = asyncio.Lock()  # held by whoever finds that data

    def stage(self, name: str) -> AbstractAsyncContextManager[None]:
        """Record a stage of the run in its time line and manifest."""
        return self.journal.stage(name, self._note_busy)

    # -- actors ------------------------------------------------------------------------------------

    def rollout_workers(self) -> Pool:
        """The actors that play episodes for the teacher and the dataset."""
        size = self.plan.rollout_workers
        return self.pool(RolloutWorker, "rollout_worker", size, self.config.env, self.spec)

    def evaluators(self) -> Pool:
        """The actors that test policies in the environment."""
        size = self.plan.evaluators
        return self.pool(Evaluator, "evaluator", size, self.config.env, self.spec)

    def pool(self, role: type[Any], name: str, size: int, *args: Any) -> Pool:
        """A role's actors, made with `args` and started when first needed."""
        if name not in self.pools:
            hire = partial(self._hire, role, name, args)
            watch = partial(self.metrics.pool, name)
            self.pools[name] = Pool(ROLES[name], size, hire, self.progress.say, watch)
        return self.pools[name]

    def _hire(self, role: type[Any], name: str, args: tuple[Any, ...], number: int) -> Actor:
        return self.cluster.start(
            role,
            *args,
            cpus=self.plan.cpus[name],
            retried=True,
            spread=True,
            name=f"{name} {number}",
        )

    def dismiss(self, *names: str) -> None:
        """End the actors of these roles, if there are any."""
        for name in names:
            if name in self.pools:
                self._note_busy(name)
                self.pools.pop(name).close()

    def _note_busy(self, *names: str) -> None:
        for name in names or list(self.pools):
            pool = self.pools[name]
            self.journal.busy(ROLES[name], len(pool.actors), pool.busy_seconds)
            pool.busy_seconds = 0.0

    async def play(self, method: str, *args: Any, returns: int) -> tuple[ShardSummary, list[Any]]:
        """Have a rollout worker make a shard; returns its summary, and references to the rest."""
        summary, *references = await self.rollout_workers().call(method, *args, returns=returns)
        self.metrics.shards.inc()
        self.metrics.played("rollout_worker", summary.transitions)
        return summary, references

    def is_checkpoint_due(self, actor: Actor, saved_at: float) -> bool:
        """Whether an actor's next checkpoint is due; sooner if its node is being drained."""
        seconds = time.monotonic() - saved_at
        if seconds > SECONDS_BETWEEN_CHECKPOINTS:
            return True
        return seconds > SECONDS_BETWEEN_LAST_CHECKPOINTS and self.cluster.is_leaving(actor)

    # -- snapshots ---

    def snapshots(self, population: int, done: int) -> dict[int, Location]:
        """A population's snapshots up to `done` updates."""
        found = self.directory.snapshots(population)
        return {updates: path for updates, path in found.items() if updates <= done}

    def lacking(self, file: str, population: int, updates: Iterable[int]) -> list[int]:
        """The update counts, ascending, at which a file lacks some member's row."""
        return self.journal.index.missing(file, self.plan.populations[population], updates)

    # -- what may go wrong -------------------------------------------------------------------------

    async def stop_sharing(self, error: NotShared) -> None:
        """Let only the driver write and read files from now on, since a new node lacks them."""
        self.progress.say(f"{error}; from now on all files go through the driver")
        self.journal.event("not shared", what=str(error))
        self.dismiss(*ROLES)
        self.cluster.kill_all()
        await self.journal.flush()
        self.stop.check()
        self.files, self.data = RelayedFiles(self.directory, self.writer), []

    async def restarting(
        self,
        who: str,
        role: str,
        reached: Callable[[], Any],
        work: Callable[[], Awaitable[None]],
        line: str,
    ) -> None:
        """Restart a coroutine from what it wrote to disk, when one of its actors dies.

        `reached` measures its progress: deaths are counted until it rises. `line` reports each one.

        Raises:
            ActorLost: actors keep dying without progress.
        """
        deaths, before = 0, reached()
        while True:
            try:
                return await work()
            except Lost as error:
                self.stop.check()
                self.journal.died(role, error)
                await self.journal.flush()
                self.stop.check()
                deaths = deaths + 1 if (now := reached()) == before else 1
                before = now
                if deaths > DEATHS_IN_A_ROW:
                    raise died(who, error) from None
                self.progress.say(f"{line}: {error}")
                self.forget_lost_data()

    def forget_lost_data(self) -> None:
        """Drop references into a lost node's object store; what is on disk remains."""
        if self.data and not isinstance(self.data[0], StoredData):
            self.data = []


def died(who: str, error: Lost) -> ActorLost:
    """The error to raise for an actor that keeps dying."""
    times = DEATHS_IN_A_ROW + 1
    logs = "(Ray's logs: /tmp/ray/session_latest/logs)"
    what = "hung" if isinstance(error, Hung) else "died"
    return ActorLost(f"{who} {what} {times} times in a row: {error} {logs}")
