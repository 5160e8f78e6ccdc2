"""Damaged files: each is refused in one line or read; no traceback, no hang, no crash, no changed
file. Here a hundred; nightly/test_fuzz.py has two thousand.

The files are read in other processes with a watchdog, because what parses them is C and C++: a
crash there is a failure with the seed of the file, and `python -m tests.unit.data.test_fuzz SEED`
reads that one file in this process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray.data.checks.fixes import fix
from cqlray.data.checks.validation import validate
from cqlray.data.formats import ColumnNames, hdf5, open_source
from cqlray.data.shards import from_parquet
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError
from tests.datasets import read_dataset
from tests.unit.data import damage, sound_files

FILES = 100
PROCESSES = 2
SECONDS_PER_FILE = 10.0
ADDRESS_SPACE = 6 * 2**30  # a damaged length must not take the machine's memory


# What is damaged: makers of sound folders, and their readers


def read_native(folder: Path) -> Source:
    """By the description; what is let through must be what was written."""
    description, shards = read_dataset(folder)
    sound = {shard.digest() for shard in sound_files.SHARDS}
    assert {shard.digest() for shard in shards} <= sound, "damaged content was let through"
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
            yield Piece(from_parquet(file.read_bytes(), file.name), file.name)

    return Source(str(folder), "cqlray", {"action_low": [-2, -2], "action_high": [2, 2]}, pieces)


def minari(data_format: str) -> Callable[[Path], None]:
    return lambda folder: sound_files.minari(folder, data_format)


def opened(
    name: str, columns: ColumnNames | None = None, environment: dict[str, Any] | None = None
) -> Any:
    return lambda folder: open_source(str(folder / name), columns, environment)


BOUNDS = {"action_low": [-2, -2], "action_high": [2, 2]}
LOG = ColumnNames(("sensor_*",), ("torque_*",), "r", "trip", None, "stopped", "timeout")
FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Source]]] = {
    "native": (sound_files.native, read_native),
    "shards": (sound_files.native, read_shards),
    "opened": (sound_files.native, opened("")),
    "parquet": (sound_files.log_parquet, opened("", LOG, BOUNDS)),
    "csv": (sound_files.log_csv, opened("", LOG, BOUNDS)),
    "arrow": (minari("arrow"), opened("")),
    "minari_parquet": (minari("parquet"), opened("")),
    "d4rl": (sound_files.d4rl, opened("data.hdf5", None, BOUNDS)),
    "hdf5": (minari("hdf5"), opened("")),
}
# Reading HDF5 starts a process, so there are fewer of those.
TURNS = [*FORMATS, *[name for name in FORMATS if name not in ("d4rl", "hdf5")] * 2]
SECONDS_TO_WALK = 4.0


# One damaged file


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def read_damaged(sound: Path, scratch: Path, seed: int) -> str:
    """Damage a copy of a sound folder, read it, and say what came of it: refused, errors or
    read.
    """
    rng = np.random.default_rng(seed)
    name = TURNS[seed % len(TURNS)]
    folder = scratch / f"{seed}"
    shutil.copytree(sound / name, folder)
    try:
        damage.damage(folder, rng)
        before = digests(folder)
        outcome = use(FORMATS[name][1], folder)
        assert digests(folder) == before, "reading changed a file"
    finally:
        shutil.rmtree(folder)
    return f"{name} {outcome}"


def use(read: Callable[[Path], Source], folder: Path) -> str:
    """Read, validate, mend and read again, as the command line does."""
    try:
        source = read(folder)
        report = validate(source, 8)
        report.lines()
        mended, _ = fix(source, report)
        for piece in mended.pieces():
            len(piece.shard.rewards)
    except UserError as error:
        assert str(error).strip(), "an empty message"
        assert "\n" not in str(error).strip(), "more than one line"
        return "refused"
    return "errors" if report.errors else "read"


def work(sound: Path, scratch: Path, seeds: list[int], current: Any, log: Path) -> None:
    """Read the files of the seeds; one line of JSON for each in `log`."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    hdf5.SECONDS_TO_WALK = SECONDS_TO_WALK  # within the watchdog's patience
    with log.open("a", buffering=1) as lines:
        for seed in seeds:
            current.value = seed
            try:
                outcome, trace = read_damaged(sound, scratch, seed), ""
            except Exception:
                outcome, trace = "FAILED", traceback.format_exc()
            lines.write(json.dumps([seed, outcome, trace]) + "\n")


