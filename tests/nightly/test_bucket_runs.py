"""Whole runs in an object store that fails: moto's S3 behind a proxy, actors that write there
themselves.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from cqlray.config.load import dump_yaml
from cqlray.storage.locations import Location
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, assert_same
from tests.processes import descendants, kill, running
from tests.unit.storage.test_locations import (
    Proxy,
    assert_outage_is_waited_for,
    proxy,  # noqa: F401 (a fixture)
    remote,  # noqa: F401 (a fixture)
    server,  # noqa: F401 (a fixture)
)


def downloaded(place: Location, to: Path) -> Path:
    """A copy on disk; the lines of evaluations.jsonl are parts in the store."""
    to.mkdir()
    for below in place.iterdir():
        if below.is_dir():
            downloaded(below, to / below.name)
        else:
            (to / below.name).write_bytes(below.read_bytes())
    if lines := (place / "evaluations.jsonl").read_appended():
        (to / "evaluations.jsonl").write_text(lines)
    return to


@pytest.mark.timeout(400)
@pytest.mark.ray
@pytest.mark.parametrize("seconds", [pytest.param(4.0, marks=pytest.mark.sample), 60.0])
def test_a_run_in_a_bucket_that_is_away_and_fails_at_times(
    finished_run: Path,
    remote: Location,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    tmp_path: Path,
    seconds: float,
) -> None:
    """One request in ten fails, nobody answers for a while as the students begin, and a learner
    dies: the same bits, and no line lost.
    """
    out = remote / "run"
    config = small_config(Path("set below"))
    (tmp_path / "c.yaml").write_text(dump_yaml(config).replace("set below", str(out)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "cqlray", "run", "--config", str(tmp_path / "c.yaml")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        while not (out / "members.json").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        proxy.share = 0.1
        proxy.outage(seconds)
        while not (learners := running("ray::learner").keys() & {*descendants(run.pid)}):
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        assert kill(min(learners))
        _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    proxy.calm()
    deaths = [row for row in RunDirectory(out).rows("events.jsonl") if row["event"] == "death"]
    assert [row["role"] for row in deaths] == ["learner"]
    assert_same(finished_run, downloaded(out, tmp_path / "copy"))


@pytest.mark.timeout(400)
def test_an_outage_of_a_minute_is_waited_for(
    remote: Location,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_outage_is_waited_for(60.0, remote, proxy, caplog)


WRITER = """
import sys
from cqlray.storage.locations import Location
for count in range(1000):
    Location.parse(sys.argv[1]).write(bytes([count % 256]) * (24 * 2**20))
    print(count, flush=True)
"""


def test_killed_while_uploading_nothing_half_written_is_seen(remote: Location) -> None:  # noqa: F811
    place, found = remote / "big", set()
    pause = random.Random(1)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"0\n"
            time.sleep(pause.uniform(0.0, 1.0))
            process.send_signal(signal.SIGKILL)
        data = place.read_bytes()
        assert data == data[:1] * (24 * 2**20)
        found.add(data[:1])
    assert len(found) > 1
    # Kills did fall into uploads: what those left is not an object, and shows nowhere else.
    assert boto3.client("s3").list_multipart_uploads(Bucket="bucket")["Uploads"]
