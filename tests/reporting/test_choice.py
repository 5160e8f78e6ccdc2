"""Fitted Q evaluation in the report: rank correlation, what it is worth, and which member each way chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cqlray.evaluation.selection import RankCorrelation, rank_correlation, spearman
from cqlray.evaluation.statistics import Interval
from cqlray.reporting.choice import Judged, chosen_sentences, judged_snapshots, trust_sentences
from cqlray.reporting.record import load_run
from tests.reporting.run_directories import Row, make_run, student, write_lines
from tests.reporting.test_report import page

SNAPSHOTS = [(member, updates) for member in range(4) for updates in (100, 200, 300)]


def judged_run(directory: Path, sign: float = 1.0, **changes: object) -> Path:
    """Four members whose returns rise with updates and member; estimates follow them, or go against them."""
    rows = [student(m, u, [10.0 * m + u, 10.0 * m + u + 2.0]) for m, u in SNAPSHOTS]
    run = make_run(directory, seeds=4, evaluations=rows)
    write_lines(run / "fqe.jsonl", [estimate(m, u, sign * (10.0 * m + u) / 3.0, **changes) for m, u in SNAPSHOTS])
    return run


def estimate(member: int, updates: int, value: float, **changes: object) -> Row:
    return {"member": member, "updates": updates, "fqe_value": -1.0, "fqe_return": value, "seconds": 0.5, **changes}


# -- rank correlation --------------------------------------------------------------------------------------------------


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
    one, other = (np.repeat(generator.normal(size=5), 8) + 0.01 * generator.normal(size=40) for _ in range(2))
    apart = rank_correlation(one, other, np.arange(40), np.random.default_rng(3), 400).interval
    together = rank_correlation(one, other, np.repeat(np.arange(5), 8), np.random.default_rng(3), 400).interval
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


# -- in words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.6, 0.9, "tell good policies from bad ones"),
        (0.1, 0.8, "right more often than not"),
        (-0.2, 0.8, "cannot be told from chance"),
        (-0.9, -0.3, "wrong way round"),
    ],
)
def test_trust_is_as_plain_as_the_interval(low: float, high: float, words: str) -> None:
    pairs = [Judged(0, updates, 1.0, 1.0) for updates in range(8)]
    (sentence,) = trust_sentences(pairs, RankCorrelation((low + high) / 2, Interval(low, high)))
    assert words in sentence and f"{low:.2f} to {high:.2f}" in sentence


def test_few_or_no_tests_say_so() -> None:
    nothing = RankCorrelation(float("nan"), Interval(float("nan"), float("nan")))
    assert "not known" in trust_sentences([], nothing)[0]
    assert "too few" in trust_sentences([Judged(0, 1, 1.0, 1.0)] * 4, nothing)[0]
    assert "no order" in trust_sentences([Judged(0, 1, 1.0, 1.0)] * 9, nothing)[0]


def test_chosen_members_and_what_choosing_costs() -> None:
    first = [Judged(0, 100, 9.0, 0.0), Judged(0, 200, 1.0, -10.0)]  # an earlier snapshot is not chosen from
    (sentence,) = chosen_sentences([*first, Judged(1, 200, 3.0, -20.0), Judged(2, 200, 2.0, -50.0)])
    assert "member 1 (estimate 3.00), mean return -20.00; by return it is member 0, -10.00" in sentence
    assert "costs 10.00, where 40.00 lie between" in sentence
    (sentence,) = chosen_sentences([Judged(0, 200, 1.0, -10.0), Judged(1, 200, 3.0, 5.0)])
    assert "member 1 (estimate 3.00), mean return 5.00" in sentence and "by return it is the same, of 2 members" in sentence
    (sentence,) = chosen_sentences([Judged(0, 200, 1.0, None), Judged(1, 200, 3.0, None)])
    assert sentence == "By estimate the choice is member 1 (estimate 3.00), of 2 members' last snapshots."


# -- in the report -----------------------------------------------------------------------------------------------------


def test_the_report_has_the_section_only_where_policies_were_judged(tmp_path: Path) -> None:
    assert "Choosing without" not in page(make_run(tmp_path / "none")).text
    found = page(judged_run(tmp_path / "run"))
    assert "Choosing without the environment" in found.text
    assert "with the returns of 12 snapshots is 1.00 (95% interval 1.00 to 1.00): the estimates tell" in found.text
    assert "It took 6.0 s in all" in found.text
    assert any("rank correlation 1.00" in (attrs["alt"] or "") for tag, attrs in found.tags if tag == "img")
    assert "wrong way round" in page(judged_run(tmp_path / "against", -1.0)).text


def test_without_tests_the_estimates_stand_alone(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run")
    (run / "evaluations.jsonl").write_text("")
    text = page(run).text
    assert "how far these estimates can be trusted is not known" in text
    assert "By estimate the choice is member 3" in text


def test_rows_without_a_number_are_left_out(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run", fqe_return=None, fqe_value=2.5)
    record = load_run(run)
    assert {s.estimate for s in judged_snapshots(record, [estimate(0, 100, 0.0, fqe_return=None, fqe_value=2.5)])} == {2.5}
    mixed = [estimate(0, 100, 7.0), estimate(1, 100, 0.0, fqe_return=None), estimate(0, 100, 8.0)]
    assert judged_snapshots(record, mixed) == [Judged(0, 100, 8.0, 101.0)]  # the last written
    assert "no order to compare" in page(run).text
