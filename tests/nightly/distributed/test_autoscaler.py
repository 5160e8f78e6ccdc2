"""A run on a cluster without CPUs that has a real autoscaler (version 1, as `ray up` starts it);
its nodes are here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqlray.config.load import dump_yaml
from cqlray.config.schema import ResourcesConfig
from cqlray.storage.run_directory import read_json
from tests.conftest import small_config
from tests.nightly.distributed.nodes import ROOT
from tests.processes import descendants, kill

pytestmark = pytest.mark.ray
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has just now."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def own_address() -> str:
    """The address that Ray gives this machine's nodes."""
    import ray

    return str(ray.util.get_node_ip_address())


def autoscaling(address: str) -> dict[str, Any]:
    """What `ray up` would leave on the head: one type of workers, two CPUs each, none to begin
    with.
    """
    commands = (
        "initialization",
        "setup",
        "head_setup",
        "worker_setup",
        "head_start_ray",
        "worker_start_ray",
    )
    return {
        "cluster_name": "test",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 2, "object_store_memory": 100 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        **{f"{name}_commands": [] for name in commands},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What a driver needs to join the cluster."""
    folder = Path(tempfile.mkdtemp(prefix="cqlray-", dir="/tmp"))
    port, client, metrics, agent = free_ports(4)
    address = f"{own_address()}:{port}"
    (folder / "config.json").write_text(json.dumps(autoscaling(address)))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    own |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--autoscaling-config={folder / 'config.json'}",
        "--num-cpus=0",
        "--include-dashboard=false",
        f"--object-store-memory={100 * 2**20}",
        f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=inherited | own, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while "--block" not in (folder / "head.log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (
                folder / "head.log"
            ).read_text()
            time.sleep(0.2)
        time.sleep(3)  # the autoscaler's first look
        yield inherited | own | {"RAY_ADDRESS": address}
    finally:
        for process in [*descendants(head.pid), *below(folder)]:
            kill(process)
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def below(folder: Path) -> list[int]:
    """Processes of the cluster in this folder, which nodes that the autoscaler started are not
    children of the head.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(folder).encode() in (entry / "cmdline").read_bytes()
                and int(entry.name) != os.getpid()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_run_brings_the_nodes_that_it_needs(environment: dict[str, str], tmp_path: Path) -> None:
    resources = ResourcesConfig(rollout_workers=2, evaluators=1, learners=2)
    config = small_config(tmp_path / "run", resources=resources)
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, interval=330)
    )
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    done = run(["run", "--config", str(tmp_path / "c.yaml")], environment)
    assert done.returncode == 0, done.stderr
    assert (
        "0 CPUs, 0 GPUs on 1 node; the autoscaler is asked for what this plan needs beyond that"
        in done.stderr
    )
    assert read_json(tmp_path / "run" / "manifest.json")["finished"]


def test_what_no_node_type_has_is_waited_for_in_the_open(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Version 1 does not say what it could bring: the run waits, says for what, and can be
    stopped.
    """
    config = small_config(
        tmp_path / "run",
        resources=ResourcesConfig(rollout_workers=1, evaluators=1, learners=1, gpus=1),
    )
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    command = [sys.executable, "-m", "cqlray", "run", "--config", str(tmp_path / "c.yaml")]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        said = []
        for line in waiting.stderr:
            said.append(line)
            if "waiting for 1 processes to start" in line and "0 GPUs free" in line:
                waiting.terminate()
        assert waiting.wait(30) == 130, said


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cqlray", *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
