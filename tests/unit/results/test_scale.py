"""The cost of a report grows with the rows of a run, and not faster: counted, not timed.

tests/nightly/test_scale.py has a run of a thousand members and the clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cqlray.results.record import load_run
from cqlray.results.report import plots, selection_section
from cqlray.results.report.html import render
from cqlray.results.statistics.summary import RunRecord, summarize
from cqlray.results.trackers.series import curves, tracked_run
from tests.unit.results.run_directories import large_run, write_lines

SETTINGS = [{"conservative_weight": weight} for weight in (1.0, 5.0)]


class Counted(dict[str, Any]):
    """A row that counts how often it is looked into."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        Counted.looks += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        Counted.looks += 1
        return super().get(key, default)


def counted(directory: Path, members: int, snapshots: int) -> RunRecord:
    settings = SETTINGS
    large_run(directory, members, snapshots, 3, settings, bootstrap_samples=100)
    record = load_run(directory)
    return dataclasses.replace(
        record,
        metrics=[Counted(row) for row in record.metrics],  # type: ignore[misc]
        evaluations=[Counted(row) for row in record.evaluations],  # type: ignore[misc]
    )


USES: dict[str, Callable[[RunRecord], object]] = {
    "the report": render,
    "the summary": lambda run: summarize(run, 100, 0),
    "TensorBoard": lambda run: list(curves(run)),
    "other trackers": tracked_run,
}


@pytest.mark.parametrize("use", USES)
def test_twice_the_members_and_snapshots_are_four_times_the_looks(tmp_path: Path, use: str) -> None:
    looks = []
    for size in (8, 16):
        run = counted(tmp_path / str(size), size, size)
        Counted.looks = 0
        USES[use](run)
        looks.append(Counted.looks / (size * size))
    assert looks[1] <= 1.1 * looks[0], "looks into rows, for each row"


def test_what_is_drawn_does_not_grow_for_ever() -> None:
    assert plots.spread(range(7), 10) == list(range(7))
    few = plots.spread(range(1000), 10)
    assert len(few) == 10
    assert (few[0], few[-1]) == (0, 999)
    assert plots.spread(range(1000), 1) == [999]
    assert len(set(plots.spread(range(101), 100))) == 100


def test_of_very_many_fits_some_are_compared_and_the_newest_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = large_run(tmp_path / "run", 8, 12, 3, bootstrap_samples=100)
    rows = [
        {"member": member, "updates": 100 * count, "fqe_return": count + 0.1 * member}
        for member in range(8)
        for count in range(1, 13)
    ]
    write_lines(run / "fqe.jsonl", rows)
    assert "All 96 snapshots" in render(load_run(run))
    monkeypatch.setattr(selection_section, "MOST_LISTED", 50)
    monkeypatch.setattr(selection_section, "MOST_COMPARED", 40)
    page = render(load_run(run))
    assert "The newest snapshot of each of 8 members, 96 in all" in page
    assert "These are 40 of 96, spread over the updates." in page
    assert "with the returns of 40 snapshots" in page
