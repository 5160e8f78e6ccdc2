"""How the driver uses Ray: start actors of plain classes, await replies, interpret errors, and
watch for nodes that leave.

Besides this file, only joining.py, nodes.py, metrics.py and liveness.py import ray, and jobs.py
imports Ray's job client.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar

import ray
from ray._private.state import state
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cqlray.errors import ActorLost, EnvironmentFailure, Lost, NotShared, StorageFailure, UserError
from cqlray.runtime import event_loop
from cqlray.runtime.calls import Call, Calls
from cqlray.runtime.event_loop import Stop

T = TypeVar("T")
# Ray's errors for a dead process or node: for its actors, and for objects that only it held.
LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
FROM_RAY = RayError  # all of these, what an actor raised, and every other error of Ray's
# Ray's unstable interfaces that we use here and in joining.py; pyproject bounds Ray's version
# because of them.
PRIVATE = (
    "ray._private.services.ConsolePopen",
    "ray._private.services.find_bootstrap_address",
    "ray._private.state.state.actor_table",
    "ray._private.state.state.get_draining_nodes",
    "ray._private.state.state.get_max_resources_from_cluster_config",
    "ray.experimental.internal_kv._internal_kv_get",
    "ray.ObjectRef._on_completed",
    "ray.actor.ActorHandle._actor_id",
    "ray.actor.ActorHandle.__ray_ready__",
    "ray.actor.ActorHandle.__ray_call__",
)
# A shard or test that kills its process this often is not bad luck.
TASK_RETRIES = 3
SECONDS_BETWEEN_COMPLAINTS = 10.0
SECONDS_BETWEEN_LOOKS = 2.0  # at nodes that are being drained; a spot machine has 30 s left, or 120
SECONDS_OF_A_TICK = 0.5


# -- replies -------------------------------------------------------------------------------------


def put(value: Any) -> Any:
    """Put a value into the object store; returns a reference to it."""
    return ray.put(value)


async def value(reference: Any) -> Any:
    """Await the value that a reference stands for.

    Raises:
        Lost: a process or node that it needs is gone. EnvironmentFailure, UserError: raised in an
        actor. ActorLost: an actor raised something else, or cannot be started.
    """
    loop = asyncio.get_running_loop()
    arrival: asyncio.Future[Any] = loop.create_future()
    # Ray's own __await__ goes through two more futures, at twice the time.
    reference._on_completed(partial(_arrived, loop, arrival, reference))
    found = await arrival
    if isinstance(found, RayTaskError):  # first, since it can also be an instance of other types
        if isinstance(found.cause, LOST):
            raise _gone(found.cause, of_argument=True) from found
        if isinstance(found.cause, EnvironmentFailure | UserError):
            raise found.cause from None
        raise ActorLost(f"{describe(found)} (--debug shows the traceback)") from found
    if isinstance(found, LOST):
        raise _gone(found, of_argument=False) from found
    if isinstance(found, RayError):
        raise found
    return found


def _arrived(
    loop: asyncio.AbstractEventLoop, arrival: asyncio.Future[Any], reference: Any, found: Any
) -> None:
    """Pass a value on, from Ray's thread; the argument `reference` keeps the value until then."""
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(_settle, arrival, found)


def _settle(arrival: asyncio.Future[Any], found: Any) -> None:
    if not arrival.done():  # nobody waits any more
        arrival.set_result(found)


def describe(error: BaseException) -> str:
    """One line for an error of Ray's; if an actor raised it, the line is about that error."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    if lines and isinstance(cause, LOST):
        return lines[0]
    return ": ".join([type(cause).__name__, *lines[:1]])


def _gone(error: Exception, of_argument: bool) -> Exception:
    """The error to raise for a dead process: Lost, or what its __init__ raised and would again.

    If an argument is gone, `error` is about the actor that should have made it.
    """
    if (
        isinstance(error, RayActorError)
        and error.actor_init_failed
        and "ray.exceptions." not in str(error)
    ):
        return _failed_creation(str(error))
    return Lost(describe(error), of_argument, isinstance(error, ActorDiedError))


def _failed_creation(text: str) -> Exception:
    """The error of an actor whose __init__ raised, of which Ray keeps only the text."""
    last = text.strip().splitlines()[-1]
    name, _, message = last.partition(": ")
    for kind in (UserError, StorageFailure, NotShared):
        if name == f"{kind.__module__}.{kind.__name__}":
            return kind(message)
    # The name that `start` made unique, or the class.
    role = re.search(r"ray::(.+?)(?: \(\w{6}\):\w+)?\.__init__", text)
    return ActorLost(f"{role[1] if role else 'a process'} cannot be started: {last}")


# -- actors --------------------------------------------------------------------------------------


class Reply:
    """The reply to an actor's call: awaiting it gives the first result, as often as you like."""

    def __init__(self, references: Sequence[Any], actor: Actor, method: str) -> None:
        self.references, self.actor, self.method = references, actor, method
        self.call: Call | None = None  # once it is awaited

    def __await__(self) -> Generator[Any, None, Any]:
        self.call = self.call or Call(self.actor, self.method)
        return self.actor.calls.answer(value(self.references[0]), self.call).__await__()


