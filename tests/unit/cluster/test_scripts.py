"""The scripts of cluster/: checked by shellcheck; run-or-resume.sh and submit.sbatch are also run,
with programs in the places of cqlray, Ray and Slurm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from cqlray.cli import main as cli
from cqlray.storage.run_directory import RunDirectory
from tests.unit.cluster.commands import CLUSTER, REPOSITORY

RUN_OR_RESUME = CLUSTER / "run-or-resume.sh"
LOCK = CLUSTER / "lock.sh"
SBATCH = CLUSTER / "slurm" / "submit.sbatch"

# Writes its words down and does as the file `behaviour` says: COMMAND STATUS, or COMMAND wait (for
# SIGTERM, then 130).
CQLRAY = """#!/usr/bin/env bash
cd "$(dirname "$0")" || exit 1
echo "$*" >>calls
read -r _ what < <(grep "^$1 " behaviour)
[ "$what" = wait ] || exit "$what"
trap 'exit 130' TERM
touch waiting
while :; do sleep 0.02; done
"""
RAY = f"""#!{sys.executable}
import json, subprocess, sys
from pathlib import Path
Path(__file__).with_name("ray.json").write_text(json.dumps(sys.argv[1:]))
sys.exit(subprocess.run(sys.argv[sys.argv.index("--") + 1 :]).returncode)
"""
# The command on this node alone, without srun's own options.
SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\necho "$*" >"$(dirname "$0")/requeued"\n'


def program(name: str) -> str:
    """Where a program of the test extra is, also in a virtual environment that is not activated."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert found, f"{name} is missing: pip install '.[test]'"
    return found


