"""Fitted Q evaluation in the report: rank correlation, what it is worth, and which member each way
chooses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cqlray.results.record import load_run
from cqlray.results.report.selection_sentences import (
    Judged,
    Trust,
    agreement_sentences,
    chosen_sentences,
    judged_snapshots,
    trust,
    trust_sentences,
)
from cqlray.results.statistics.resampling import Interval
from cqlray.results.statistics.selection import (
    RankCorrelation,
    mean_spearman_among_members,
    rank_correlation,
    rank_correlation_among_members,
    spearman,
)
from tests.unit.results.report.test_html import page
from tests.unit.results.run_directories import Row, estimate, events, make_run, student, write_lines

SNAPSHOTS = [(member, updates) for member in range(4) for updates in (100, 200, 300)]


def judged_run(directory: Path, sign: float = 1.0, **changes: object) -> Path:
    """Four members whose returns rise with updates and member; estimates follow them, or go against
    them.
    """
    rows = [student(m, u, [10.0 * m + u, 10.0 * m + u + 2.0]) for m, u in SNAPSHOTS]
    run = make_run(directory, seeds=4, evaluations=rows)
    write_lines(
        run / "fqe.jsonl",
        [fitted_estimate(m, u, sign * (10.0 * m + u) / 3.0, **changes) for m, u in SNAPSHOTS],
    )
    return run


def fitted_estimate(member: int, updates: int, value: float, **changes: object) -> Row:
    """An estimate that also has what each of two fits, and the held-out episodes, gave."""
    fits = {
        "fqe_fits": [value - 0.25, value + 0.25],
        "fqe_return_held_out": value,
        "fqe_bellman_error": 0.5,
    }
    return estimate(member, updates, value, **{"fqe_value": -1.0, **fits, **changes})


# -- rank correlation ------------------------------------------------------------------------------


def test_spearman_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for size in (2, 3, 10, 40):
        one, other = generator.integers(0, 6, size), generator.normal(size=size)
        expected = float(spearmanr(one, other).statistic) if len(set(one)) > 1 else float("nan")
        np.testing.assert_allclose(spearman(one, other), expected, atol=1e-12)
    assert np.isnan(spearman([1.0, 1.0], [1.0, 2.0]))


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        one = generator.normal(size=40)
        other = 0.6 * one + 0.8 * generator.normal(size=40)  # Spearman: 6 / pi * asin(0.3)
        low, high = rank_correlation(one, other, np.arange(40), generator, 200).interval
        hits += low <= 6.0 / np.pi * np.arcsin(0.3) <= high
    assert 50 <= hits <= 60


def test_snapshots_of_one_member_do_not_count_as_many() -> None:
    generator = np.random.default_rng(2)
    one, other = (
        np.repeat(generator.normal(size=5), 8) + 0.01 * generator.normal(size=40) for _ in range(2)
    )
    apart = rank_correlation(one, other, np.arange(40), np.random.default_rng(3), 400).interval
    together = rank_correlation(
        one, other, np.repeat(np.arange(5), 8), np.random.default_rng(3), 400
    ).interval
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_undefined_and_wrong_input() -> None:
    generator = np.random.default_rng(0)
    for one, other in (([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        found = rank_correlation(one, other, np.arange(len(one)), generator)
        assert np.isnan(found.rho) and np.isnan(found.interval).all()
    with pytest.raises(ValueError, match="not all"):
        rank_correlation([1.0, 2.0], [1.0], [0, 1], generator)
    with pytest.raises(ValueError, match="finite"):
        rank_correlation([1.0, float("nan")], [1.0, 2.0], [0, 1], generator)


# -- among members ---------------------------------------------------------------------------------


def grid(members: int, counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Members and updates of snapshots, all at the same counts."""
    return np.repeat(np.arange(members), counts), np.tile(np.arange(1, counts + 1) * 100, members)


def test_among_members_it_is_the_mean_of_scipys_over_update_counts() -> None:
    generator = np.random.default_rng(4)
    members, updates = grid(6, 7)
    there = generator.random(42) < 0.6
    members, updates = members[there], updates[there]
    first, second = generator.integers(0, 4, len(members)), generator.normal(size=len(members))
    expected = []
    for count in np.unique(updates):
        own = updates == count
        if own.sum() >= 3 and len(set(first[own])) > 1:
            expected.append(float(spearmanr(first[own], second[own]).statistic))
    assert 2 <= len(expected) < 7, "some counts are left out"
    assert mean_spearman_among_members(first, second, members, updates) == pytest.approx(
        np.mean(expected)
    )
    shuffled = generator.permutation(len(members))
    columns = [column[shuffled] for column in (first, second, members, updates)]
    found = rank_correlation_among_members(*columns, np.random.default_rng(0), 200)
    assert (
        found.rho == pytest.approx(np.mean(expected))
        and found.interval.low < found.rho < found.interval.high
    )


