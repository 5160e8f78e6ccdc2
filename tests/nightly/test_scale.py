"""A run of a thousand members, 500 snapshots of each, 20 episodes in each test.

Seconds are the processor's, of one process that has one thread at work: on a quiet machine the same
as the clock's.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqlray.storage.row_index import RowIndex
from cqlray.storage.run_directory import EVALUATIONS, METRICS, RunDirectory, snapshot_name
from tests.unit.results.run_directories import large_run

MEMBERS, SNAPSHOTS, EPISODES, INTERVAL = 1_000, 500, 20, 100
SETTINGS = [{"conservative_weight": weight} for weight in (0.0, 1.0, 5.0, 10.0)]
POPULATIONS = [range(first, first + 8) for first in range(0, MEMBERS, 8)]
MOST_SECONDS, MOST_MEMORY = 60.0, 2 * 2**30

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("scale") / "run"
    yield large_run(directory, MEMBERS, SNAPSHOTS, EPISODES, SETTINGS)
    shutil.rmtree(directory)  # a gigabyte


def test_the_report(run: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "cqlray", "report", str(run)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_SECONDS
    assert after.ru_maxrss * 1024 < MOST_MEMORY
    assert (run / "report.html").stat().st_size < 5e6  # it can be mailed, and opens at once


def test_a_resumed_run_finds_what_is_missing(run: Path) -> None:
    for population in range(len(POPULATIONS)):
        for count in range(1, SNAPSHOTS + 1):
            file = run / snapshot_name(population, count * INTERVAL)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (run / snapshot_name(3, (SNAPSHOTS + 1) * INTERVAL)).touch()  # nobody got to it
    began = time.process_time()
    directory = RunDirectory.open(run)
    index = RowIndex(directory)
    missing = {
        (file, population): index.missing(file, members, directory.snapshots(population))
        for file in (METRICS, EVALUATIONS)
        for population, members in enumerate(POPULATIONS)
    }
    assert time.process_time() - began < MOST_SECONDS
    assert {key: found for key, found in missing.items() if found} == {
        (METRICS, 3): [(SNAPSHOTS + 1) * INTERVAL],
        (EVALUATIONS, 3): [(SNAPSHOTS + 1) * INTERVAL],
    }