@pytest.mark.parametrize("script", [RUN_OR_RESUME, LOCK, SBATCH], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(
        [program("shellcheck"), "--shell=bash", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_what_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "submit.sbatch"
    broken.write_text(SBATCH.read_text().replace('"$SLURM_JOB_ID"', "$SLURM_JOB_ID"))
    done = subprocess.run(
        [program("shellcheck"), "--shell=bash", broken], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "SC2086" in done.stdout
    broken.write_text(SBATCH.read_text().replace("\nfi\n", "\n", 1))
    assert subprocess.run(["bash", "-n", broken], check=False, capture_output=True).returncode != 0


class Place:
    """A directory of programs that stand in the places of real ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, text in (
            ("cqlray", CQLRAY),
            ("ray", RAY),
            ("srun", SRUN),
            ("scontrol", SCONTROL),
        ):
            (path / name).write_text(text)
            (path / name).chmod(0o755)
        (path / ".ray").mkdir()
        (path / ".ray" / "auth_token").write_text("t")
        self.env = {
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(path),
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "4",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "1",
        }

    def start(self, script: Path, *words: str, **behaviour: int | str) -> subprocess.Popen[str]:
        (self.path / "behaviour").write_text(
            "".join(f"{command} {what}\n" for command, what in behaviour.items())
        )
        return subprocess.Popen(
            ["bash", script, *words], env=self.env, stderr=subprocess.PIPE, text=True
        )

    def run(self, script: Path, *words: str, **behaviour: int | str) -> tuple[int, str]:
        process = self.start(script, *words, **behaviour)
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors

    def terminate_when_waiting(self, process: subprocess.Popen[str]) -> int:
        deadline = time.monotonic() + 20
        while not (self.path / "waiting").exists():
            assert time.monotonic() < deadline, "cqlray was not started"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        return process.returncode

    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_run_that_is_there_is_resumed(place: Place) -> None:
    assert place.run(RUN_OR_RESUME, "run", "/runs/x", "--seed", "1", resume=0)[0] == 0
    assert place.calls() == ["resume --if-there --trust /runs/x"]


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_run_that_is_not_there_is_started(place: Place, status: int) -> None:
    found, errors = place.run(
        RUN_OR_RESUME, "train", "s3://b/x", "--env.kwargs", "a", "b c", resume=3, train=status
    )
    assert found == status
    assert "nothing to go on with at s3://b/x" in errors
    assert place.calls() == [
        "resume --if-there --trust s3://b/x",
        "train --out s3://b/x --env.kwargs a b c",
    ]


@pytest.mark.parametrize("status", [1, 2, 130])
def test_a_run_that_fails_is_not_started_again(place: Place, status: int) -> None:
    found, errors = place.run(RUN_OR_RESUME, "run", "/runs/x", resume=status, run=0)
    assert (found, errors) == (status, "")
    assert place.calls() == ["resume --if-there --trust /runs/x"]


@pytest.mark.parametrize(
    ("behaviour", "calls"), [({"resume": "wait"}, 1), ({"resume": 3, "run": "wait"}, 2)]
)
def test_sigterm_reaches_cqlray(place: Place, behaviour: dict[str, int | str], calls: int) -> None:
    process = place.start(RUN_OR_RESUME, "run", "/runs/x", **behaviour)
    assert place.terminate_when_waiting(process) == 130
    assert len(place.calls()) == calls


@pytest.mark.parametrize("script", [RUN_OR_RESUME, SBATCH], ids=lambda path: path.name)
def test_too_few_words_are_a_usage_line(place: Place, script: Path) -> None:
    status, errors = place.run(script)
    assert status == 2
    assert errors.startswith("usage: ")


def test_cqlray_itself_says_3_where_there_is_no_run_and_2_where_one_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["resume", "--if-there", str(run)]) == 3
    assert capsys.readouterr().err == f"cqlray: there is no run at {run} yet\n"
    assert cli.main(["resume", str(run)]) == 2, "without the script it is a mistake like any other"
    RunDirectory.create(run, {"id": "a"})  # what a kill left before there was a run
    assert cli.main(["resume", str(run), "--if-there"]) == 3
    (run / "config.yaml").write_text("seed: none\n")
    assert cli.main(["resume", "--if-there", str(run)]) == 2
    assert "seed" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["resume", "--if-there", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_script_and_cqlray_together_say_why(place: Place, tmp_path: Path) -> None:
    (place.path / "cqlray").write_text(
        f'#!/usr/bin/env bash\nexec {sys.executable} -m cqlray "$@"\n'
    )
    place.env["PYTHONPATH"] = str(REPOSITORY)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    status, errors = place.run(RUN_OR_RESUME, "run", str(tmp_path / "thesis"))
    assert (status, errors.count("\n")) == (2, 1) and "is not a run directory" in errors
    status, errors = place.run(
        RUN_OR_RESUME, "run", str(tmp_path / "none"), "--cql.batch-size", "-3"
    )
    assert status == 2
    assert [line.split(":")[0] for line in errors.splitlines()] == [
        "cqlray",
        "run-or-resume",
        "cqlray",
    ]


def test_slurm_starts_what_ray_takes(place: Place) -> None:
    status, errors = place.run(SBATCH, "/runs/x", "--num-seeds", "8", resume=3, run=0)
    assert status == 0, errors
    assert place.calls() == ["resume --if-there --trust /runs/x", "run --out /runs/x --num-seeds 8"]
    assert not (place.path / "requeued").exists()
    words = json.loads((place.path / "ray.json").read_text())
    assert words.pop(0) == "symmetric-run"
    options = words[: words.index("--")]
    parsed = symmetric_run.make_context("symmetric-run", [*options, "--", "true"])
    assert parsed.params["min_nodes"] == 4
    assert parsed.params["address"].endswith(":6379")
    begun = start.make_context("start", ["--head", *curate_and_validate_ray_start_args(options)])
    assert (
        begun.params["num_cpus"],
        begun.params["num_gpus"],
        begun.params["include_dashboard"],
    ) == (16, 1, False)


def test_slurm_stops_in_order_and_goes_on_later(place: Place) -> None:
    process = place.start(SBATCH, "/runs/x", resume="wait")
    assert place.terminate_when_waiting(process) == 130
    assert (place.path / "requeued").read_text() == "requeue 7\n"


def test_slurm_stops_a_cluster_that_is_still_starting(place: Place) -> None:
    (place.path / "ray").write_text(
        '#!/usr/bin/env bash\ntouch "$(dirname "$0")/waiting"\nexec sleep 20\n'
    )
    assert (
        place.terminate_when_waiting(place.start(SBATCH, "/runs/x", resume=0))
        == 128 + signal.SIGTERM
    )
    assert not (place.path / "calls").exists()
    assert (place.path / "requeued").exists()


@pytest.mark.parametrize("status", [1, 2])
def test_slurm_does_not_repeat_a_failure(place: Place, status: int) -> None:
    assert place.run(SBATCH, "/runs/x", resume=3, run=status)[0] == status
    assert not (place.path / "requeued").exists()


def test_slurm_wants_a_token_and_the_working_tree(place: Place) -> None:
    (place.path / ".ray" / "auth_token").unlink()
    status, errors = place.run(SBATCH, "/runs/x", resume=0)
    assert (status, "no token" in errors) == (2, True)
    place.env["SLURM_SUBMIT_DIR"] = str(place.path)
    status, errors = place.run(SBATCH, "/runs/x", resume=0)
    assert (status, "CQLRAY" in errors) == (2, True)