def test_progress_that_all_members_share_is_no_order_among_them() -> None:
    """Four members, twenty snapshots each, all getting better; estimates have the members exactly
    backwards.
    """
    members, updates = grid(4, 20)
    returns, estimates = updates + 10.0 * members, updates - 10.0 * members
    generator = np.random.default_rng(0)
    assert rank_correlation(estimates, returns, members, generator, 200).interval.low > 0.97
    found = rank_correlation_among_members(estimates, returns, members, updates, generator, 200)
    assert found == RankCorrelation(-1.0, Interval(-1.0, -1.0))


def test_among_members_the_interval_holds_chance() -> None:
    """Members' estimates and returns have nothing to do with each other; many snapshots of each do
    not hide that.
    """
    generator = np.random.default_rng(5)
    members, updates = grid(5, 10)
    above = 0
    for _ in range(60):
        first, second = (
            np.repeat(generator.normal(size=5), 10) + 0.2 * generator.normal(size=50)
            for _ in range(2)
        )
        above += (
            rank_correlation_among_members(
                first, second, members, updates, generator, 200
            ).interval.low
            > 0.0
        )
    assert above <= 6


def test_fewer_than_three_members_at_a_count_have_no_order() -> None:
    generator = np.random.default_rng(0)
    for members, updates in (
        ([], []),
        ([0, 1], [5, 5]),
        ([0, 0, 0], [5, 6, 7]),
        ([0, 1, 2], [5, 5, 6]),
    ):
        values = np.arange(len(members), dtype=float)
        found = rank_correlation_among_members(values, values, members, updates, generator)
        assert np.isnan(found.rho) and np.isnan(found.interval).all()
    with pytest.raises(ValueError, match="not all"):
        rank_correlation_among_members([1.0], [1.0], [0], [1, 2], generator)
    with pytest.raises(ValueError, match="finite"):
        rank_correlation_among_members([1.0, 2.0], [1.0, float("inf")], [0, 1], [1, 1], generator)


# -- in words --------------------------------------------------------------------------------------

NOTHING = RankCorrelation(float("nan"), Interval(float("nan"), float("nan")))
GOOD, BAD = RankCorrelation(0.8, Interval(0.6, 0.9)), RankCorrelation(-0.6, Interval(-0.9, -0.3))
WRONG_WAY, RIGHT_WAY = "wrong way round: do not choose by them", "tell good policies from bad ones"


def some_tests(members: int, counts: int = 4) -> list[Judged]:
    return [
        Judged(member, updates, 1.0, 1.0) for member in range(members) for updates in range(counts)
    ]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.6, 0.9, RIGHT_WAY),
        (0.1, 0.8, "right more often than not"),
        (-0.2, 0.8, "cannot be told from chance"),
        (-0.9, -0.3, WRONG_WAY),
    ],
)
def test_trust_is_as_plain_as_the_interval(low: float, high: float, words: str) -> None:
    among = RankCorrelation((low + high) / 2, Interval(low, high))
    progress, sentence = trust_sentences(some_tests(8, 1), Trust(BAD, among, 0.5))
    assert words in sentence and f"{low:.2f} to {high:.2f}" in sentence
    assert (
        '"the newest is best" alone gives 0.50' in progress
        and "of 8 snapshots is -0.60" in progress
    )


@pytest.mark.parametrize(
    ("members", "overall", "among", "words"),
    [
        (5, GOOD, BAD, WRONG_WAY),
        (5, BAD, GOOD, RIGHT_WAY),
        (4, GOOD, BAD, WRONG_WAY),
        (4, BAD, GOOD, WRONG_WAY),
        (3, GOOD, GOOD, RIGHT_WAY),
        (5, GOOD, NOTHING, "how well a member is chosen is not known"),
        (
            2,
            GOOD,
            NOTHING,
            "about the progress of two trainings; it says nothing about choosing between members",
        ),
        (
            1,
            GOOD,
            NOTHING,
            "about the progress of one training; it says nothing about choosing between members",
        ),
    ],
)
def test_trust_is_of_the_choice_and_not_of_progress(
    members: int, overall: RankCorrelation, among: RankCorrelation, words: str
) -> None:
    _, sentence = trust_sentences(some_tests(members, 5), Trust(overall, among, 0.9))
    assert words in sentence
    assert (RIGHT_WAY in sentence) == (words == RIGHT_WAY)
    assert ("whose order may be chance" in sentence) == (members in (3, 4))


