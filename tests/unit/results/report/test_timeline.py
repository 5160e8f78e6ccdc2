"""The time line: from events to sessions, stages and marks, and its section of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqlray.results.report.html import write_report
from cqlray.results.report.timeline import Mark, Session, Span, TimeLine, of_stages, time_line
from tests.unit.results.report.test_html import HOSTILE, page
from tests.unit.results.run_directories import events, make_run, write_lines


def test_events_by_hand() -> None:
    line = time_line(events(), running=False)
    assert line.sessions == [
        Session(1_795_439_408.0, 0.0, "node-a", 40.0, "stopped"),
        Session(1_795_448_448.0, 40.0, "node-b", 21.0, "finished"),
    ]
    assert line.spans == [
        Span("teacher", 0.0, 20.0),
        Span("students", 20.0, 40.0),
        Span("students", 41.0, 61.0),
    ]
    assert [(m.at, m.kind, m.stage, m.who, m.went_on) for m in line.marks] == [
        (25.0, "death", "students", "learner", True),
        (30.0, "frozen", "students", "member 1", True),
        (51.0, "death", "students", "evaluator", True),
    ]
    assert {key: own.share for key, own in line.busy.items()} == {
        ("teacher", "rollout worker"): 0.25,
        ("students", "learner"): 70.0 / 80.0,
    }


@pytest.mark.parametrize(("running", "ending"), [(False, "killed"), (True, "under way")])
def test_a_session_without_an_end(running: bool, ending: str) -> None:
    line = time_line(events()[:6], running)
    assert line.sessions[0].ending == ending
    assert line.spans[-1] == Span("students", 20.0, 25.0)  # to the last thing that is known
    assert line.marks == [
        Mark(25.0, "death", "students", "learner", "The actor died.", went_on=False)
    ]


def test_a_killed_session_that_was_resumed_is_known_as_such() -> None:
    rows = [row for row in events() if row.get("what") != "stopped"]
    assert time_line(rows, running=False).sessions[0].ending == "killed"
    assert all(mark.went_on for mark in time_line(rows, running=False).marks)


def test_no_events_no_line() -> None:
    assert time_line([], running=True) == TimeLine()
    assert of_stages({"teacher": 2.0, "students": 3.0}).spans == [
        Span("teacher", 0.0, 2.0),
        Span("students", 2.0, 5.0),
    ]


def test_events_that_begin_in_the_middle_are_read() -> None:
    line = time_line(events()[3:], running=False)
    assert line.spans[0] == Span("teacher", 0.0, 0.0)
    assert [session.ending for session in line.sessions] == ["stopped", "finished"]


def test_the_report_tells_it_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stages={"teacher": 20.0, "students": 40.0})
    write_lines(run / "events.jsonl", events())
    text = page(run).text
    for words in (
        "Time line",
        "node-a",
        "stopped, to be resumed",
        "node-b",
        "88%",
        "25%",
        "The node died.",
    ):
        assert words in text
    assert "learnerThe actor died.replaced; the run went on25 s" in text
    assert (
        "member 1non-finite; frozen as it was after 4,000 updatesthe other members went on30 s"
        in text
    )
    alt = [
        attrs["alt"] or ""
        for tag, attrs in page(run).tags
        if tag == "img" and "Time line" in (attrs["alt"] or "")
    ]
    assert alt == [
        "Time line of the stages: teacher 20 s, students 40 s. 2 sessions. 2 processes died."
    ]


def test_old_runs_show_their_stages_alone(tmp_path: Path) -> None:
    text = page(make_run(tmp_path / "run")).text
    assert "Time line" in text and "students1 h 1 min" in text
    assert "session began" not in text and "processes" not in text
    assert "Time line" not in page(make_run(tmp_path / "none", stages={})).text


def test_events_are_text_and_never_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [
        *events()[:2],
        {"at": 1_795_439_409.0, "event": "death", "role": HOSTILE, "what": HOSTILE},
    ]
    rows.append({"at": 1_795_439_410.0, "event": "session", "what": "resumed", "host": HOSTILE})
    write_lines(run / "events.jsonl", rows)
    assert "<script" not in write_report(run).read_text()
    assert page(run).text.count(HOSTILE) == 3
