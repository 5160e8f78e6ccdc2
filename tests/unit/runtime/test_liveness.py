"""A cluster that is gone ends the run, whatever its loop is doing; without Ray."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cqlray.errors import ActorLost, Interrupted
from cqlray.runtime import event_loop, liveness
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.liveness import Liveness


class Daemons:
    """A node's raylet and a control store, as far as they listen."""

    def __init__(self, stop: Stop) -> None:
        self.raylet, self.store = listener(), listener()
        self.watch = Liveness(address(self.raylet), address(self.store), stop)

    def lose_node(self) -> None:
        connection, _ = self.raylet.accept()
        self.raylet.close()
        connection.close()

    def lose_store(self) -> None:
        self.store.close()


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def address(server: socket.socket) -> str:
    return "{}:{}".format(*server.getsockname())


@contextmanager
def watched(stop: Stop) -> Iterator[Daemons]:
    daemons, over = Daemons(stop), threading.Event()
    thread = threading.Thread(target=daemons.watch.watch, args=(over,))
    thread.start()
    try:
        yield daemons
    finally:
        over.set()
        thread.join(5)


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(liveness, "SECONDS_UNTIL_GONE", 0.1)
    monkeypatch.setattr(liveness, "SECONDS_TO_END", 0.2)


def hanging(over: threading.Event) -> Callable[[], Any]:
    async def main() -> None:
        over.wait(30)

    return main


async def waiting() -> None:
    await asyncio.sleep(30)


def test_a_run_ends_at_once_when_its_node_does() -> None:
    stop = Stop(print)
    began = time.monotonic()
    with watched(stop) as daemons:
        threading.Timer(0.1, daemons.lose_node).start()
        with pytest.raises(ActorLost, match="node that the run had joined is gone"):
            event_loop.run(waiting, stop)
    assert time.monotonic() - began < 5 and stop.requested


def test_a_loop_that_hangs_in_ray_is_not_waited_for() -> None:
    stop, over = Stop(print), threading.Event()
    with watched(stop) as daemons:
        stop.requests.append(time.monotonic())
        daemons.lose_node()
        began = time.monotonic()
        with pytest.raises(Interrupted):  # it was asked to stop, too: that is what it says
            event_loop.run(hanging(over), stop)
        assert time.monotonic() - began < 5
    over.set()


def test_a_control_store_may_come_back_unless_the_run_was_asked_to_stop() -> None:
    stop = Stop(print)
    with watched(stop) as daemons:
        daemons.lose_store()
        time.sleep(0.4)
        assert not stop.requested
        stop.requests.append(time.monotonic())
        with pytest.raises(Interrupted):
            event_loop.run(waiting, stop)


def test_an_idle_connection_that_the_node_closes_is_made_again() -> None:
    stop = Stop(print)
    with watched(stop) as daemons:
        for _ in range(3):
            daemons.raylet.accept()[0].close()
        time.sleep(0.2)
        assert stop.lost is None