def test_estimates_that_know_progress_alone_are_not_trusted() -> None:
    members, updates = grid(4, 20)
    backwards = [
        Judged(int(m), int(u), u - 10.0 * m, u + 10.0 * m)
        for m, u in zip(members, updates, strict=True)
    ]
    progress, choice = trust_sentences(backwards, trust(backwards, 200, 0))
    assert (
        "of 80 snapshots is 1.00" in progress
        and '"the newest is best" alone gives 1.00' in progress
    )
    assert "it is -1.00" in choice and WRONG_WAY in choice and RIGHT_WAY not in progress + choice


def test_few_or_no_tests_say_so() -> None:
    unknown = Trust(NOTHING, NOTHING, float("nan"))
    assert "not known" in trust_sentences([], unknown)[0]
    assert "too few" in trust_sentences(some_tests(1, 4), unknown)[0]
    assert "no order" in trust_sentences(some_tests(3, 3), unknown)[0]
    at_one_count = trust_sentences(some_tests(6, 1), Trust(GOOD, GOOD, float("nan")))
    assert "newest" not in at_one_count[0], "where all have the same updates none is newer"


# -- from the data alone ---------------------------------------------------------------------------


def fitted(*fits: tuple[float, float], counts: int = 3) -> list[Judged]:
    """A member for each pair of fits, and earlier snapshots that both fits find worse alike."""
    return [
        Judged(
            member,
            updates,
            sum(own) / 2 + updates,
            None,
            (own[0] + updates, own[1] + updates),
            own[0] + updates,
        )
        for member, own in enumerate(fits)
        for updates in range(100, 100 * counts + 1, 100)
    ]


def test_fits_that_agree_are_said_to_and_no_more() -> None:
    sentences = agreement_sentences(fitted((0.0, 0.5), (4.0, 4.75), (8.0, 8.25), (16.0, 16.0)))
    assert sentences == [
        (
            "The rank correlation of 2 independent fits is 1.00 over 12 snapshots, among members"
            " after equal updates 1.00."
        ),
        "That of estimates over held-out episodes alone with those over all episodes is 1.00.",
        # Fits differ by -0.5, -0.75, -0.25 and 0: of the six pairs' gaps by 0.25, 0.25, 0.25, 0.5,
        # 0.5 and 0.75.
        (
            "The best and the second-best member are 7.88 apart; from fit to fit such a gap differs"
            " by 0.375."
        ),
        "The fits agree, which does not assure that they are right.",
    ]


def test_a_choice_within_what_the_fits_differ_by_is_none() -> None:
    # Of the pairs' gaps by 0.25, 0.5, 0.75, 2.5, 3 and 3.25.
    *_, gap, verdict = agreement_sentences(fitted((0.0, 3.0), (4.0, 4.0), (8.0, 8.5), (8.5, 8.25)))
    assert "second-best member are 0.125 apart; from fit to fit such a gap differs by 1.62" in gap
    assert verdict.endswith("what the fits differ by: do not choose by these estimates alone.")


def test_fits_that_disagree_on_members_are_not_saved_by_progress() -> None:
    first, *_, verdict = agreement_sentences(
        fitted((0.0, 9.0), (1.0, 8.0), (2.0, 7.0), (20.0, 20.0))
    )
    assert "over 12 snapshots, among members after equal updates 0.20" in first
    assert spearman([0.0, 1.0, 2.0, 20.0], [9.0, 8.0, 7.0, 20.0]) == pytest.approx(0.2)
    assert float(first.split(" fits is ")[1].split()[0]) > 0.7
    assert verdict == "The fits disagree on the order: do not choose by these estimates alone."


def test_fits_of_one_member_leave_no_choice() -> None:
    first, _, verdict = agreement_sentences(fitted((0.0, 0.5), counts=6))
    assert first.endswith("is 1.00 over 6 snapshots.") and verdict.startswith("The fits agree")
    backwards = [Judged(0, u, 0.5, None, (float(u), float(-u))) for u in (1, 2, 3)]
    first, verdict = agreement_sentences(backwards)  # without held-out episodes
    assert "-1.00" in first and "do not choose" in verdict
    constant = [Judged(0, u, 0.5, None, (1.0, float(u))) for u in (1, 2, 3)]
    assert "do not choose" in agreement_sentences(constant)[-1]


