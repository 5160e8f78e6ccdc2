"""Ray, as the driver uses it: joining a cluster, making actors of plain classes, and waiting for
their results.

Only metrics.py imports ray beside it, and jobs.py Ray's client of jobs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import socket
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import ray
from ray._private.services import find_bootstrap_address
from ray._private.state import state
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cqlray.errors import (
    ActorLost,
    EnvironmentFailure,
    Interrupted,
    NotShared,
    StorageFailure,
    UserError,
)
from cqlray.runtime.placement import ClusterResources

# What comes of a dead process or node: its actors, and the objects that were there alone.
Lost: TypeAlias = (
    RayActorError | ObjectLostError | OutOfMemoryError | NodeDiedError | WorkerCrashedError
)
LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
FROM_RAY = RayError  # all of these, what an actor raised, and whatever else Ray has
# A shard or test that kills its process this often is not bad luck.
TASK_RETRIES = 3
SECONDS_BETWEEN_COMPLAINTS = 10.0
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_PROBE = 60.0
SECONDS_BETWEEN_LOOKS = 2.0  # at nodes that are being drained; a spot machine has 30 s left, or 120
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ONE_REQUEST = (
    2.0  # `ray job stop` signals a process and its parent, which may pass it on
)
# A call is made again elsewhere when it takes so many times the median of its team's, and so many
# seconds.
SLOW_FACTOR, SLOW_SECONDS = 4.0, 5.0


@contextmanager
def connect() -> Iterator[ClusterResources]:
    """Join the cluster of RAY_ADDRESS, or the one that `ray start` left running here, or start one
    for this process.

    Raises:
        UserError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    ours = not ray.is_initialized()
    with _restoring_handlers():  # Ray sets some, and a Loop others; they hold until Ray is gone
        if ours:
            _init()
        try:
            yield _resources()
        finally:
            if ours:
                ray.shutdown()


@contextmanager
def _restoring_handlers() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resources() -> ClusterResources:
    """What there is, and what an autoscaler would bring."""
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows, limits = _autoscaler()
    return ClusterResources(
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        nodes=len(nodes),
        memory=total.get("memory", math.inf),
        node_cpus=tuple(sorted(node.get("CPU", 0.0) for node in nodes)),
        grows=grows,
        most_cpus=limits.get("CPU", 0.0) if limits else math.inf,
        most_gpus=limits.get("GPU", 0.0) if limits else math.inf,
    )


def _autoscaler() -> tuple[bool, dict[str, float] | None]:
    """Whether nodes come when they are asked for, and the most of each resource, where the
    autoscaler says it.

    Ray has no call for this. Version 2 (KubeRay's) leaves its limits in the cluster's state;
    version 1 (`ray up`) only names its node types in its status, where a cluster of plain `ray
    start` has names made of node ids, and `ray up` on machines that are there already has one name
    for all of them.
    """
    limits = state.get_max_resources_from_cluster_config()
    if limits:
        return True, {kind: float(most) for kind, most in limits.items()}
    status = internal_kv._internal_kv_get(b"__autoscaling_status")
    report = json.loads(status).get("autoscaler_report") if status else None
    types = ((report or {}).get("node_type_mapping") or {}).values()
    return (
        any(not name.startswith("node_") and name != "local.cluster.node" for name in types),
        None,
    )


def _init() -> None:
    """Join or start a cluster.

    "auto" only where `ray start` left one: elsewhere it joins any cluster that it sees on the
    machine, such as another run's own, which ends with that run.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    asked, started = (
        os.environ.get("RAY_ADDRESS"),
        find_bootstrap_address(None),
    )  # the latter by `ray start`
    if asked and asked.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS {asked!r} is a dashboard, which takes jobs: cqlray submit --address"
            f" {asked} run …; a process on the cluster joins it by RAY_ADDRESS=HOST:6379 or auto"
        )
    if asked and asked.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS {asked!r}: a run does not go through Ray Client; on a machine of the"
            " cluster set RAY_ADDRESS=HOST:6379 or auto, from elsewhere use cqlray submit"
            " --address http://HOST:8265 run …"
        )
    if asked and not _listens(asked):
        raise UserError(f"RAY_ADDRESS {asked!r}: nothing listens there; is `ray start` running?")
    if not asked and not (started and _listens(started)):
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        # What `ray start` left has precedence in "auto", which alone turns on Ray's token mode
        # where there is a token.
        ray.init(address=asked or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        where = f"RAY_ADDRESS {asked!r}" if asked else f"the cluster of `ray start` at {started}"
        hint = "if it is protected by a token, set RAY_AUTH_MODE=token and have the token here"
        raise UserError(
            f"{where} cannot be joined: {str(error).strip().splitlines()[0]}; {hint}"
        ) from None


def put(value: Any) -> Any:
    """A reference to the value in the object store."""
    return ray.put(value)


def fetch(reference: Any) -> Any:
    """The value, waited for without an end to it: for what is there already.

    Raises ray's errors.
    """
    return ray.get(reference)


def kill(actor: Any) -> None:
    """End an actor's process."""
    ray.kill(actor)


