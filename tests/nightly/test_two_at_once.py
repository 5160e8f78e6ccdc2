"""Two commands that write to one place at once: one does its work, the other says who is there."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cqlray import load_dataset
from cqlray.config.load import dump_yaml
from tests.conftest import small_config
from tests.integration.test_driver import ROOT
from tests.object_store import s3_bucket
from tests.unit.api.test_datasets import BOUNDS, FLAGS, frame

pytestmark = pytest.mark.ray
REFUSED = r"in use by another cqlray process \(process (\d+) on .*, since .*\); wait for it or stop"


def at_once(*commands: list[str], seed: int, **environment: str) -> list[tuple[int, int, str]]:
    """Run commands that begin within a moment of each other; their pid, status and stderr."""
    draw, began = random.Random(seed), []
    for words in commands:
        command = [sys.executable, "-m", "cqlray", *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        surroundings = {**os.environ, **environment}
        began.append(subprocess.Popen(command, cwd=ROOT, env=surroundings, text=True, **pipes))  # type: ignore[call-overload]
        time.sleep(draw.uniform(0.0, 0.1))
    return [(process.pid, process.wait(), process.communicate()[1]) for process in began]


def assert_one_won(ended: list[tuple[int, int, str]]) -> int:
    """One command ended well; whoever was refused names it, unless it had ended. Returns how many
    were refused by its lock.
    """
    (winner,) = (pid for pid, status, _ in ended if status == 0)
    named = 0
    for _, status, line in ended:
        if status != 0:
            assert status == 2, line
            found = re.search(REFUSED, line)
            assert found or "already" in line, line
            assert found is None or int(found[1]) == winner
            named += found is not None
    return named


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_runs_into_one_directory(
    where: str, ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    tries, named = (8, 0) if where == "disk" else (1, 0)
    # The tests' cluster was started without the bucket's keys, so there each command starts one.
    joined = {"RAY_ADDRESS": ray_cluster} if where == "disk" else {}
    with s3_bucket(monkeypatch, "runs") as bucket:
        for seed in range(tries):
            out = str(tmp_path / f"run-{seed}" if where == "disk" else bucket / f"run-{seed}")
            config.write_text(dump_yaml(small_config(Path("unused"))))
            command = ["collect", "--config", str(config), "--out", out, "--quiet"]
            ended = at_once(command, command, seed=seed, **joined)
            named += assert_one_won(ended)
            report = load_dataset(out).validate()
            assert not report.errors and report.episodes == 40
    # In a bucket the second waits to see whether the first still runs; here that has ended by then.
    assert named > 0 or where == "bucket"


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_conversions_into_one_dataset(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each episode is there once for each command that ended well."""
    logs = [tmp_path / f"log-{number}.parquet" for number in range(3)]
    for number, log in enumerate(logs):
        frame(seed=number, episodes=2000).to_parquet(log)
    refused, tries = 0, 10 if where == "disk" else 3
    with s3_bucket(monkeypatch, "data") as bucket:
        for seed in range(tries):
            out = str(tmp_path / f"data-{seed}" if where == "disk" else bucket / f"data-{seed}")
            ended = at_once(
                *(
                    ["dataset", "convert", str(log), "--out", out, "--append", *FLAGS, *BOUNDS]
                    for log in logs
                ),
                seed=seed,
            )
            assert all(status in (0, 2) for _, status, _ in ended), ended
            lines = [line for _, status, line in ended if status == 2]
            assert all(re.search(REFUSED, line) for line in lines), lines
            refused += len(lines)
            report = load_dataset(out).validate()
            assert report.episodes == 2000 * (3 - len(lines)), (ended, report.lines())
            assert not report.errors
    assert refused > 0 or where == "bucket"
