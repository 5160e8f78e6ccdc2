"""Notice that the Ray cluster is gone, and end the run in order before Ray ends the process.

Whatever needs Ray then hangs, and after a minute Ray's C++ aborts: without a line on how to resume.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import ray

from cqlray.runtime.address import listens
from cqlray.runtime.event_loop import Stop

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_UNTIL_GONE = 3.0
# A control store with fault tolerance may be restarted within the minute that Ray waits for it.
SECONDS_OF_RESTART = 45.0
SECONDS_TO_END = 3.0  # for what still can be written; then nothing is waited for


class Liveness:
    """Whether the node that this process joined, and the control store, are still there."""

    def __init__(self, node: str, store: str, stop: Stop) -> None:
        """`node` and `store` are HOST:PORT, where the node and the control store listen."""
        self.node, self.store, self.stop = node, store, stop
        self.answered = time.monotonic()  # the control store
        self.connection: socket.socket | None = None
        self.node_is_gone = False

    def look(self) -> str | None:
        """Wait a moment, or until the node ends; why the cluster is gone, or None."""
        if not self._node_is_there():
            self.node_is_gone = True
            return f"the Ray node that the run had joined is gone ({self.node})"
        now = time.monotonic()
        if listens(self.store):
            self.answered = now
        patience = SECONDS_UNTIL_GONE if self.stop.requests else SECONDS_OF_RESTART
        if now - self.answered > patience:
            return f"the Ray cluster's control store at {self.store} does not answer any more"
        return None

    def _node_is_there(self) -> bool:
        """An open connection tells of the node's end at once: the next use of its object store
        would end this process. Ray closes it if it stays idle; then there can be another one.
        """
        try:
            if self.connection is None:
                place = urlsplit(f"//{self.node}")
                self.connection = socket.create_connection((place.hostname, place.port))
            ready, _, _ = select.select([self.connection], [], [], SECONDS_BETWEEN_LOOKS)
            if ready and not self.connection.recv(4096):
                raise ConnectionResetError
        except ConnectionRefusedError:
            return False
        except OSError:
            if self.connection is not None:
                self.connection.close()
                self.connection = None
                return self._node_is_there()
        return True

    def watch(self, over: threading.Event) -> None:
        """Look until the run is over; end it if the cluster is gone."""
        while not over.is_set():
            if why := self.look():
                self.stop.on_loss(why, cancel=not self.node_is_gone)
                if self.node_is_gone or not over.wait(SECONDS_TO_END):
                    self.stop.abandoned.set_result(None)
                break
        if self.connection is not None:
            self.connection.close()


def own_node() -> str:
    """HOST:PORT of the node that this process has joined."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    host, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def watching(stop: Stop) -> Iterator[None]:
    """Watch the cluster that was joined, in a thread, until the end of the block."""
    over = threading.Event()
    watch = Liveness(own_node(), ray.get_runtime_context().gcs_address, stop).watch
    threading.Thread(target=watch, args=(over,), daemon=True, name="cqlray-liveness").start()
    try:
        yield
    finally:
        over.set()