class Actor:
    """An object of a plain class in a separate process, somewhere on the cluster."""

    def __init__(self, handle: Any, role: str, name: str, calls: Calls) -> None:
        self.handle, self.role, self.name, self.calls = handle, role, name, calls
        self.id: str = handle._actor_id.hex()

    def ask(self, method: str, *args: Any, returns: int = 1) -> Reply:
        """Call a method; each of several results has a separate reference. The method receives the
        values of references among its arguments."""
        call = getattr(self.handle, method)
        if returns == 1:
            return Reply([call.remote(*args)], self, method)
        return Reply(call.options(num_returns=returns).remote(*args), self, method)

    def kill(self) -> None:
        """End the actor's process."""
        ray.kill(self.handle)


class Cluster:
    """The actors of one run, and a thread that looks after them and the cluster's nodes.

    A thread, because a node or control store that does not answer must not block the event loop.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        on_drain: Callable[[], None] = lambda: None,
        call_timeout: float | None = None,
    ) -> None:
        """`on_drain` is called when this process's node will soon be gone. `call_timeout` is the
        most seconds that an actor's call may take.
        """
        self.say, self.on_drain = say, on_drain
        self.calls = Calls(say, call_timeout, _place)
        self.troubles: set[str] = set()  # errors of the thread that were reported
        self.started: list[weakref.ref[Actor]] = []
        self.starting: dict[Any, float] = {}  # actors not known to have started, and since when
        self.looked = 0.0  # when we last checked them
        self.looked_for_drains = 0.0
        self.leaving: frozenset[str] = frozenset()  # ids of actors whose nodes are being drained
        self.closed = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True, name="cqlray-watch")
        self.watch.start()

    def start(
        self,
        role: type[Any],
        *args: Any,
        cpus: float,
        gpus: int = 0,
        retried: bool = False,
        spread: bool = False,
        name: str | None = None,
    ) -> Actor:
        """Start an actor. `retried` ones are stateless: after a death Ray restarts them and repeats
        their calls.

        `spread` ones go to the nodes in turn. `name`, made unique, is shown in the dashboard.
        """
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if name is not None:
            options["name"] = f"{name} ({uuid.uuid4().hex[:6]})"
        if spread:
            options["scheduling_strategy"] = "SPREAD"
        if retried:
            options |= {"max_restarts": -1, "max_task_retries": TASK_RETRIES}
        handle = ray.remote(**options)(role).remote(*args)
        self.starting[handle.__ray_ready__.remote()] = time.monotonic()
        actor = Actor(handle, role.__name__, name or role.__name__, self.calls)
        self.started.append(weakref.ref(actor))
        return actor

    def is_leaving(self, actor: Actor) -> bool:
        """Whether an actor's node is being drained (spot notice, `ray drain-node`, SIGTERM)."""
        return actor.id in self.leaving

    def close(self) -> None:
        """End all actors, which would keep their CPUs while a traceback refers to them."""
        self.closed.set()
        self.watch.join(SECONDS_OF_A_TICK)  # a call from it after Ray's end would restart Ray
        self.kill_all()

    def kill_all(self) -> None:
        """End the actors that something still refers to."""
        for actor in self._held():
            actor.kill()

    def _held(self) -> list[Actor]:
        return [actor for reference in list(self.started) if (actor := reference()) is not None]

    def _watch(self) -> None:
        while not self.closed.wait(SECONDS_OF_A_TICK):
            for look in (self._look_for_drains, self._complain, self.calls.look):
                try:
                    look()
                except RayError:  # no answer now; ask again
                    pass
                except Exception as error:  # whatever it is, the thread must not end
                    self._report(describe(error))

    def _report(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.add(trouble)
            self.say(f"looking after the cluster failed, and is tried again ({trouble})")

    def _look_for_drains(self) -> None:
        now = time.monotonic()
        if now - self.looked_for_drains < SECONDS_BETWEEN_LOOKS:
            return
        self.looked_for_drains = now
        draining = state.get_draining_nodes()
        if not draining:
            self.leaving = frozenset()
            return
        places = {actor.id: state.actor_table(actor.id) for actor in self._held()}
        self.leaving = frozenset(
            actor
            for actor, entry in places.items()
            if entry.get("Address", {}).get("NodeID") in draining
        )
        if ray.get_runtime_context().get_node_id() in draining:
            self.on_drain()

    def _complain(self) -> None:
        """Report actors that have waited long to start: the cluster is full or still growing."""
        now = time.monotonic()
        if not self.starting or now - self.looked < SECONDS_BETWEEN_COMPLAINTS:
            return
        self.looked = now
        asked = list(self.starting)
        there, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        for reference in there:
            del self.starting[reference]
        late = sum(
            now - since >= SECONDS_BETWEEN_COMPLAINTS for since in list(self.starting.values())
        )
        if late:
            free, total = ray.available_resources(), ray.cluster_resources()
            kinds = [
                f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s free"
                for kind in ("CPU", "GPU")
            ]
            self.say(f"waiting for {late} processes to start ({', '.join(kinds)})")


def _place(actor: Any) -> str:
    """Name the node that an actor is on."""
    found = state.actor_table(actor.id).get("Address", {}).get("NodeID")
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    return f"node {names[found]}" if found in names else "no node yet"


def run_with_actors(
    main: Callable[[Cluster], Coroutine[Any, Any, T]], say: Callable[[str], None]
) -> T:
    """Run a coroutine that starts actors; they end with it.

    Raises:
        Interrupted: asked to stop. Also whatever the coroutine raises.
    """
    stop = Stop(say)
    with closing(Cluster(say, stop.on_drain)) as cluster:
        stop.handle_signals()
        return event_loop.run(lambda: main(cluster), stop)