def seen_by_all(probe: Callable[[], bool]) -> bool:
    """Whether `probe`, called on every node, is true everywhere."""

    def there() -> bool:  # Ray takes no bound method
        return probe()

    task = ray.remote(num_cpus=0, max_retries=1)(there)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    ]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=SECONDS_TO_PROBE)
    try:
        return len(ready) == len(asked) and all(ray.get(ready))
    except (RayError, OSError):
        return False


def describe(error: BaseException) -> str:
    """What an error of Ray's says, in one line: of one that an actor raised, what it raised."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()
    return (
        said[0]
        if said and isinstance(cause, LOST)
        else ": ".join([type(cause).__name__, *said[:1]])
    )


def _failed_creation(error: Lost) -> Exception | None:
    """What an actor's own __init__ raised, as it would again; None where it died, or what it was
    given is lost.
    """
    gone = getattr(error, "cause", None) or error  # of an argument, the actor that was to make it
    if (
        not isinstance(gone, RayActorError)
        or not gone.actor_init_failed
        or "ray.exceptions." in str(gone)
    ):
        return None
    last = str(gone).strip().splitlines()[-1]  # Ray keeps of it the text alone
    name, _, said = last.partition(": ")
    for kind in (UserError, StorageFailure, NotShared):
        if name == f"{kind.__module__}.{kind.__name__}":
            return kind(said)
    role = re.search(
        r"ray::(.+?)(?: \(\w{6}\):\w+)?\.__init__", str(gone)
    )  # the name that `create` made unique, or its class
    return ActorLost(f"{role[1] if role else 'a process'} cannot be started: {last}")


def _listens(address: str) -> bool:
    """Whether somebody answers at HOST:PORT; Ray itself would try for minutes.

    Other forms of address are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


