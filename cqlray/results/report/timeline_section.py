"""The time line in the report: a figure, how busy each role was, the sessions, and what died."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cqlray.results.report.formatting import NOTHING, duration
from cqlray.results.report.page import figure, figures, paragraph, section, table
from cqlray.results.report.style import COLOURS, LEGEND_ROW, WIDTH, as_svg, legend_below
from cqlray.results.report.timeline import Mark, Session, TimeLine, of_stages, time_line
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.rows import Event

BAR_ROW = 0.34  # inches
ENDINGS = {
    "finished": "finished",
    "stopped": "stopped, to be resumed",
    "killed": "cut off: the process or its machine was lost",
    "under way": "under way",
}
SYMBOLS = (
    ("death", "X", COLOURS[1], "a process died"),
    ("frozen", "D", COLOURS[3], "a member was frozen"),
)
_UNITS = ((3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def timeline_section(run: RunRecord, events: Sequence[Event]) -> str:
    """The section; empty where nothing is known about the run's time.

    `events` are the rows of events.jsonl.
    """
    line = time_line(events, run.running)
    stages = _seconds(run, line)
    drawn = line if line.spans else of_stages(stages)
    if not drawn.spans:
        return ""
    whole = run.manifest.get("seconds")
    return section(
        "Time line",
        figures(figure(_draw(drawn), _alt(drawn, stages), _caption(drawn))),
        _stages(stages, line),
        (
            _sessions(line.sessions)
            if len(line.sessions) > 1 or any(s.ending == "killed" for s in line.sessions)
            else ""
        ),
        _marks(line.marks),
        (
            paragraph(f"The whole run took {duration(whole)}, tests included.", "soft")
            if whole
            else ""
        ),
    )


def _seconds(run: RunRecord, line: TimeLine) -> dict[str, float]:
    """How long each stage took over all sessions. The manifest does not yet have the stage that a
    running run is in.
    """
    seconds = dict(run.manifest.get("stages", {}))
    for stage in dict.fromkeys(span.stage for span in line.spans):
        if stage not in seconds:
            seconds[stage] = sum(
                span.end - span.begin for span in line.spans if span.stage == stage
            )
    return seconds


def _stages(stages: dict[str, float], line: TimeLine) -> str:
    """A line for each role in each stage; "busy" is the share of time that its processes spent
    working.
    """
    if not line.busy:
        return table(
            ["stage", "took"], [[stage, duration(seconds)] for stage, seconds in stages.items()]
        )
    rows = []
    for stage, seconds in stages.items():
        roles = [(role, busy) for (where, role), busy in line.busy.items() if where == stage]
        rows.append([stage, "", duration(seconds), "", ""])
        rows += [["", role, "", str(busy.processes), f"{busy.share:.0%}"] for role, busy in roles]
    return table(["stage", "role", "took", "processes", "busy"], rows, text=2)


def _sessions(sessions: Sequence[Session]) -> str:
    rows = []
    for s in sessions:
        began = f"{datetime.fromtimestamp(s.began, UTC):%Y-%m-%d %H:%M}"
        rows.append([began, s.host or NOTHING, ENDINGS[s.ending], duration(s.seconds)])
    return table(["session began (UTC)", "host", "then", "lasted"], rows, text=3)


def _marks(marks: Sequence[Mark]) -> str:
    rows = [[m.who, m.what, _outcome(m), duration(m.at)] for m in marks]
    return table(["who", "what", "then", "after"], rows, text=3) if rows else ""


def _outcome(mark: Mark) -> str:
    if mark.kind == "frozen":
        return "the other members went on"
    return "replaced; the run went on" if mark.went_on else "nothing is known of what followed"


def _alt(line: TimeLine, stages: dict[str, float]) -> str:
    deaths = sum(mark.kind == "death" for mark in line.marks)
    times = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stages.items())
    died = f" {deaths} process{'es' if deaths != 1 else ''} died." if deaths else ""
    sessions = f" {len(line.sessions)} sessions." if len(line.sessions) > 1 else ""
    return f"Time line of the stages: {times}.{sessions}{died}"


def _caption(line: TimeLine) -> str:
    if not line.sessions:
        return "The stages, one after the other."
    left_out = ", the time between sessions left out" if len(line.sessions) > 1 else ""
    return f"The stages over the time that the run was at work{left_out}."


@as_svg
def _draw(drawn: Any, line: TimeLine) -> None:
    """A bar for each stage in each session, a row for each stage; dashed lines between sessions."""
    stages = list(dict.fromkeys(span.stage for span in line.spans))
    total = max([span.end for span in line.spans] + [mark.at for mark in line.marks])
    size, unit = next((size, unit) for least, size, unit in _UNITS if total >= least)
    axes = drawn.add_subplot(xlabel=f"{unit} at work")
    for span in line.spans:
        # A stage that took no time is still visible.
        width = max(span.end - span.begin, total / 400) / size
        axes.barh(stages.index(span.stage), width, 0.62, span.begin / size, color=COLOURS[5])
    for session in line.sessions[1:]:
        label = "a new session" if session is line.sessions[1] else None
        axes.axvline(
            session.start / size, color="black", linestyle="--", linewidth=1.0, label=label
        )
    _draw_marks(axes, line.marks, stages, size)
    axes.set_yticks(range(len(stages)), stages)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_xlim(0.0, total / size * 1.02 or 1.0)
    axes.grid(False, axis="y")
    if axes.get_legend_handles_labels()[0]:
        legend_below(drawn, axes)
    drawn.set_size_inches(WIDTH, 0.75 + BAR_ROW * len(stages) + LEGEND_ROW * bool(drawn.legends))


def _draw_marks(axes: Any, marks: Sequence[Mark], stages: Sequence[str], size: float) -> None:
    for kind, symbol, colour, label in SYMBOLS:
        shown = [mark for mark in marks if mark.kind == kind and mark.stage in stages]
        if shown:
            times = [mark.at / size for mark in shown]
            heights = [stages.index(mark.stage) for mark in shown]
            axes.plot(times, heights, symbol, color=colour, markersize=8, label=label)
