"""Find the data that learners train on, and choose how it reaches them."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cqlray.data import dataset as datasets
from cqlray.data.convert import conversion
from cqlray.data.loading import iterate_shards
from cqlray.data.memory import data_bytes, where_data_lives
from cqlray.envs.recorded import open_configured
from cqlray.errors import UserError
from cqlray.runtime.cluster import put
from cqlray.runtime.files import who_lacks
from cqlray.runtime.nodes import nodes_without
from cqlray.stages.run import Run
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.rows import ReferenceTest
from cqlray.storage.run_directory import DATASET, EVALUATIONS
from cqlray.storage.scratch import Scratch
from cqlray.workers.files import StoredData


async def adopt_dataset(run: Run) -> None:
    """Prepare the user's dataset: data in cqlray's format is used as is, other data becomes shards
    in the run directory.

    Raises:
        UserError: it has changed since the run began.
    """
    place = await native_dataset(run)
    description = datasets.read_description(place)
    before = run.directory.manifest().get("dataset_digest")
    if before not in (None, description["digest"]):
        raise UserError(
            f"dataset {run.config.dataset!r} has changed since the run began; make a new run"
        )
    if before is not None:
        return
    rows: list[ReferenceTest] = [
        {"policy": policy, "member": None, "updates": None, "returns": returns}
        for policy, returns in description.get("reference_returns", {}).items()
    ]
    run.journal.append(EVALUATIONS, rows)
    run.journal.write_json(f"{DATASET}/dataset.json", description)
    run.journal.note(dataset_digest=description["digest"])


async def native_dataset(run: Run) -> AnyPath:
    """The directory of the dataset's shards; data in another format is converted first, which a
    stop interrupts after the shard that it is at.
    """
    own = run.directory / DATASET
    if run.config.dataset is None:
        return own
    if datasets.is_native(run.config.dataset):
        return datasets.dataset_directory(any_path(run.config.dataset))
    if not run.directory.has(f"{DATASET}/{datasets.DESCRIPTION}"):
        for _ in conversion(open_configured(run.config), own, False, run.progress.say):
            await asyncio.sleep(0)
            run.stop.check()
    return own


async def provide_data(run: Run) -> None:
    """Make sure that `run.data` is the learners' data: either where to read it, or its shards in
    the object store.

    Raises:
        UserError: they must read it from disk, and do not see it.
    """
    async with run.providing:
        if not run.data:
            place = await native_dataset(run)
            run.data = await _provided(run, place, datasets.read_description(place))


async def _provided(run: Run, place: AnyPath, description: dict[str, Any]) -> list[Any]:
    on_disk, why = exceeds_memory(run, description)
    if on_disk:
        await _require_on_nodes(run, place, why)
        run.progress.say(f"data         {why}")
        return [StoredData(place.absolute(), _scratch(run))]
    if run.files.seen_by_learners(place):
        return [StoredData(place.absolute())]
    return [put(shard) for shard in iterate_shards(place, description)]


def _scratch(run: Run) -> Scratch:
    """The file that learners on one machine make of the data, where it exceeds memory."""
    home, chosen = run.directory.path.absolute(), run.config.resources.scratch
    name = hashlib.sha256(str(home).encode()).hexdigest()[:32]
    return Scratch(name, chosen, str(home) if isinstance(home, Path) else None)


async def give_back(run: Run) -> None:
    """Remove that file from all machines; a run that was asked to stop keeps it for `resume`."""
    stored = run.data[0] if run.data else None
    if run.stop.requested or not isinstance(stored, StoredData) or stored.scratch is None:
        return
    # Whatever went wrong is not to hide why the run ends; the next run there sweeps.
    with suppress(Exception):
        await nodes_without(stored.scratch.remove, lambda line: None)


async def require_disk(run: Run) -> None:
    """Raise UserError if learners must read the future dataset from disk and could not."""
    if run.config.dataset is None and run.config.resources.data == "disk":
        await _require_on_nodes(run, run.directory / DATASET, "resources.data disk")


async def _require_on_nodes(run: Run, place: AnyPath, why: str) -> None:
    """Raise UserError unless every node sees the directory that learners must read from."""
    if lacking := await who_lacks(run.files, place, run.progress.say):
        raise UserError(
            f"{place} is not on every node, and learners cannot have the data otherwise ({why};"
            f" missing on {lacking}): have it at s3:// or gs://, share the disk, or have data that"
            " fits into memory there (resources.data memory)"
        )


def exceeds_memory(run: Run, description: dict[str, Any]) -> tuple[bool, str]:
    """Whether learners read the data from disk, and why."""
    chosen = run.config.resources.data
    if chosen != "auto":
        return chosen == "disk", "read from a file on disk, as resources.data asks"
    environment = description["environment"]
    size = data_bytes(
        description["transitions"],
        description["episodes"],
        environment["observation_dim"],
        environment["action_dim"],
    )
    memory = int(min(run.plan.memory_per_learner, sys.maxsize))
    where, why = where_data_lives(size, None, memory)
    return where == "disk", why