class Loop:
    """Calls in flight, and what to do with each result; everything that waits, waits here, and can
    be stopped.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.stop = threading.Event()
        self.hurry = threading.Event()  # asked again: without a last checkpoint
        self.starting: dict[
            Any, float
        ] = {}  # who is not known to be there yet, and since when it is asked for
        self.looked = 0.0  # after them
        self.loss: Lost | None = None  # the newest
        self.created: list[weakref.ref[Any]] = []
        self.pending: dict[Any, tuple[Callable[[Any], None], Callable[[Lost], None] | None]] = {}
        self.watches: list[Callable[[], None]] = []  # called now and then
        self.draining: dict[str, int] = {}  # nodes that will soon be gone, by their ids
        self.looked_for_drains = 0.0
        self.drained = False  # this process's own node
        self.asked: list[float] = []  # when it was asked to stop

    def handle_signals(self) -> None:
        """Let Ctrl-C and SIGTERM stop the loop, as long as `connect` lasts: ray.init sets handlers
        of its own.

        The first asks for an end in order, with a last checkpoint; the second does not wait for
        that, the third for nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _: Any) -> None:
            now = time.monotonic()
            again = bool(self.asked) and now - self.asked[0] < SECONDS_OF_ONE_REQUEST
            if number == signal.SIGTERM and (again or self.drained):  # a drain ends in one, too
                return
            self.asked.append(now)
            if len(self.asked) > 1:
                self.hurry.set()
            self.stop.set()
            if len(self.asked) > 2:
                raise KeyboardInterrupt

        for number in SIGNALS:
            signal.signal(number, ask)

    def on(
        self, ref: Any, then: Callable[[Any], None], lost: Callable[[Lost], None] | None = None
    ) -> None:
        """Call `then` with the result, or `lost` if a process that it needs is gone (without `lost`
        the error goes up).
        """
        self.pending[ref] = (then, lost)

    def see_out(self, refs: Sequence[Any]) -> None:
        """Once asked to stop: let these calls come to their end, and forget all others.

        Raises:
            Interrupted: asked again.
        """
        self.pending = {ref: self.pending[ref] for ref in refs if ref in self.pending}
        self.stop.clear()
        self.check_hurry()
        try:
            self.run()
        except Interrupted:
            self.hurry.set()  # what is in the middle of its work cannot be saved
            raise
        finally:
            self.stop.set()

    def check_hurry(self) -> None:
        """Raises Interrupted where a second request to stop says not to wait."""
        if self.hurry.is_set():
            raise Interrupted

    def run(self) -> None:
        """Until nothing is in flight.

        Raises:
            Interrupted: asked to stop; what was in flight still is. EnvironmentFailure, UserError:
                raised in an actor.
            ActorLost: an actor's __init__ raised something else. LOST: of a dead process or node.
        """
        while self.pending:
            if self.stop.is_set():
                raise Interrupted
            ready, _ = ray.wait(list(self.pending), timeout=0.5)
            for ref in ready:
                if ref in self.pending:  # else it was forgotten in the meantime
                    self._finish(ref)
            for watch in list(self.watches):
                watch()
            self._complain()
            self._leave_drained_node()

    def _finish(self, ref: Any) -> None:
        then, lost = self.pending.pop(ref)
        try:
            result = ray.get(ref)
        except LOST as error:
            self._lost(error, lost)
        except RayTaskError as error:
            if isinstance(error.cause, LOST):  # of an argument
                self._lost(error.cause, lost)
                return
            self.pending.clear()
            if isinstance(error.cause, EnvironmentFailure | UserError):
                raise error.cause from None
            raise
        else:
            then(result)

    def _lost(self, error: Lost, then: Callable[[Lost], None] | None) -> None:
        self.loss = error
        if (failure := _failed_creation(error)) is not None:
            self.pending.clear()
            raise failure from error
        if then is None:
            self.pending.clear()
            raise error
        then(error)

    def create(
        self,
        role: type[Any],
        *args: Any,
        cpus: float,
        gpus: int = 0,
        retried: bool = False,
        spread: bool = False,
        name: str | None = None,
    ) -> Any:
        """An actor of a plain class. `retried` ones keep nothing: Ray makes them and their calls
        again after a death.

        `spread` ones go to the nodes in turn. `name` is what the dashboard calls it, made unique by
        what follows it there.
        """
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if name is not None:
            options["name"] = f"{name} ({uuid.uuid4().hex[:6]})"
        if spread:
            options["scheduling_strategy"] = "SPREAD"
        if retried:
            options |= {"max_restarts": -1, "max_task_retries": TASK_RETRIES}
        actor = ray.remote(**options)(role).remote(*args)
        self.starting[actor.__ray_ready__.remote()] = time.monotonic()
        self.created.append(weakref.ref(actor))
        return actor

    def close(self) -> None:
        """End the actors that somebody still holds; after a failure a traceback does, and they
        would keep their CPUs.
        """
        for actor in filter(None, (reference() for reference in self.created)):
            ray.kill(actor)

    def _complain(self) -> None:
        """Who has not started for long waits for a cluster that is full or still growing, whatever
        else goes on.
        """
        now = time.monotonic()
        if not self.starting or now - self.looked < SECONDS_BETWEEN_COMPLAINTS:
            return
        self.looked = now
        _, waiting = ray.wait(list(self.starting), num_returns=len(self.starting), timeout=0)
        self.starting = {ref: self.starting[ref] for ref in waiting}
        late = sum(now - since >= SECONDS_BETWEEN_COMPLAINTS for since in self.starting.values())
        if late:
            free, total = ray.available_resources(), ray.cluster_resources()
            there = ", ".join(
                f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s free"
                for kind in ("CPU", "GPU")
            )
            self.say(f"waiting for {late} processes to start ({there})")

    def is_leaving(self, actor: Any) -> bool:
        """Whether the actor's node is being drained (a spot notice, `ray drain-node`, SIGTERM to
        `ray start`).
        """
        self._look_for_drains()
        if not self.draining:
            return False
        return bool(
            state.actor_table(actor._actor_id.hex()).get("Address", {}).get("NodeID")
            in self.draining
        )

    def _look_for_drains(self) -> None:
        now = time.monotonic()
        if now - self.looked_for_drains >= SECONDS_BETWEEN_LOOKS:
            self.looked_for_drains, self.draining = now, state.get_draining_nodes()

    def _leave_drained_node(self) -> None:
        """Stop in order where this process's own node is being drained, unless asked to stop
        already.
        """
        if self.asked:
            return
        self._look_for_drains()
        if self.draining and ray.get_runtime_context().get_node_id() in self.draining:
            self.drained = True
            self.asked.append(time.monotonic())
            self.say("the driver's node is being drained")
            self.stop.set()

    def get(self, ref: Any) -> Any:
        """One result, waited for so that it can be stopped."""
        results: list[Any] = []
        self.on(ref, results.append)
        self.run()
        return results[0]


