"""Verdicts on policies beside the log, by cases computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t

from cqlray.results.record import fitted_q_rows, load_run
from cqlray.results.statistics.resampling import Interval
from cqlray.results.statistics.verdict import (
    Verdict,
    combined,
    dataset_interval,
    difference_interval,
    headline,
    verdicts,
)
from tests.unit.results.run_directories import estimate, make_run, reference, student, write_lines

LOG = {
    "log_return": -2.5,
    "log_return_error": 0.01,
    "log_return_fitted": -2.5,
    "log_tail_weight": 0.1,
    "log_episodes": 400,
    "fqe_return_error": 0.01,
    "gain_error": 0.01,
}


def judged(member: int, gain: float, updates: int = 200, **changes: Any) -> dict[str, Any]:
    """An estimate of a member that lies `gain` above the log's return in both fits."""
    both = [gain, gain]
    row = estimate(member, updates, -2.5 + gain, fqe_fits=[-2.5 + gain] * 2)
    return {**row, **LOG, "gain_fits": both, **changes}


def of_run(directory: Path, rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    write_lines(directory / "fqe.jsonl", rows)
    run = load_run(directory)
    return verdicts(run, fitted_q_rows(run), 200, 0)


def test_the_interval_of_one_member_and_fit_is_students() -> None:
    """4 episodes, a standard error of 0.5, three degrees of freedom: 2 +- 3.182 * 0.5."""
    assert combined([[2.0]], [0.5], 4) == pytest.approx((0.409, 3.591), abs=1e-3)


def test_members_and_fits_that_disagree_widen_the_interval() -> None:
    """Means over members 1 and 3 (variance 2, over 2 members 1), over fits 1 and 3 likewise, and
    0.25 from the episodes: 2.25 in all, with 2.25^2 / (0.25^2 / 10 + 1 + 1) degrees of freedom.
    """
    found = combined([[0.0, 2.0], [2.0, 4.0]], [0.5, 0.5], 11)
    freedom = 2.25**2 / (0.25**2 / 10 + 2.0)
    half = student_t.ppf(0.975, freedom) * 1.5
    assert found == pytest.approx((2.0 - half, 2.0 + half))


@pytest.mark.parametrize(("means", "episodes"), [([[math.nan]], 9), ([[1.0]], 1)])
def test_nothing_is_known_of_one_episode_or_of_what_is_not_finite(
    means: list[list[float]], episodes: int
) -> None:
    assert np.isnan(combined(means, [0.1], episodes)).all()


def test_equal_numbers_have_no_width() -> None:
    assert combined([[1.0, 1.0]], [0.0], 5) == (1.0, 1.0)


def test_a_difference_of_independent_numbers() -> None:
    """3 [2, 5] minus 1 [-3, 2]: 2 - hypot(1, 1) to 2 + hypot(2, 4)."""
    found = difference_interval(3.0, Interval(2.0, 5.0), 1.0, Interval(-3.0, 2.0))
    assert found == pytest.approx((2.0 - math.sqrt(2.0), 2.0 + math.sqrt(20.0)))


def test_the_datasets_interval_holds_that_of_its_episodes() -> None:
    generator = np.random.default_rng(0)
    returns = generator.gamma(2.0, 100.0, 50)
    counts, edges = np.histogram(returns, bins=20)
    facts = {"mean": returns.mean(), "histogram": {"edges": edges, "counts": counts}}
    mean, ends = dataset_interval({"returns": facts})
    half = student_t.ppf(0.975, 49) * returns.std(ddof=1) / math.sqrt(50)
    assert mean == pytest.approx(returns.mean())
    assert half <= mean - ends.low <= 1.2 * half


def test_better_worse_and_what_cannot_be_told(tmp_path: Path) -> None:
    """The issue's own case: CQL at -3.7 where the log earned -2.71 is worse."""
    for gain, verdict in ((-1.0, "worse"), (1.0, "better"), (0.01, "cannot be told")):
        directory = make_run(tmp_path / str(gain))
        (found,) = of_run(directory, [judged(0, gain), judged(1, gain)])
        assert (found.by, found.reference, found.verdict) == ("estimates", "log", verdict)
        assert found.value == pytest.approx(-2.5 + gain) and found.reference_value == -2.5
        assert found.difference == pytest.approx(gain)


def test_what_fitted_q_misses_of_the_log_is_part_of_the_interval(tmp_path: Path) -> None:
    rows = [judged(0, 0.5, log_return_fitted=-1.9), judged(1, 0.5, log_return_fitted=-1.9)]
    (found,) = of_run(make_run(tmp_path / "run"), rows)
    assert found.misfit == pytest.approx(0.6) and found.verdict == "cannot be told"
    assert found.difference_interval.low < -0.1


def test_a_log_that_is_mostly_cut_off_tells_nothing(tmp_path: Path) -> None:
    rows = [judged(member, 1.0, log_tail_weight=0.6) for member in (0, 1)]
    (found,) = of_run(make_run(tmp_path / "run"), rows)
    assert found.verdict == "cannot be told" and found.difference_interval.low > 0.0


def test_estimates_after_equal_updates_are_compared(tmp_path: Path) -> None:
    rows = [judged(0, 1.0, 200), judged(1, 1.0, 200), judged(0, 9.0, 300)]
    (found,) = of_run(make_run(tmp_path / "run"), rows)
    assert found.difference == 1.0
    assert of_run(make_run(tmp_path / "other"), rows[1:]) == []


def test_rows_that_were_not_held_against_the_log_give_no_verdict(tmp_path: Path) -> None:
    assert of_run(make_run(tmp_path / "run"), [estimate(0, 200, 1.0), estimate(1, 200, 1.0)]) == []


def test_rows_that_lack_a_part_or_differ_in_their_fits_give_no_verdict(tmp_path: Path) -> None:
    cut = {key: value for key, value in judged(0, 1.0).items() if key != "log_episodes"}
    assert of_run(make_run(tmp_path / "a", seeds=1), [cut]) == []
    assert of_run(make_run(tmp_path / "b", seeds=1), [judged(0, 1.0, gain_fits=[1.0])]) == []
    assert of_run(make_run(tmp_path / "c", seeds=1), [judged(0, 1.0, gain_fits=[])]) == []


def test_tests_stand_beside_the_dataset_and_the_teacher_on_the_same_episodes(
    tmp_path: Path,
) -> None:
    """Each student is 5 above the teacher in every episode: better without doubt, as the episodes
    are the same, though their returns differ by 400.
    """
    played = [-500.0, -300.0, -100.0]
    rows = [student(m, 200, [value + 5.0 for value in played]) for m in (0, 1)]
    run = make_run(tmp_path / "run", evaluations=[*rows, reference("teacher", played)])
    data, teacher = of_run(run, [judged(0, -1.0), judged(1, -1.0)])[:2]
    assert (data.reference, data.value, data.reference_value) == ("dataset", -295.0, -700.0)
    assert (teacher.reference, teacher.difference) == ("teacher", 5.0)
    assert teacher.difference_interval == (5.0, 5.0) and teacher.verdict == "better"


def test_tests_come_before_estimates_and_the_best_of_cql_before_baselines(tmp_path: Path) -> None:
    settings = [
        {"algorithm": "cql", "conservative_weight": 1.0},
        {"algorithm": "cql", "conservative_weight": 5.0},
        {"algorithm": "bc", "conservative_weight": 1.0},
    ]
    run = make_run(tmp_path / "run", settings, seeds=1)
    found = of_run(run, [judged(0, 0.1), judged(1, 0.2), judged(2, 0.9)])
    first = headline(found)
    assert len(found) == 3 and first is not None and first.members == [1]
    assert headline([]) is None
