"""What trackers show of a run: which steps are settled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cqlray.config.schema import EvaluationConfig, RunConfig
from cqlray.results.record import load_run
from cqlray.results.trackers.series import tracked_run
from tests.unit.results.run_directories import estimate, make_run, write_lines
from tests.unit.results.trackers.tracked import TESTS


@pytest.mark.parametrize("episodes", [0, 2])
def test_a_step_is_settled_when_all_its_judges_have_spoken(tmp_path: Path, episodes: int) -> None:
    config = RunConfig(evaluation=EvaluationConfig(episodes=episodes, fitted_q=True))
    directory = make_run(tmp_path / "run", evaluations=TESTS, finished=False, config=config)

    def members() -> set[float]:
        return {
            series.settled
            for series in tracked_run(load_run(directory)).series
            if series.name.startswith("member")
        }

    assert members() == {100}
    write_lines(
        directory / "fqe.jsonl",
        [estimate(member, 100, 1.0) for member in (0, 1)] + [estimate(0, 200, None)],
    )
    assert members() == {200}
    write_lines(
        directory / "fqe.jsonl",
        [estimate(member, updates, 1.0) for member in (0, 1) for updates in (100, 200)],
    )
    assert members() == {math.inf}


def test_without_tests_every_step_is_settled(tmp_path: Path) -> None:
    config = RunConfig(evaluation=EvaluationConfig(episodes=0))
    tracked = tracked_run(load_run(make_run(tmp_path / "run", finished=False, config=config)))
    assert {series.name: series.settled for series in tracked.series}["member-0"] == math.inf
