"""Last, best and last-third scores: against numbers by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cqlray.results.record import load_run
from cqlray.results.statistics.scores import group_scores, member_scores
from cqlray.results.statistics.summary import RunRecord, summarize
from tests.unit.results.run_directories import make_run, reference, student

SWEEP = [{"conservative_weight": 1.0}, {"conservative_weight": 5.0}]


def rows_of(member: int, means: list[float], spread: float = 2.0) -> list[dict[str, object]]:
    """A test every 100 updates, of four episodes around each mean."""
    around = spread * np.array([-1.5, -0.5, 0.5, 1.5])
    return [
        student(member, 100 * (index + 1), list(mean + around)) for index, mean in enumerate(means)
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """Two settings of two members; the first member is two tests ahead, the second setting one, and
    these are their best.
    """
    rows = [
        *rows_of(0, [1.0, 9.0, 3.0, 4.0, 5.0, 99.0, 100.0]),
        *rows_of(1, [2.0, 2.0, 8.0, 8.0, 4.0]),
        *rows_of(2, [50.0, 40.0, 30.0, 20.0, 10.0, 98.0]),
        *rows_of(3, [10.0, 20.0, 30.0, 40.0, 50.0, 97.0]),
        reference("teacher", [1000.0]),
    ]
    return load_run(make_run(tmp_path / "run", SWEEP, evaluations=rows))


def test_members_by_hand(run: RunRecord) -> None:
    scores = member_scores(run)
    assert [score.member for score in scores] == [0, 1, 2, 3]
    assert all(score.updates == [100, 200, 300, 400, 500] for score in scores)
    assert [score.last for score in scores] == [5.0, 4.0, 10.0, 50.0]
    assert [score.best for score in scores] == [9.0, 8.0, 50.0, 50.0]
    assert [score.best_updates for score in scores] == [200, 300, 100, 500]  # the first of equals
    assert [score.last_third for score in scores] == [4.5, 6.0, 15.0, 45.0]  # two of five tests


def test_groups_by_hand(run: RunRecord) -> None:
    first, second = group_scores(run, 300, 0)
    assert (first.swept, first.members, second.swept, second.members) == (
        SWEEP[0],
        [0, 1],
        SWEEP[1],
        [2, 3],
    )
    assert (first.last.iqm, first.best.iqm, first.last_third.iqm) == (4.5, 8.5, 5.25)
    assert (second.last.iqm, second.best.iqm, second.last_third.iqm) == (30.0, 50.0, 30.0)
    for group in (first, second):
        for aggregate in (group.last, group.best, group.last_third):
            assert aggregate.interval.low < aggregate.iqm < aggregate.interval.high


def test_last_is_what_the_summary_says(run: RunRecord) -> None:
    for group, told in zip(
        group_scores(run, 300, 7), summarize(run, 300, 7)["groups"], strict=True
    ):
        assert (group.last.iqm, *group.last.interval) == (
            told["iqm"],
            told["iqm_low"],
            told["iqm_high"],
        )


@pytest.mark.parametrize(
    ("tests", "counted"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3), (10, 4)]
)
def test_last_third_is_rounded_up(tmp_path: Path, tests: int, counted: int) -> None:
    means = [0.0] * (tests - counted) + [1.0] * counted
    means[-counted] = 7.0
    (score,) = member_scores(
        load_run(make_run(tmp_path / "run", seeds=1, evaluations=rows_of(0, means)))
    )
    assert score.last_third == pytest.approx((7.0 + counted - 1) / counted)


def test_one_test_makes_the_three_equal(tmp_path: Path) -> None:
    record = load_run(
        make_run(tmp_path / "run", evaluations=[*rows_of(0, [3.0]), *rows_of(1, [4.0])])
    )
    assert all(score.last == score.best == score.last_third for score in member_scores(record))
    (group,) = group_scores(record, 200, 0)
    assert group.swept == {}
    assert group.last == group.best == group.last_third


def test_episodes_are_averaged_over_the_last_third(tmp_path: Path) -> None:
    rows = [student(0, 100 * k, [float(k * e * e) for e in range(1, 7)]) for k in range(1, 7)]
    (group,) = group_scores(load_run(make_run(tmp_path / "run", seeds=1, evaluations=rows)), 200, 0)
    assert group.last_third.iqm == pytest.approx(np.mean([5.5 * e * e for e in range(1, 7)]))


def test_a_member_without_a_test_is_left_out(tmp_path: Path) -> None:
    rows = [*rows_of(0, [1.0, 2.0, 3.0]), *rows_of(1, [4.0, 5.0]), *rows_of(2, [6.0])]
    record = load_run(make_run(tmp_path / "run", SWEEP, evaluations=rows))
    assert [(score.member, len(score.updates)) for score in member_scores(record)] == [
        (0, 3),
        (1, 2),
        (2, 1),
    ]
    # the setting that is complete, at the tests that both its members had
    (group,) = group_scores(record, 200, 0)
    assert (group.members, group.updates, group.last.iqm) == ([0, 1], [100, 200], 3.5)


def test_no_tests_no_scores(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "run"))
    assert member_scores(record) == []
    assert group_scores(record, 200, 0) == []


def test_a_nan_is_not_passed_over(tmp_path: Path) -> None:
    """A return that was not finite leaves open which test was best; what did not see it stands."""
    rows = rows_of(0, [1.0, 2.0, 3.0, 4.0])
    rows[1] = student(0, 200, [None, 2.0, 2.0, 2.0])
    record = load_run(make_run(tmp_path / "run", seeds=1, evaluations=rows))
    (score,) = member_scores(record)
    assert (score.last, score.last_third, score.best_updates) == (4.0, 3.5, None)
    assert np.isnan(score.best)
    (group,) = group_scores(record, 200, 0)
    assert group.last.iqm == 4.0
    assert np.isnan([group.best.iqm, *group.best.interval]).all()
