"""Training curves of run directories made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

from cqlray.results.record import load_run
from cqlray.results.report.groups import groups_of
from cqlray.results.report.html import render
from cqlray.results.report.plots import MOST_TESTS
from cqlray.results.report.training_section import QUANTITIES, curves_of, medians, training_curves
from cqlray.results.statistics.summary import RunRecord
from tests.unit.results.run_directories import make_run

SWEEP = [{"conservative_weight": 1.0}, {"conservative_weight": 5.0}]


def run_of(directory: Path, rows: list[dict[str, Any]]) -> RunRecord:
    run = load_run(make_run(directory, SWEEP))
    return dataclasses.replace(run, metrics=cast(Any, rows))


def row(member: int, updates: int, value: float | None) -> dict[str, Any]:
    values = dict.fromkeys(QUANTITIES, value)
    return {"stage": "students", "member": member, "updates": updates, **values}


def test_median_is_of_a_settings_members_that_came_so_far(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [])
    group = groups_of(run)[0]
    first, second = group.members[:2]
    curves = {first: {100: 1.0, 200: 5.0}, second: {100: 3.0}}
    assert medians(group, curves) == {100: 2.0, 200: 5.0}


def test_report_draws_each_quantity_that_was_reported(tmp_path: Path) -> None:
    rows = [row(m, u, m + u / 100) for m in range(4) for u in (100, 200)]
    for entry in rows:
        del entry["multiplier"]
    page = render(run_of(tmp_path / "run", rows))
    shown = [name for name in QUANTITIES.values() if f"Training curves: {name} over" in page]
    assert shown == list(QUANTITIES.values())[:-1]


def test_report_without_metrics_has_no_training_curves(tmp_path: Path) -> None:
    assert "Training curves" not in render(run_of(tmp_path / "run", []))


def test_a_value_that_is_null_or_not_finite_is_a_gap(tmp_path: Path) -> None:
    rows = [row(0, 100, None), row(0, 200, float("nan")), row(0, 300, 2.0)]
    run = run_of(tmp_path / "run", rows)
    assert list(curves_of(run, "td_loss")[0]) == [100, 200, 300]
    assert "nan" not in training_curves(groups_of(run), curves_of(run, "td_loss"), "loss").lower()


def test_the_number_of_points_is_bounded(tmp_path: Path) -> None:
    group = groups_of(run_of(tmp_path / "run", []))[0]
    curves = {group.members[0]: dict.fromkeys(range(10 * MOST_TESTS), 1.0)}
    assert len(medians(group, curves)) == MOST_TESTS
