"""Damaged files: each is refused in one line or read; no traceback, no hang, no crash, no changed
file, and no memory beyond ten times the file. Here a hundred; nightly/test_fuzz.py has ten
thousand.

The files are read in other processes with a watchdog, because what parses them is C and C++: a
crash there is a failure with the seed of the file, and `python -m tests.unit.data.test_fuzz SEED`
reads that one file in this process.
"""

from __future__ import annotations

import dataclasses
import gc
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray.data.formats import hdf5
from cqlray.errors import UserError
from cqlray.storage import outside
from tests.unit.data import damage, hostile

FILES = 100
PROCESSES = 2
SECONDS_PER_FILE = 20.0
ADDRESS_SPACE = 6 * 2**30  # a damaged length must not take the machine's memory
FREE_MEMORY = 64 * 2**20  # what a reader finds free: what takes more is to be refused
# A reader may grow by this, for what libraries keep, or by ten times the file where that is more.
GROWTH, GROWTH_PER_BYTE = 160 * 2**20, 10
GROWTH_OF_CSV = 384 * 2**20  # Arrow reads many blocks of 8 MiB ahead
SECONDS_TO_WALK = 4.0


# One damaged file


def digests(folder: Path) -> dict[str, str]:
    """Of each file what it is, and of small ones the content."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        is_whole = file.is_file() and not file.is_symlink() and file.stat().st_size < 2**30
        content = hashlib.sha256(file.read_bytes()).hexdigest() if is_whole else ""
        found[str(file.relative_to(folder))] = f"{file.lstat().st_mode} {content}"
    return found


def read_damaged(sound: Path, scratch: Path, seed: int) -> str:
    """Damage a copy of a sound folder, read it, and say what came of it: refused, errors or
    read.
    """
    from tests.unit.data.fuzz_readers import READERS, TURNS

    rng = np.random.default_rng(seed)
    name = TURNS[seed % len(TURNS)]
    folder = scratch / f"{seed}"
    shutil.copytree(sound / name, folder)
    try:
        (damage.damage if rng.random() < 0.4 else hostile.harm)(folder, rng)
        before, size = (
            digests(folder),
            sum(512 * path.lstat().st_blocks for path in folder.rglob("*")),
        )
        peak_before = reset_peak()
        outcome = refused_or(READERS[name][1], folder)
        growth = peak() - peak_before
        kept = GROWTH_OF_CSV if name in ("csv", "csv_gz") else GROWTH
        most = max(kept, GROWTH_PER_BYTE * size)
        assert growth < most, f"grew by {growth:,} bytes over files of {size:,}"
        if name != "report":
            assert digests(folder) == before, "reading changed a file"
    finally:
        shutil.rmtree(folder)
    return f"{name} {outcome}"


def refused_or(use: Callable[[Path], str], folder: Path) -> str:
    """What came of using the folder; a refusal is one line."""
    try:
        return use(folder)
    except UserError as error:
        lines = str(error).strip().splitlines()
        assert lines, "an empty message"
        # Of a config each mistake has its line.
        assert len(lines) == 1 or all("config.yaml: " in line for line in lines), "several lines"
        assert max(map(len, lines)) < 2000, "a long line"
        return "refused"


def peak() -> int:
    """The most memory that was resident, in bytes, since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def reset_peak() -> int:
    """Forget the peak so far; what is resident now, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def work(sound: Path, scratch: Path, seeds: list[int], current: Any, log: Path) -> None:
    """Read the files of the seeds; one line of JSON for each in `log`."""
    from tests.unit.data.fuzz_readers import READERS

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    hdf5.SECONDS_TO_WALK = SECONDS_TO_WALK  # within the watchdog's patience
    outside.free_memory = lambda: FREE_MEMORY
    for name in ("report", "policy"):  # what is imported or made at first use does not count
        READERS[name][1](sound / name)
    gc.collect()
    gc.freeze()  # so that the collections before each file are quick
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
    from tests.unit.data.fuzz_readers import READERS

    for name, (make, _) in READERS.items():
        (folder / name).mkdir()
        make(folder / name)


def test_sound_files_are_read(sound: Path) -> None:
    from tests.unit.data.fuzz_readers import READERS

    for name, (_, use) in READERS.items():
        assert use(sound / name) == "read", name


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