# All of them, watched


@dataclasses.dataclass
class Watched:
    """A process that reads files, restarted behind the file that crashed it or kept it too long."""

    sound: Path
    scratch: Path
    seeds: list[int]
    log: Path
    target: Callable[..., None] = work
    patience: float = SECONDS_PER_FILE

    def __post_init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.faults: list[tuple[int, str]] = []
        self.start()

    def start(self) -> None:
        self.current = self.context.Value("q", -1)
        self.seen, self.since = -2, time.monotonic()
        arguments = (self.sound, self.scratch, self.seeds, self.current, self.log)
        self.process = self.context.Process(target=self.target, args=arguments, daemon=True)
        self.process.start()

    def done(self) -> bool:
        """Look after the process; True when all files are read."""
        seed, now = self.current.value, time.monotonic()
        if seed != self.seen:
            self.seen, self.since = seed, now
        fault = ""
        if not self.process.is_alive():
            if self.process.exitcode == 0:
                return True
            fault = f"the process ended with {self.process.exitcode}"
        elif now - self.since > (60 if seed < 0 else self.patience):
            # the first file waits for imports
            self.process.kill()
            fault = f"no answer in {self.patience:g} s"
        if fault:
            self.process.join()
            self.faults.append((seed, fault))
            self.seeds = self.seeds[self.seeds.index(seed) + 1 :] if seed in self.seeds else []
            if not self.seeds:
                return True
            self.start()
        return False


def crash_and_hang(sound: Path, scratch: Path, seeds: list[int], current: Any, log: Path) -> None:
    """In place of `work`: seed 1 crashes and seed 2 hangs."""
    for seed in seeds:
        current.value = seed
        if seed == 1:
            os.abort()
        time.sleep(30 if seed == 2 else 0)
        with log.open("a") as lines:
            lines.write(f"{seed}\n")


def test_the_watchdog_sees_crashes_and_hangs(tmp_path: Path) -> None:
    watched = Watched(
        tmp_path, tmp_path, [0, 1, 2, 3], tmp_path / "log", crash_and_hang, patience=2.0
    )
    while not watched.done():
        time.sleep(0.02)
    assert watched.faults == [(1, "the process ended with -6"), (2, "no answer in 2 s")]
    assert (tmp_path / "log").read_text().split() == ["0", "3"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_sound(folder)
    return folder


def make_sound(folder: Path) -> None:
    for name, (make, _) in FORMATS.items():
        (folder / name).mkdir()
        make(folder / name)


def test_sound_files_are_read(sound: Path) -> None:
    for name, (_, read) in FORMATS.items():
        assert validate(read(sound / name), 8).errors == [], name


def test_damaged_files_are_refused_or_read(sound: Path, tmp_path: Path) -> None:
    assert_refused_or_read(sound, tmp_path, FILES)


def assert_refused_or_read(sound: Path, tmp_path: Path, count: int) -> Counter[str]:
    """So many damaged files, of the seeds from 0; how many of each format were refused, …"""
    before = digests(sound)
    groups = [
        list(range(part * count // PROCESSES, (part + 1) * count // PROCESSES))
        for part in range(PROCESSES)
    ]
    watched = [
        Watched(sound, tmp_path, seeds, tmp_path / f"log-{part}")
        for part, seeds in enumerate(groups)
    ]
    while [process for process in watched if not process.done()]:
        time.sleep(0.05)
    rows = [
        json.loads(line) for process in watched for line in process.log.read_text().splitlines()
    ]
    failures = [(seed, trace) for seed, _, trace in rows if trace]
    failures += [fault for process in watched for fault in process.faults]
    # one of each
    kinds = {text.splitlines()[-1]: f"seed {seed}: {text}" for seed, text in failures}
    assert not failures, f"{len(failures)} of {count}:\n" + "\n".join(kinds.values())
    assert len(rows) == count
    assert digests(sound) == before
    return Counter(outcome for _, outcome, _ in rows)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        (sound_folder := Path(place) / "sound").mkdir()
        make_sound(sound_folder)
        for argument in sys.argv[1:]:
            print(argument, read_damaged(sound_folder, Path(place), int(argument)))
