"""A Ray cluster of several nodes on this machine, each with an object store of its own, and cqlray
drivers that join it.

The cluster lives in a process of its own, which speaks JSON lines (`serve`):
`ray.cluster_utils.Cluster` changes signal handlers, Ray's address file and module state, and a test
session has another cluster in its process. It ends with its standard input, however the process at
the other end died.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import descendants, kill, running

ROOT = Path(__file__).parents[3]
HEAD = "head"
ROLES = ("RolloutWorker", "Evaluator", "Learner", "Teacher")
JUDGE = "FittedQ"  # which few runs have
CLONE_NEWNS = 0x00020000  # os.unshare has it from Python 3.12 on
STORE_BYTES = 150 * 2**20
# Ray's own take 14 s to see that a node is gone; with these it is one second or two.
FAST_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}

# Left alone, Ray would prefer the head among all the nodes that it finds on this machine.
ON_NODE = """
import sys
from ray._private import services
from cqlray.cli.main import main
choose, node = services.get_node_to_connect_for_driver, sys.argv.pop(1)
services.get_node_to_connect_for_driver = lambda gcs, **_: choose(gcs, node_name=node)
sys.exit(main())
"""


class Nodes:
    """A running cluster; `raylets` are the process ids of its nodes' raylets by the nodes'
    names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raylets: dict[str, int] = {}
        self.ids: dict[str, str] = {}  # Ray's, by the nodes' names
        # RAY_TMPDIR: else the address file would lead everybody's `ray.init()` on this machine
        # here.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        self.environment = {
            **inherited,
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
        }
        self.log = folder / "cluster.log"
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tests.nightly.distributed.nodes"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def add(self, name: str, cpus: int) -> None:
        """Start a node, the first one being the head, and wait until it has joined."""
        reply = self._ask(add=name, cpus=cpus)
        self.raylets[name], self.ids[name] = reply["raylet"], reply["id"]
        self.environment["RAY_ADDRESS"] = reply["address"]

    def kill(self, name: str) -> None:
        """End a node as a power cut would: all its processes by SIGKILL, the raylet first."""
        raylet = self.raylets.pop(name)
        below = descendants(raylet)
        for process in [raylet, *below]:
            kill(process)
        self._ask(remove=name)

    def hide(self, folder: Path) -> None:
        """Have nodes that are added from now on see an empty folder there, as if the disk were not
        theirs; for root.
        """
        self._ask(hide=str(folder))

    def drain(self, name: str, seconds: int) -> None:
        """Tell Ray that a node will soon be gone, as KubeRay and clouds' notices do."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            "--address",
            self.environment["RAY_ADDRESS"],
        ]
        command += [
            "--node-id",
            self.ids[name],
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "test",
        ]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.environment, capture_output=True, check=True)

    def processes(self, role: str) -> dict[int, str]:
        """The node of each process of the cluster that runs an actor of the class `role`."""
        nodes = {raylet: name for name, raylet in self.raylets.items()}
        return {
            pid: nodes[parent] for pid, parent in running(f"ray::{role}").items() if parent in nodes
        }

    def workers(self) -> dict[int, str]:
        """The node of each process that runs any of cqlray's actors."""
        return {pid: node for role in (*ROLES, JUDGE) for pid, node in self.processes(role).items()}

    def start(self, *words: str, node: str = HEAD, cwd: Path = ROOT) -> Driver:
        """A cqlray command that joins the cluster through one of its nodes, as if it were started
        on that machine.
        """
        command = [sys.executable, "-c", ON_NODE, node, *words]
        return Driver(command, self.environment, cwd, self.folder / "stderr")

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the cluster's process ended:\n{self.log.read_text()[-3000:]}")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def close(self) -> None:
        """End all nodes; their folder goes with them."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(60)


class Driver:
    """A cqlray process; what it says on stderr is in a file."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], cwd: Path, said: Path
    ) -> None:
        self.file = said
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
            )

    def said(self) -> str:
        """Its stderr up to now."""
        return self.file.read_text(errors="replace")

    def wait_for(
        self, sign: Callable[[], Any], every: float = 0.002, timeout: float = 120.0
    ) -> Any:
        """The first true value of `sign`.

        Raises:
            EndedEarly: the driver ended before. TimeoutError: neither happened.
        """
        deadline = time.monotonic() + timeout
        while not (value := sign()):
            if self.process.poll() is not None:
                raise EndedEarly(f"exit status {self.process.returncode}: {self.said()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:.0f} s; the driver said: {self.said()}")
            time.sleep(every)
        return value

    def finish(self, timeout: float = 120.0) -> None:
        """Wait for its good end.

        Raises:
            RuntimeError: it did not end, and was killed now, or ended with another status than 0.
        """
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(
                f"the driver did not end within {timeout:.0f} s; it said: {self.said()}"
            ) from None
        if status != 0:
            raise RuntimeError(
                f"the driver ended with exit status {status}; it said: {self.said()}"
            )

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


class EndedEarly(RuntimeError):
    """A driver ended before what was waited for."""


@contextmanager
def cluster(
    head_cpus: int = 2, cpus: tuple[int, ...] = (2, 2), hidden: Path | None = None
) -> Iterator[Nodes]:
    """A head and further nodes `a`, `b`, …, which may claim more CPUs than the machine has, and may
    lack a folder.
    """
    # short: Ray's socket paths may not pass 107 characters
    folder = Path(tempfile.mkdtemp(prefix="cq", dir="/tmp"))
    nodes = Nodes(folder)
    try:
        if hidden is not None:
            nodes.hide(hidden)
        for name, count in zip([HEAD, *"abcdefgh"], [head_cpus, *cpus], strict=False):
            nodes.add(name, count)
        yield nodes
    finally:
        nodes.close()


def serve() -> None:
    """Hold a Cluster and do what each line of stdin says, until there are no more; then remove its
    folder.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # hundreds of lines of raylets' last words
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes: dict[str, Any] = {}
    try:
        for line in sys.stdin:
            replies.write(json.dumps(_obey(cluster, nodes, json.loads(line))) + "\n")
            replies.flush()
    finally:
        cluster.shutdown()
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def _obey(cluster: Any, nodes: dict[str, Any], command: dict[str, Any]) -> dict[str, Any]:
    if "remove" in command:
        cluster.remove_node(nodes.pop(command["remove"]), allow_graceful=False)
        return {}
    if "hide" in command:
        _hide(command["hide"])
        return {}
    name = command["add"]
    sizes = {"num_cpus": command["cpus"], "object_store_memory": STORE_BYTES}
    first = {} if nodes else {"include_dashboard": False, "_system_config": FAST_DETECTION}
    nodes[name] = cluster.add_node(node_name=name, **sizes, **first)
    (raylet,) = nodes[name].all_processes["raylet"]
    return {"address": cluster.address, "raylet": raylet.process.pid, "id": nodes[name].node_id}


def _hide(folder: str) -> None:
    """Give this process, and those that it starts from now on, a view of the file system in which a
    folder is empty.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)


if __name__ == "__main__":
    serve()
