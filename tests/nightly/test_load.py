"""A run of 64 populations, 1,024 members and 10,048 snapshots on this machine, by learners and
evaluators that return at once: what the driver takes, and how soon it answers a Ctrl-C.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cqlray.config.load import dump_yaml
from cqlray.config.schema import EnvConfig, EvaluationConfig, ResourcesConfig
from cqlray.storage.run_directory import EVALUATIONS, METRICS, RunDirectory
from tests.conftest import small_config
from tests.nightly.distributed.nodes import ROOT
from tests.processes import descendants, kill

POPULATIONS, MEMBERS, SNAPSHOTS, EPISODES = 64, 16, 157, 4
TOTAL = POPULATIONS * MEMBERS
STOPS, SECONDS, MOST_MEMORY = 6, 5.0, 1.5e9
STAND_INS = """
import sys
from cqlray.cli.main import main
from cqlray.stages import run, train
from tests.nightly import stand_ins
train.Learner, run.Evaluator = stand_ins.Learner, stand_ins.Evaluator
sys.exit(main())
"""

pytestmark = pytest.mark.timeout(3600)


class Driver:
    """A run that goes on in a process; its memory is looked at until it ends."""

    def __init__(self, words: list[str], said: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.memory, self.file = 0, said
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", STAND_INS, *words],
                cwd=ROOT,
                env={**kept, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def watch(self, seconds: float = 1e9) -> int | None:
        """For so long, or to its end; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
                line = next(line for line in lines if line.startswith("VmHWM"))
                self.memory = int(line.split()[1]) * 1024
            time.sleep(0.02)
        return self.process.poll()

    def kill(self) -> None:
        for process in [self.process.pid, *descendants(self.process.pid)]:
            kill(process)
        self.process.wait()


@pytest.fixture
def large_run(tmp_path: Path) -> Path:
    """A run whose dataset is there, and whose students have not begun."""
    out = tmp_path / "run"
    config = small_config(out, env=EnvConfig("Pendulum-v1"))
    config = replace(config, teacher=replace(config.teacher, rounds=2, episodes_per_round=1))
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    subprocess.run([sys.executable, "-m", "cqlray", "collect", "--config", str(file)], check=True)
    config = replace(
        config,
        num_seeds=POPULATIONS * MEMBERS,
        cql=replace(config.cql, num_updates=SNAPSHOTS),
        evaluation=EvaluationConfig(interval=1, episodes=EPISODES),
        resources=ResourcesConfig(rollout_workers=1, evaluators=1, learners=1),
    )
    (out / "config.yaml").write_text(dump_yaml(config))
    manifest = json.loads((out / "manifest.json").read_text())
    populations = [list(range(first, first + MEMBERS)) for first in range(0, TOTAL, MEMBERS)]
    manifest["plan"]["populations"] = populations
    manifest |= {"dataset_only": False, "finished": False}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_a_large_run_stays_small_and_stops_soon(large_run: Path, tmp_path: Path) -> None:
    rng, memory = random.Random(int(os.environ.get("CQLRAY_SEED", "0"))), []
    for stop in range(STOPS + 1):
        driver = Driver(["resume", str(large_run), "--quiet"], tmp_path / "said")
        try:
            status = driver.watch(rng.uniform(8.0, 60.0) if stop < STOPS else 3000.0)
            if status is None:
                began = time.monotonic()
                driver.process.send_signal(signal.SIGINT)
                status = driver.watch(60.0)
                seconds = time.monotonic() - began
                print(f"stop {stop}: {seconds:.2f} s, {driver.memory / 1e6:.0f} MB")
                assert status == 130 and seconds < SECONDS, driver.file.read_text()
        finally:
            driver.kill()
        memory.append(driver.memory)
        if status == 0:
            break
    print(f"most memory: {max(memory) / 1e6:.0f} MB")
    assert status == 0, driver.file.read_text()
    assert max(memory) < MOST_MEMORY
    directory = RunDirectory(large_run)
    for file in (METRICS, EVALUATIONS):
        rows = ((r.get("member"), r.get("updates")) for r in directory.each_row(file))
        assert len({row for row in rows if row[0] is not None}) == TOTAL * SNAPSHOTS