@dataclass
class _Call:
    """A call that one of a team's actors is to make; of a slow one, two are in flight for a
    while.
    """

    submit: Callable[[Any], Sequence[Any]]
    then: Callable[[Any, Sequence[Any]], None]
    lost: Callable[[Lost], None] | None
    actors: dict[Any, Any]  # first reference -> the actor at it
    began: float = 0.0


class Team:
    """Equal actors that keep nothing: each takes the next call when it is free.

    Their calls are pure functions: one that takes far longer than the others' (a node that is slow,
    or hangs) is made by a free actor as well, and whichever ends first counts.
    """

    def __init__(
        self,
        loop: Loop,
        actors: Sequence[Any],
        watch: Callable[[int, int, int], None] = lambda waiting, at_work, size: None,
    ) -> None:
        """`watch` is told the calls that wait, the actors at work, and all actors, whenever that
        changes.
        """
        self.loop, self.watch = loop, watch
        self.actors = list(actors)
        self.idle = deque(actors)
        self.waiting: deque[_Call] = deque()
        self.at_work: list[_Call] = []
        self.durations: deque[float] = deque(maxlen=100)
        self.busy_seconds = 0.0
        loop.watches.append(self.relieve)

    def call(
        self,
        submit: Callable[[Any], Any],
        then: Callable[[Any, Sequence[Any]], None],
        lost: Callable[[Lost], None] | None = None,
    ) -> None:
        """`submit` makes the call on the actor it is given, and gives one reference or several.

        `then` gets the first one's value and all references, or `lost` the error of an argument
        that is gone.
        """

        def listed(actor: Any) -> Sequence[Any]:
            references = submit(actor)
            return references if isinstance(references, list) else [references]

        self.waiting.append(_Call(listed, then, lost, {}))
        self._start()

    def _start(self) -> None:
        while self.idle and self.waiting:
            call = self.waiting.popleft()
            call.began = time.monotonic()
            self.at_work.append(call)
            self._give(self.idle.popleft(), call)
        self.watch(len(self.waiting), len(self.actors) - len(self.idle), len(self.actors))

    def _give(self, actor: Any, call: _Call) -> None:
        references = call.submit(actor)
        call.actors[references[0]] = actor

        def finished(result: Any) -> None:
            self._end(call, actor)
            call.then(result, references)

        def lost(error: Lost) -> None:
            self._end(call, actor)
            if call.lost is None:
                raise error
            call.lost(error)

        self.loop.on(references[0], finished, lost)

    def _end(self, call: _Call, by: Any) -> None:
        """Its actors are free.

        One that is still at it comes last; what it is given waits behind, which `relieve` sees.
        """
        seconds = time.monotonic() - call.began
        self.durations.append(seconds)
        self.busy_seconds += seconds * len(call.actors)
        self.idle.appendleft(by)
        for reference, actor in call.actors.items():
            self.loop.pending.pop(reference, None)
            if actor is not by:
                self.idle.append(actor)
        self.at_work.remove(call)
        self._start()

    def relieve(self) -> None:
        """Have a free actor make the call that takes far too long, too."""
        if self.waiting or not self.idle or not self.durations:
            return
        limit = max(SLOW_SECONDS, SLOW_FACTOR * median(self.durations))
        slow = [
            call
            for call in self.at_work
            if len(call.actors) == 1 and time.monotonic() - call.began > limit
        ]
        for call in slow[: len(self.idle)]:
            self._give(self.idle.popleft(), call)

    def dismiss(self) -> None:
        """End the actors' processes, and forget what they were at: after a failure, that fails
        too.
        """
        self.loop.watches.remove(self.relieve)
        self.waiting.clear()
        for reference in [reference for call in self.at_work for reference in call.actors]:
            self.loop.pending.pop(reference, None)
        for actor in self.actors:
            ray.kill(actor)
