"""What the fuzzer damages: makers of sound folders, and how what is in them is read."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cqlray.api.datasets import load_dataset
from cqlray.config.load import dump_yaml, load_config
from cqlray.config.schema import EnvConfig, RunConfig, to_dict
from cqlray.data.card import card
from cqlray.data.checks.fixes import fix
from cqlray.data.checks.validation import validate
from cqlray.data.formats import ColumnNames, open_source
from cqlray.data.loading import load_columns
from cqlray.data.shards import from_parquet
from cqlray.data.source import Piece, Source
from cqlray.data.store import open_store, write_store
from cqlray.errors import UserError
from cqlray.results.policies import load_policy
from cqlray.results.record import events, fqe_returns, load_run
from cqlray.results.report.dataset_card import card_lines
from cqlray.results.report.html import write_report
from cqlray.results.report.table import results_table
from cqlray.results.statistics.summary import summarize
from cqlray.results.trackers.series import tracked_run
from cqlray.storage import checkpoint
from cqlray.storage.lease import Lease
from cqlray.storage.locations import Location
from cqlray.storage.locks import is_locked
from cqlray.storage.outbox import SharedDirectory
from cqlray.storage.outside import read_file
from cqlray.storage.row_index import RowIndex
from cqlray.storage.run_directory import EVALUATIONS, METRICS, RunDirectory
from tests.datasets import read_dataset
from tests.unit.data import sound_files
from tests.unit.results import run_directories

Make, Use = Callable[[Path], None], Callable[[Path], str]
BOUNDS = {"action_low": [-2, -2], "action_high": [2, 2]}
LOG = ColumnNames(("sensor_*",), ("torque_*",), "r", "trip", None, "stopped", "timeout")


# Datasets


def through(read: Callable[[Path], Source]) -> Use:
    """Read, validate, mend and read again, as the command line does."""

    def use(folder: Path) -> str:
        source = read(folder)
        report = validate(source, 8)
        report.lines()
        mended, _ = fix(source, report)
        for piece in mended.pieces():
            len(piece.shard.rewards)
        return "errors" if report.errors else "read"

    return use


def read_native(folder: Path) -> Source:
    """By the description; what is let through must be what was written."""
    description, shards = read_dataset(folder)
    sound = {shard.digest() for shard in sound_files.SHARDS}
    assert {shard.digest() for shard in shards} <= sound, "damaged content was let through"
    load_columns(folder)
    return Source(
        str(folder),
        "cqlray",
        description["environment"],
        lambda: (Piece(shard, "x") for shard in shards),
    )


def read_shards(folder: Path) -> Source:
    """Each file for itself, without the digests that the description has."""

    def pieces() -> Iterator[Piece]:
        for file in sorted(folder.glob("*.parquet")):
            if file.is_file() and not file.name.startswith(".") and file.stat().st_size < 2**30:
                yield Piece(from_parquet(file.read_bytes(), file.name), file.name)

    return Source(str(folder), "cqlray", {**BOUNDS}, pieces)


def opened(
    name: str, columns: ColumnNames | None = None, environment: dict[str, Any] | None = None
) -> Use:
    return through(lambda folder: open_source(str(folder / name), columns, environment))


def minari(data_format: str) -> Make:
    return lambda folder: sound_files.minari(folder, data_format)


def use_card(folder: Path) -> str:
    """As `cqlray dataset info` does."""
    dataset = load_dataset(str(folder), {}, EnvConfig())
    card_lines(card(dataset.description, dataset.shards), dataset.description)
    return "read"


def packed_log(folder: Path) -> None:
    with gzip.open(folder / "log.csv.gz", "wt") as file:
        sound_files.log_frame().to_csv(file, index=False)


def rllib(folder: Path) -> None:
    """One row for each episode, packed by msgpack."""
    import msgpack

    def array(values: np.ndarray) -> dict[bytes, Any]:
        return {
            b"nd": True,
            b"type": values.dtype.str,
            b"kind": b"",
            b"shape": values.shape,
            b"data": values.tobytes(),
        }

    items = []
    for episode in (episode for shard in sound_files.SHARDS for episode in shard.episodes()):
        names = ("observations", "actions", "rewards")
        state = {name: {"data": array(getattr(episode, name)), "lookback": 0} for name in names}
        state |= {"is_terminated": True, "is_truncated": False}
        items.append(msgpack.packb(state))
    pq.write_table(pa.table({"item": items}), folder / "run-000001.parquet")


def columns_file(folder: Path) -> None:
    """Transitions larger than memory in one file."""
    shards, moments = iter(sound_files.SHARDS), (np.zeros(3, np.float32), np.ones(3, np.float32))
    write_store(folder / "x.columns", shards, "x", lambda: moments, lambda actions: actions)
    (folder / ".x.columns.lock").unlink()


def use_columns_file(folder: Path) -> str:
    try:
        store = open_store(folder / "x.columns", "x")
    except OSError:  # as write_store does
        store = None
    if store is None:
        raise UserError("to be written again")
    store.gather(np.arange(3))
    store.close()
    return "read"


# Runs


def policy_arrays(members: int) -> dict[str, np.ndarray]:
    """Policies of 3 observations, 8 hidden units and 3 actions."""
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (3, 8), "0.bias": (1, 8), "1.weight": (8, 6), "1.bias": (1, 6)}
    arrays = {f"policy.{name}": rng.random((members, *shapes[name])) for name in shapes}
    arrays |= {"observation_mean": np.zeros(3), "observation_std": np.ones(3)}
    arrays["log_std_min"] = np.full(members, -5.0)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(folder: Path) -> None:
    """A run directory with everything that its report shows, and snapshots."""
    tests = [
        run_directories.student(member, updates, [-updates - member - 0.5, -updates + 3.0])
        for member in range(2)
        for updates in (100, 200)
    ]
    references = [run_directories.reference("teacher", [-1.0, -2.0])]
    environment = {"action_low": [-1.0] * 3, "action_high": [1.0] * 3}
    run_directories.make_run(
        folder / "run",
        evaluations=[*references, *tests],
        bootstrap_samples=100,
        plan={"populations": [[0, 1]]},
        environment={**environment, "action_dim": 3, "observation_dim": 3},
        id="x",
    )
    rows = [run_directories.estimate(m, u, -1.0 * m) for m in range(2) for u in (100, 200)]
    run_directories.write_lines(folder / "run" / "fqe.jsonl", rows)
    run_directories.write_lines(folder / "run" / "events.jsonl", run_directories.events())
    (folder / "run" / "snapshots" / "population-0").mkdir(parents=True)
    for updates in (100, 200):
        (folder / f"run/snapshots/population-0/{updates:09d}.safetensors").write_bytes(
            checkpoint.encode(policy_arrays(2), {"updates": updates, "metrics": {}})
        )


def use_record(folder: Path) -> str:
    """As `cqlray report RUN --json` and the trackers do."""
    record = load_run(folder / "run")
    fqe_returns(record)
    events(record)
    results_table(summarize(record, 100, 0), record)
    tracked_run(record)
    return "read"


def use_report(folder: Path) -> str:
    write_report(folder / "run")
    return "read"


def use_policy(folder: Path) -> str:
    """As a program that uses a run does."""
    policy = load_policy(folder / "run")
    assert policy(np.zeros((2, 3))).shape == (2, 3)
    return "read"


def use_run(folder: Path) -> str:
    """As a run that is resumed does, and a worker that looks whether it sees the directory."""
    directory = RunDirectory.open(folder / "run")
    load_config(folder / "run" / "config.yaml")
    for name in (METRICS, EVALUATIONS):
        RowIndex(directory).missing(name, [0, 1], [100, 200])
    directory.require_snapshots(1)
    checkpoint.read_metadata(directory.last_snapshot(0)[1])
    return "read" if SharedDirectory(folder / "run", "x").is_here() else "errors"


def config(folder: Path) -> None:
    (folder / "config.yaml").write_text(dump_yaml(RunConfig()))


def use_config(folder: Path) -> str:
    to_dict(load_config(folder / "config.yaml"))
    return "read"


def exported(folder: Path) -> None:
    """A policy as `cqlray export --format safetensors` writes it."""
    arrays = {
        name.removeprefix("policy."): array.reshape(array.shape[-2:])
        for name, array in policy_arrays(1).items()
        if name.startswith("policy.")
    }
    arrays |= {"action_low": np.full(3, -1.0, np.float32), "action_high": np.ones(3, np.float32)}
    (folder / "policy.safetensors").write_bytes(checkpoint.encode(arrays, {"format": 1}))


def use_exported(folder: Path) -> str:
    file = folder / "policy.safetensors"
    if not file.exists():
        raise UserError("there is none")
    checkpoint.read_metadata(file)
    arrays, _ = checkpoint.decode(read_file(file))
    return "read" if len(arrays) == 6 else "errors"


def lease(folder: Path) -> None:
    """Two leases, one of them of a process that is gone, and a lock."""
    for token in ("a", "b"):
        held = Lease(Location.parse(folder / "lease"))
        held.token = token
        held._write()
    (folder / ".lock").write_text("elsewhere")


def use_lease(folder: Path) -> str:
    lease = Lease(Location.parse(folder / "lease"))
    lease.is_held()
    is_locked(folder / ".lock")
    return "read"


READERS: dict[str, tuple[Make, Use]] = {
    "native": (sound_files.native, through(read_native)),
    "shards": (sound_files.native, through(read_shards)),
    "opened": (sound_files.native, opened("")),
    "card": (sound_files.native, use_card),
    "parquet": (sound_files.log_parquet, opened("", LOG, BOUNDS)),
    "csv": (sound_files.log_csv, opened("", LOG, BOUNDS)),
    "csv_gz": (packed_log, opened("", LOG, BOUNDS)),
    "rllib": (rllib, opened("", None, BOUNDS)),
    "arrow": (minari("arrow"), opened("")),
    "minari_parquet": (minari("parquet"), opened("")),
    "columns": (columns_file, use_columns_file),
    "record": (run, use_record),
    "policy": (run, use_policy),
    "run": (run, use_run),
    "config": (config, use_config),
    "exported": (exported, use_exported),
    "lease": (lease, use_lease),
    "d4rl": (sound_files.d4rl, opened("data.hdf5", None, BOUNDS)),
    "hdf5": (minari("hdf5"), opened("")),
    "report": (run, use_report),
}
# Reading HDF5 starts a process, and a report draws, so there are fewer of those.
SLOW = ("d4rl", "hdf5", "report")
TURNS = [*READERS, *[name for name in READERS if name not in SLOW] * 3]
