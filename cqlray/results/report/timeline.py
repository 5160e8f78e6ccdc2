"""The time line of a run, from its events: sessions, stages, how busy each role was, what died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cqlray.storage.rows import Event


@dataclass
class Session:
    """One process's work on the run, from its start to its end."""

    began: float  # unix seconds
    start: float  # seconds that the run had been at work when it began
    host: str
    seconds: float = 0.0
    ending: str = "unknown"
    """finished, stopped, killed (its events just break off) or under way."""


@dataclass(frozen=True)
class Span:
    """A stage in one session. Begin and end are in seconds at work since the run began, without the
    time between sessions.
    """

    stage: str
    begin: float
    end: float


@dataclass(frozen=True)
class Mark:
    """Something that happened to the run."""

    at: float  # seconds at work since the run began
    kind: str  # death, frozen
    stage: str
    who: str
    what: str
    went_on: bool  # whether the run went on afterwards, which after a death means that it recovered


@dataclass
class Busy:
    """How busy the processes of one role were in a stage, over all sessions."""

    processes: int = 0
    busy_seconds: float = 0.0  # summed over processes
    seconds: float = 0.0  # the stage's, times processes

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.busy_seconds / self.seconds) if self.seconds > 0 else 0.0


@dataclass
class TimeLine:
    """What the events tell, in order of time."""

    sessions: list[Session] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    busy: dict[tuple[str, str], Busy] = field(default_factory=dict)  # by stage and role


def time_line(events: Sequence[Event], running: bool) -> TimeLine:
    """The time line that the rows of events.jsonl make; empty where there are none.

    A session that was killed ends with its last event, as what it did after that is not known.

    Args:
        events: the rows, in order of time.
        running: whether a process is at work on the run.
    """
    line = TimeLine()
    if not events:
        return line
    starts = [
        index
        for index, row in enumerate(events)
        if row["event"] == "session" and row["what"] in ("began", "resumed")
    ]
    starts = starts if starts[:1] == [0] else [0, *starts]
    worked = 0.0
    for first, following in zip(starts, [*starts[1:], len(events)], strict=True):
        last = following == len(events)
        session = _session(events[first:following], worked, running and last)
        line.sessions.append(session)
        _read(line, events[first:following], session, last)
        worked += session.seconds
    return line


def of_stages(stages: dict[str, float]) -> TimeLine:
    """The time line of a run without events: its stages, one after the other."""
    line, worked = TimeLine(), 0.0
    for stage, seconds in stages.items():
        line.spans.append(Span(stage, worked, worked + seconds))
        worked += seconds
    return line


def _session(rows: Sequence[Event], worked: float, running: bool) -> Session:
    endings = [
        row["what"]
        for row in rows
        if row["event"] == "session" and row["what"] in ("stopped", "finished")
    ]
    ending = endings[-1] if endings else "under way" if running else "killed"
    host = str(rows[0].get("host") or "")
    return Session(rows[0]["at"], worked, host, max(0.0, rows[-1]["at"] - rows[0]["at"]), ending)


def _read(line: TimeLine, rows: Sequence[Event], session: Session, last: bool) -> None:
    """Add one session's rows to the time line."""
    stage, begin, open_stage = "", session.start, False
    for index, row in enumerate(rows):
        at = session.start + max(0.0, row["at"] - session.began)
        match row["event"]:
            case "stage" if row["what"] == "began":
                stage, begin, open_stage = row["stage"], at, True
            case "stage":
                line.spans.append(
                    Span(row["stage"], begin if row["stage"] == stage else session.start, at)
                )
                open_stage = False
            case "busy":
                busy = line.busy.setdefault((row["stage"], row["role"]), Busy())
                busy.processes = max(busy.processes, row["processes"])
                busy.busy_seconds += row["busy_seconds"]
                busy.seconds += row["seconds"] * row["processes"]
            case "death":
                after = not last or any(_shows_progress(later) for later in rows[index + 1 :])
                line.marks.append(Mark(at, "death", stage, row["role"], row["what"], after))
            case "frozen":
                what = f"non-finite; frozen as it was after {row['updates']:,} updates"
                line.marks.append(Mark(at, "frozen", stage, f"member {row['member']}", what, True))
    if open_stage:
        line.spans.append(Span(stage, begin, session.start + session.seconds))


def _shows_progress(row: Event) -> bool:
    """Whether only a run that went on could have written the row."""
    return row["event"] == "frozen" or (
        row["event"] in ("stage", "session") and row["what"] in ("ended", "finished")
    )
