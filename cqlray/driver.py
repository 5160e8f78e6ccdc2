"""The file to read first: a run, stage by stage, from top to bottom.

Each stage writes its result to the run directory before the next begins, and begins by looking for
what an earlier session wrote there. So a fresh run, a resumed run and a replaced actor use the same
code: read the directory and continue. Episodes pass from worker to learner through Ray's object
store, or through the run directory where every node sees it. The driver waits only at an `await`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import TypeVar

from cqlray.config.schema import RunConfig
from cqlray.envs.make import EnvSpec
from cqlray.errors import NotShared
from cqlray.runtime import event_loop
from cqlray.runtime.cluster import Cluster
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.files import choose_files
from cqlray.runtime.liveness import watching
from cqlray.runtime.placement import Plan
from cqlray.runtime.progress import ProgressDisplay
from cqlray.stages import evaluate
from cqlray.stages.collect import collect
from cqlray.stages.data import adopt_dataset, require_disk
from cqlray.stages.run import Run
from cqlray.stages.teach import teach
from cqlray.stages.train import Training
from cqlray.storage.rows import EvaluationRow
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.writer import Writer

T = TypeVar("T")


# -- what can be done with a run -----------------------------------------------------------------


async def whole_run(run: Run) -> None:
    """Run all stages, continuing from what the directory holds; their files make the report.

    Raises:
        StorageFailure: the run directory cannot be written. ActorLost: an actor keeps dying.
        EnvironmentFailure, UserError: raised in an actor.
    """
    await require_disk(run)
    if run.config.dataset is None:
        await dataset_alone(run)
    else:
        async with run.stage("dataset"):
            await adopt_dataset(run)
    async with run.stage("students"):
        await _shared_or_not(run, lambda: Training(run).train())


async def dataset_alone(run: Run) -> None:
    """Run the first two stages; this is `cqlray collect`."""
    async with run.stage("teacher"):
        await _shared_or_not(run, lambda: teach(run))
    async with run.stage("collection"):
        await _shared_or_not(run, lambda: collect(run))


async def fitted_q(run: Run) -> None:
    """Evaluate snapshots that lack it by fitted Q evaluation, in a separate session."""
    run.journal.event("session", what="resumed", host=socket.gethostname())
    async with run.stage("fitted Q"):
        await _shared_or_not(run, lambda: evaluate.fit_q(run))
    run.journal.event("session", what="finished")
    await run.journal.flush()


async def fresh_tests(run: Run, episodes: int) -> list[EvaluationRow]:
    """Test the last snapshots, the teacher and the random policy again; write nothing."""
    return await evaluate.evaluate_again(run, episodes)


# -- how it is done ------------------------------------------------------------------------------


async def _shared_or_not(run: Run, stage: Callable[[], Awaitable[None]]) -> None:
    """Run a stage; if a node lacks the run directory, rerun it with the driver sending files."""
    try:
        await stage()
    except NotShared as error:
        run.stop.check()
        await run.stop_sharing(error)
        await require_disk(run)
        await stage()


async def session(run: Run, work: Callable[[Run], Awaitable[None]], began: float) -> None:
    """Run a session and record it in the time line and manifest; it is timed from `began` on."""
    before = run.directory.manifest()
    host = socket.gethostname()
    what = "resumed" if "seconds" in before else "began"
    run.journal.event("session", what=what, host=host)
    try:
        await work(run)
        run.journal.event("session", what="finished")
        run.journal.note(finished=True)
    except asyncio.CancelledError:
        run.journal.event("session", what="stopped")
        raise
    finally:
        seconds = before.get("seconds", 0.0) + time.monotonic() - began
        run.journal.note(seconds=round(seconds, 2))
        await run.journal.flush()


def drive(
    config: RunConfig,
    directory: RunDirectory,
    plan: Plan,
    spec: EnvSpec,
    progress: ProgressDisplay,
    work: Callable[[Run], Awaitable[T]],
) -> T:
    """Open a run on the cluster that was joined, and run a coroutine on it to its end.

    Raises:
        Interrupted: asked to stop. ActorLost: the cluster is gone. Also whatever the coroutine
        raises.
    """
    stop, writer = Stop(progress.say), Writer()
    limit = config.resources.call_timeout
    with closing(Cluster(progress.say, stop.on_drain, limit)) as cluster, closing(writer):

        async def opened() -> T:
            """Run the coroutine; end at once if the run directory cannot be written."""
            files = await choose_files(directory, plan, writer, progress.say)
            run = Run(config, directory, plan, spec, progress, stop, cluster, writer, files)
            async with run.journal.watched():
                return await work(run)

        stop.handle_signals()
        with watching(stop):
            return event_loop.run(opened, stop)