def test_without_fits_nothing_is_said() -> None:
    assert (
        agreement_sentences([])
        == agreement_sentences([Judged(0, 1, 1.0, None), Judged(1, 1, 2.0, None)])
        == []
    )
    assert agreement_sentences([Judged(0, 1, 1.0, None, (1.0, 2.0))]) == []


# -- the choice ------------------------------------------------------------------------------------


def test_chosen_members_and_what_choosing_costs() -> None:
    # an earlier snapshot is not chosen from
    first = [Judged(0, 100, 9.0, 0.0), Judged(0, 200, 1.0, -10.0)]
    (sentence,) = chosen_sentences([*first, Judged(1, 200, 3.0, -20.0), Judged(2, 200, 2.0, -50.0)])
    assert (
        "member 1 (estimate 3.00), mean return -20.00; by return it is member 0, -10.00" in sentence
    )
    assert "costs 10.00, where 40.00 lie between" in sentence
    (sentence,) = chosen_sentences([Judged(0, 200, 1.0, -10.0), Judged(1, 200, 3.0, 5.0)])
    assert (
        "member 1 (estimate 3.00), mean return 5.00" in sentence
        and "by return it is the same, of 2 members" in sentence
    )
    (sentence,) = chosen_sentences([Judged(0, 200, 1.0, None), Judged(1, 200, 3.0, None)])
    assert (
        sentence
        == "By estimate the choice is member 1 (estimate 3.00), of 2 members' last snapshots."
    )


# -- in the report ---------------------------------------------------------------------------------


def test_the_report_has_the_section_only_where_policies_were_judged(tmp_path: Path) -> None:
    assert "Choosing without" not in page(make_run(tmp_path / "none")).text
    found = page(judged_run(tmp_path / "run"))
    assert "Choosing without the environment" in found.text
    assert "with the returns of 12 snapshots is 1.00 (95% interval 1.00 to 1.00)" in found.text
    assert "Among members after equal updates it is 1.00" in found.text and RIGHT_WAY in found.text
    assert "independent fits" not in found.text, "tests say more"
    assert any(
        "rank correlation 1.00" in (attrs["alt"] or "") for tag, attrs in found.tags if tag == "img"
    )
    assert "wrong way round" in page(judged_run(tmp_path / "against", -1.0)).text


def test_what_it_cost_stands_beside_what_training_cost(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run")
    assert "It took its processes 6.0 s." in page(run).text
    # learners at work for 30 s in the first session, 40 s in the second
    write_lines(run / "events.jsonl", events())
    found = page(run).text
    assert "It took its processes 6.0 s, training its learners 1 min 10 s." in found
    assert "On held-out episodes Q misses its targets by 0.500 in reward" in found
    # what its learners did then is not known
    killed = [row for row in events() if row.get("what") != "stopped"]
    write_lines(run / "events.jsonl", killed)
    assert "It took its processes 6.0 s." in page(run).text


def test_without_tests_the_estimates_stand_alone(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run")
    (run / "evaluations.jsonl").write_text("")
    text = page(run).text
    assert "how far these estimates can be trusted is not known" in text
    assert "The rank correlation of 2 independent fits is 1.00 over 12 snapshots" in text
    assert "The fits agree, which does not assure that they are right." in text
    assert "By estimate the choice is member 3" in text


def test_rows_without_a_number_are_left_out(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run", fqe_return=None, fqe_value=2.5)
    record = load_run(run)
    assert {
        s.estimate
        for s in judged_snapshots(
            record, [fitted_estimate(0, 100, 0.0, fqe_return=None, fqe_value=2.5)]
        )
    } == {2.5}
    mixed = [
        fitted_estimate(0, 100, 7.0),
        fitted_estimate(1, 100, 0.0, fqe_return=None),
        fitted_estimate(0, 100, 8.0),
        fitted_estimate(0, 200, 1.0),
    ]
    mixed.append(fitted_estimate(0, 200, 1.0, fqe_return=None, fqe_fits=[None, 1.0]))
    assert judged_snapshots(record, mixed) == [
        Judged(0, 100, 8.0, 101.0, (7.75, 8.25), 8.0, 0.5)
    ], "the last written counts"
    assert "no order to compare" in page(run).text
