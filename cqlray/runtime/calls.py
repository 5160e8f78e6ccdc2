"""Report calls that no process answers, and end them where the user set a limit.

What hangs (an environment, a GPU, a mount, an actor that no node has room for) does not end by
itself and raises nothing, so a run would wait for ever and say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from cqlray.errors import Hung

T = TypeVar("T")
SECONDS_OF_SILENCE = 60.0  # after which a call is reported
USUAL_FACTOR = 4.0  # unless the last such call took long, too: then after this many times as long


class Actor(Protocol):
    """Who is called."""

    name: str
    role: str

    def kill(self) -> None: ...


class Call:
    """A call that somebody awaits."""

    def __init__(self, actor: Actor, method: str) -> None:
        self.actor, self.method = actor, method
        self.began = time.monotonic()
        self.reported = False
        self.hung: str | None = None  # the reason why its actor was killed


class Calls:
    """The calls that are awaited; one thread awaits them, another looks after them."""

    def __init__(
        self, say: Callable[[str], None], limit: float | None, place: Callable[[Actor], str]
    ) -> None:
        """`limit` is the most seconds that a call may take. `place` names an actor's node."""
        self.say, self.limit, self.place = say, limit, place
        self.open: set[Call] = set()
        self.usual: dict[tuple[str, str], float] = {}  # seconds of a role's last such call

    async def answer(self, result: Awaitable[T], call: Call) -> T:
        """Await the result of a call.

        Raises:
            Hung: it took longer than the limit, and the actor was killed.
            Also whatever `result` raises.
        """
        self.open.add(call)
        try:
            found = await result
        except Exception:
            if call.hung:
                raise Hung(call.hung) from None
            raise
        finally:
            self.open.discard(call)
        self.usual[call.actor.role, call.method] = time.monotonic() - call.began
        return found

    def look(self) -> None:
        """Report calls that have taken long, and kill the actors of those beyond the limit."""
        now = time.monotonic()
        for call in list(self.open):
            seconds = now - call.began
            if self.limit is not None and seconds > self.limit:
                self._end(call)
            elif not call.reported and seconds > self._patience(call):
                call.reported = True
                clock = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
                until = "" if self.limit is None else f", for at most {self.limit:g} s"
                self.say(
                    f"no answer from {self._who(call)} for {seconds:.0f} s ({call.method}, since"
                    f" {clock}); waiting for it{until}"
                )

    def _patience(self, call: Call) -> float:
        usual = self.usual.get((call.actor.role, call.method), 0.0)
        return max(SECONDS_OF_SILENCE, USUAL_FACTOR * usual)

    def _end(self, call: Call) -> None:
        if call.hung is None:
            limit = f"{self.limit:g} s (resources.call_timeout)"
            call.hung = f"{self._who(call)} did not answer {call.method} within {limit}"
            call.actor.kill()

    def _who(self, call: Call) -> str:
        return f"{call.actor.name} on {self.place(call.actor)}"
