"""Ray, as the driver uses it: joining a cluster, making actors of plain classes, and waiting for their results.

This file and driver.py are the only ones that import ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.exceptions import RayActorError, RayTaskError

from cqlray.errors import EnvironmentFailure, Interrupted, UserError
from cqlray.placement import ClusterResources

# A shard or test that kills its process this often is not bad luck.
TASK_RETRIES = 3
SECONDS_BETWEEN_COMPLAINTS = 10.0
SECONDS_TO_ANSWER = 5.0


@contextmanager
def connect() -> Iterator[ClusterResources]:
    """Join the cluster of RAY_ADDRESS, or the one that `ray start` left running here, or start one for this process.

    Raises:
        UserError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    ours = not ray.is_initialized()
    if ours:
        _init()
    try:
        total = ray.cluster_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        yield ClusterResources(total.get("CPU", 1.0), total.get("GPU", 0.0), alive, total.get("memory", math.inf))
    finally:
        if ours:
            ray.shutdown()


def _init() -> None:
    """Join or start a cluster.

    "auto" only where `ray start` left one: elsewhere it joins any cluster that it sees on the machine, such as another
    run's own, which ends with that run.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    asked, started = os.environ.get("RAY_ADDRESS"), find_bootstrap_address(None)  # the latter by `ray start`
    if asked and not _listens(asked):
        raise UserError(f"RAY_ADDRESS {asked!r}: nothing listens there; is `ray start` running?")
    if not asked and not (started and _listens(started)):
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        # What `ray start` left has precedence in "auto", which alone turns on Ray's token mode where there is a token.
        ray.init(address=asked or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS {asked!r}" if asked else f"the cluster of `ray start` at {started}"
        hint = "if it is protected by a token, set RAY_AUTH_MODE=token and have the token here"
        raise UserError(f"{where} cannot be joined: {str(error).strip().splitlines()[0]}; {hint}") from None


def put(value: Any) -> Any:
    """A reference to the value in the object store."""
    return ray.put(value)


def _listens(address: str) -> bool:
    """Whether somebody answers at HOST:PORT; Ray itself would try for minutes. Other forms of address are left to Ray."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


class Loop:
    """Calls in flight, and what to do with each result; everything that waits, waits here, and can be stopped."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.stop = threading.Event()
        self.starting: list[Any] = []
        self.pending: dict[Any, tuple[Callable[[Any], None], Callable[[RayActorError], None] | None]] = {}

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM stop the loop. To be entered after ray.init, which sets handlers of its own."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: self.stop.set()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def on(self, ref: Any, then: Callable[[Any], None], died: Callable[[RayActorError], None] | None = None) -> None:
        """Call `then` with the result, or `died` if the actor did (without `died` the error goes up)."""
        self.pending[ref] = (then, died)

    def run(self) -> None:
        """Until nothing is in flight.

        Raises:
            Interrupted: asked to stop. EnvironmentFailure, UserError: raised in an actor. RayActorError: an actor died.
        """
        heard = time.monotonic()
        while self.pending:
            if self.stop.is_set():
                self.pending.clear()
                raise Interrupted
            ready, _ = ray.wait(list(self.pending), timeout=0.5)
            for ref in ready:
                self._finish(ref)
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard > SECONDS_BETWEEN_COMPLAINTS:
                heard = time.monotonic()
                self._complain()

    def _finish(self, ref: Any) -> None:
        then, died = self.pending.pop(ref)
        try:
            result = ray.get(ref)
        except RayActorError as error:
            if died is None:
                self.pending.clear()
                raise
            died(error)
        except RayTaskError as error:
            self.pending.clear()
            if isinstance(error.cause, EnvironmentFailure | UserError):
                raise error.cause from None
            raise
        else:
            then(result)

    def create(
        self, role: type[Any], *args: Any, cpus: float, gpus: int = 0, retried: bool = False, name: str | None = None
    ) -> Any:
        """An actor of a plain class. `retried` ones keep nothing: Ray makes them and their calls again after a death.

        `name` is what the dashboard calls it, made unique by what follows it there.
        """
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if name is not None:
            options["name"] = f"{name} ({uuid.uuid4().hex[:6]})"
        if retried:
            options |= {"max_restarts": -1, "max_task_retries": TASK_RETRIES}
        actor = ray.remote(**options)(role).remote(*args)
        self.starting.append(actor.__ray_ready__.remote())
        return actor

    def _complain(self) -> None:
        """Long silence is either work or a cluster that is full; say so where it is the latter."""
        if self.starting:
            _, self.starting = ray.wait(self.starting, num_returns=len(self.starting), timeout=0)
        if self.starting:
            free, total = ray.available_resources(), ray.cluster_resources()
            there = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s free" for kind in ("CPU", "GPU"))
            self.say(f"waiting for {len(self.starting)} processes to start ({there})")

    def get(self, ref: Any) -> Any:
        """One result, waited for so that it can be stopped."""
        results: list[Any] = []
        self.on(ref, results.append)
        self.run()
        return results[0]


class Team:
    """Equal actors that keep nothing: each takes the next call when it is free."""

    def __init__(
        self, loop: Loop, actors: Sequence[Any], watch: Callable[[int, int, int], None] = lambda waiting, at_work, size: None
    ) -> None:
        """`watch` is told the calls that wait, the actors at work, and all actors, whenever that changes."""
        self.loop, self.watch = loop, watch
        self.actors = list(actors)
        self.idle = deque(actors)
        self.waiting: deque[tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = deque()

    def call(self, submit: Callable[[Any], Any], then: Callable[[Any, Any], None]) -> None:
        """`submit` makes the call on the actor it is given; `then` gets the result and its reference."""
        self.waiting.append((submit, then))
        self._start()

    def _start(self) -> None:
        while self.idle and self.waiting:
            actor = self.idle.popleft()
            submit, then = self.waiting.popleft()
            self._expect(actor, submit(actor), then)
        self.watch(len(self.waiting), len(self.actors) - len(self.idle), len(self.actors))

    def _expect(self, actor: Any, ref: Any, then: Callable[[Any, Any], None]) -> None:
        def finished(result: Any) -> None:
            self.idle.append(actor)
            self._start()
            then(result, ref)

        self.loop.on(ref, finished)

    def dismiss(self) -> None:
        """End the actors' processes."""
        for actor in self.actors:
            ray.kill(actor)
