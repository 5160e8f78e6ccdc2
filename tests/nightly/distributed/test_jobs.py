"""Runs as Ray jobs, by the commands that a person types: `ray start` twice, `ray job submit` and
`stop`, `cqlray submit`.

The cluster asks for a token of its own, and every port of it is its own: other clusters run on this
machine.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqlray.api import runs as api
from cqlray.config.load import dump_yaml
from cqlray.config.schema import CQLConfig, EvaluationConfig, ResourcesConfig, RunConfig
from cqlray.storage.run_directory import read_json
from tests.conftest import small_config
from tests.integration.test_driver import assert_same
from tests.processes import free_port, wait_until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
PORTS = ("dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
ENV_VARS = {"PYTHONPATH": str(ROOT)}  # where the jobs find the environments of the tests


class Cluster:
    """Two nodes made by `ray start`, and a shell that has their token but not RAY_AUTH_MODE, as
    people's shells are.
    """

    def __init__(self) -> None:
        # short: Ray's socket paths may not pass 107 characters
        self.folder = Path(tempfile.mkdtemp(prefix="cq", dir="/tmp"))
        (self.folder / "token").write_text(secrets.token_hex(32))
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.shell = {
            **inherited,
            "PATH": path,
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PYTHONPATH": str(ROOT),
        }
        port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._start(
                "--head",
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
            )
            self._start(f"--address=127.0.0.1:{port}")
        except BaseException:
            self.end()
            raise

    def _start(self, *options: str) -> None:
        """Start a node, and wait until it is up."""
        command = [
            "ray",
            "start",
            "--block",
            "--num-cpus=1",
            f"--object-store-memory={150 * 2**20}",
            "--disable-usage-stats",
        ]
        command += [*(f"--{name}={free_port()}" for name in PORTS), *options]
        environment = {**self.shell, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(self.folder)}
        said = self.folder / f"node-{len(self.nodes)}.log"
        with said.open("wb") as log:
            node = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.nodes.append(node)
        wait_until(
            lambda: "Ray runtime started" in said.read_text() or node.poll() is not None,
            "a node is up",
        )
        assert node.poll() is None, said.read_text()

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command in the shell, to its end."""
        shell = {**self.shell, **variables}
        return subprocess.run(
            words,
            cwd=self.folder,
            env=shell,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def job(self, verb: str, *words: str) -> str:
        """What `ray job VERB` prints on stdout."""
        return self.run(
            "ray", "job", verb, "--address", self.address, *words, RAY_AUTH_MODE="token"
        ).stdout

    def submission(self, *words: str, **env_vars: str) -> list[str]:
        """`cqlray submit` to here."""
        runtime_env = json.dumps({"env_vars": {**ENV_VARS, **env_vars}})
        command = [
            sys.executable,
            "-m",
            "cqlray",
            "submit",
            "--address",
            self.address,
            "--runtime-env-json",
            runtime_env,
        ]
        return [*command, *words]

    def end(self) -> None:
        """End both nodes, and whatever came of them: RAY_TMPDIR in its environment tells a process
        of this cluster.
        """
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
        for process in processes_with(f"RAY_TMPDIR={self.folder}"):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def processes_with(variable: str) -> list[int]:
    """Process ids of those that have NAME=VALUE in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has just ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        cluster = Cluster()
    except AssertionError:
        # on a busy machine Ray's own limit of 30 s may pass before its dashboard answers
        cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.end()


def config(out: Path) -> RunConfig:
    """Seconds of training, so that a stop comes in their midst."""
    return small_config(
        out,
        cql=CQLConfig(hidden_units=16, batch_size=32, num_updates=2000, num_action_samples=3),
        evaluation=EvaluationConfig(interval=500, episodes=12),
        resources=ResourcesConfig(rollout_workers=1, evaluators=1, learners=1),
    )


@pytest.mark.timeout(900)  # some 60 s on a quiet machine; Ray starts a dozen processes in it
def test_a_stopped_job_goes_on_in_another_and_ends_with_the_same_bits(
    cluster: Cluster, ray_cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "c.yaml").write_text(dump_yaml(config(out)))
    runtime_env = json.dumps({"env_vars": {**ENV_VARS, "RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--no-wait", "--submission-id", "first", "--runtime-env-json", runtime_env]
    cluster.job("submit", *options, "--", "cqlray", "run", "--config", str(tmp_path / "c.yaml"))
    wait_until((out / "checkpoints" / "population-0.safetensors").exists, "there is a checkpoint")
    cluster.job("stop", "first")

    assert "Job 'first' was stopped" in cluster.job("status", "first")
    assert (
        cluster.job("logs", "first").splitlines()[-1]
        == f"cqlray: stopped; go on with: cqlray resume {out}"
    )
    manifest = read_json(out / "manifest.json")
    assert not manifest["finished"] and not (out / "report.html").exists()
    assert manifest["plan"]["cluster"]["nodes"] == 2

    resumed = cluster.run(*cluster.submission("resume", str(out)))
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.endswith(": SUCCEEDED\n")
    assert "report: " in resumed.stdout, "the log was followed to its end"
    api.run(config(tmp_path / "undisturbed"), quiet=True)
    assert_same(tmp_path / "undisturbed", out)


def test_what_is_refused_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    log = cluster.job(
        "submit",
        "--runtime-env-json",
        json.dumps({"env_vars": ENV_VARS}),
        "--",
        "cqlray",
        "run",
        "--out",
        "runs/x",
    )
    assert "cqlray: --out runs/x is relative, and the working directory goes with a Ray job" in log
    assert "failed with exit code 2" in log and "Traceback" not in log

    words = cluster.submission("run", "--out", str(tmp_path / "run"))
    for variables, said in [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "it refuses the token that is here; have the head's in"),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "it asks for a token, and RAY_AUTH_MODE is disabled; set it to token",
        ),
    ]:
        done = cluster.run(*words, **variables)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert said in done.stderr


def test_the_code_and_the_config_reach_the_job_and_its_end_comes_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The mistake that the job finds is in a module of --working-dir, which the --config file there
    names.
    """
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import"
        " CartPoleEnv\ngymnasium.register('Mine-v0', CartPoleEnv)\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "c.yaml").write_text("env: {id: 'mine:Mine-v0'}\n")
    options = ["--submission-id", "mine", "--working-dir", str(tmp_path), "--stop-wait", "7"]
    command = [
        "run",
        "--config",
        str(tmp_path / "configs" / "c.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    words = cluster.submission(*options, *command)
    done = cluster.run(*words)
    assert "cqlray: env.id 'mine:Mine-v0': actions are Discrete(2)" in done.stdout
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "job mine: FAILED")
    again = cluster.run(*words)
    assert (again.returncode, again.stderr) == (
        2,
        "cqlray: submission id mine was used before on this cluster; give another, or none\n",
    )


def test_ctrl_c_leaves_the_job_alone_and_says_what_to_type(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("env: {id: 'tests.nowhere:Point-v0'}\n")
    out = tmp_path / "run"
    words = cluster.submission(
        "--submission-id", "left", "run", "--config", "c.yaml", "--out", str(out), AWS_REGION="none"
    )
    shell = {**cluster.shell, "AWS_SECRET_ACCESS_KEY": "hunter2-hunter2"}
    with subprocess.Popen(
        words, cwd=tmp_path, env=shell, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as ours:
        assert ours.stderr is not None
        assert ours.stderr.readline() == "job left is submitted\n"
        ours.send_signal(signal.SIGINT)
        said = ours.stderr.read()
    assert ours.returncode == 130
    assert "job left goes on without you" in said and "Traceback" not in said
    commands = dict(
        line.strip().removeprefix("to ").split(" it ", 1) for line in said.splitlines()[-3:]
    )
    assert shlex.split(commands["resume"])[-2:] == ["resume", str(out)]
    log = cluster.run("bash", "-c", commands["see"]).stdout
    assert "cqlray: env.id 'tests.nowhere:Point-v0': No module named" in log, (
        "the file went along, and the job to its end"
    )
    assert "Job 'left' failed" in log
    assert commands["stop"].split()[-6:] == [
        "ray",
        "job",
        "stop",
        "--address",
        cluster.address,
        "left",
    ]
    listed = cluster.job("list")
    assert "AWS_REGION" in listed and "'RAY_JOB_STOP_WAIT_TIME_S': '60'" in listed
    assert "hunter2" not in listed
