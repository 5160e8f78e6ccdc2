"""What fitted Q evaluation says of choosing a policy without the environment, and how far it can be
trusted, in sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cqlray import seeding
from cqlray.results.report.formatting import number
from cqlray.results.statistics.selection import (
    RankCorrelation,
    mean_spearman_among_members,
    rank_correlation,
    rank_correlation_among_members,
    spearman,
)
from cqlray.results.statistics.summary import RunRecord, student_rows
from cqlray.storage.rows import FittedQRow

LEAST = 5  # snapshots; a rank correlation of fewer means nothing
ENOUGH_MEMBERS = 5  # have 120 possible orders, so theirs is hardly chance; three have only 6
AGREE = 0.5  # fits whose rank correlation is lower disagree


@dataclass(frozen=True)
class Judged:
    """A snapshot that fitted Q evaluation judged."""

    member: int
    updates: int
    estimate: float
    true: float | None
    """Mean return of its test; None where it was not tested."""
    fits: tuple[float, ...] = ()
    """What each of the independent fits estimates; `estimate` is their mean."""
    held_out: float | None = None
    """The estimate over the held-out episodes, on which no Q was fitted; None where there are
    none.
    """
    bellman_error: float | None = None
    """Root mean squared error of Q on the held-out episodes, in rewards."""


@dataclass(frozen=True)
class Trust:
    """How similarly estimates and returns rank the tested snapshots."""

    overall: RankCorrelation
    """Over all snapshots; mostly a matter of training's progress."""
    among: RankCorrelation
    """Among members after equal updates, which is what the choice of a member depends on."""
    newer: float
    """The rank correlation of updates with returns: what the rule "the newest is best" achieves
    without any estimate.
    """


def judged_snapshots(run: RunRecord, rows: Sequence[FittedQRow]) -> list[Judged]:
    """The snapshots that rows of fqe.jsonl are about, sorted by member and updates. The last row
    about a snapshot counts; one whose estimate is not finite is left out.

    The estimate is in the environment's rewards (fqe_return); where no row has that, in the scaled
    rewards that training used.
    """
    scaled = all(row.get("fqe_return") is None for row in rows)
    latest = {(row["member"], row["updates"]): row for row in rows}
    found = []
    for (member, updates), row in sorted(latest.items(), key=lambda item: item[0]):
        estimate = row.get("fqe_value") if scaled else row.get("fqe_return")
        if estimate is None:
            continue
        test = student_rows(run, member).get(updates)
        mean = float(np.mean(test["returns"])) if test else float("nan")
        fits = [fit for fit in row.get("fqe_fits") or () if fit is not None]
        whole = len(fits) == len(row.get("fqe_fits") or ())
        found.append(
            Judged(
                member,
                updates,
                estimate=float(estimate),
                true=mean if np.isfinite(mean) else None,
                fits=tuple(fits) if whole else (),
                held_out=row.get("fqe_return_held_out"),
                bellman_error=row.get("fqe_bellman_error"),
            )
        )
    return found


def newest_of_members(judged: Iterable[Judged]) -> list[Judged]:
    """Each member's last of the snapshots, which are sorted by updates."""
    return list({snapshot.member: snapshot for snapshot in judged}.values())


def trust(pairs: Sequence[Judged], num_samples: int, seed: int) -> Trust:
    """Rank correlations over the tested snapshots; one that is not defined is NaN."""
    rows = [(s.estimate, s.true, s.member, s.updates) for s in pairs]
    estimates, returns, members, updates = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Trust(
        overall=rank_correlation(
            estimates, returns, members, seeding.generator(seed, "fitted-q-bootstrap"), num_samples
        ),
        among=rank_correlation_among_members(
            estimates,
            returns,
            members,
            updates,
            seeding.generator(seed, "fitted-q-bootstrap-members"),
            num_samples,
        ),
        newer=spearman(updates, returns) if len(pairs) > 1 else float("nan"),
    )


def trust_sentences(pairs: Sequence[Judged], found: Trust) -> list[str]:
    """How far the estimates can be trusted for choosing."""
    if not pairs:
        return [
            "No snapshot was tested in the environment, so how far these estimates can be trusted"
            " is not known."
        ]
    size = f"{len(pairs)} snapshot{'s' if len(pairs) != 1 else ''}"
    if len(pairs) < LEAST:
        return [f"Tests of {size} are too few to tell how far the estimates can be trusted."]
    if np.isnan(found.overall.rho):
        return [
            f"All {size} have the same estimate or the same return: there is no order to compare."
        ]
    newest = (
        "" if np.isnan(found.newer) else f'; "the newest is best" alone gives {found.newer:.2f}'
    )
    overall = (
        f"Spearman's rank correlation with the returns of {size} is"
        f" {_with_interval(found.overall)}{newest}."
    )
    return [overall, _choice_sentence(pairs, found)]


def _choice_sentence(pairs: Sequence[Judged], found: Trust) -> str:
    """How well the estimates choose among members."""
    members = len({snapshot.member for snapshot in pairs})
    if members < 3:
        trainings = "one training" if members == 1 else "two trainings"
        return (
            f"That is about the progress of {trainings}; it says nothing about choosing between"
            " members."
        )
    if np.isnan(found.among.rho):
        return (
            "No three members have differing tests after equal updates: how well a member is chosen"
            " is not known."
        )
    told = f"Among members after equal updates it is {_with_interval(found.among)}"
    together = max(Counter(snapshot.updates for snapshot in pairs).values())
    if together >= ENOUGH_MEMBERS:
        return f"{told}: {_verdict(found.among)}."
    lower = min(found.among, found.overall, key=lambda correlation: correlation.rho)
    return (
        f"{told}. With {together} members, whose order may be chance, the lower of the two counts:"
        f" {_verdict(lower)}."
    )


def _verdict(found: RankCorrelation) -> str:
    low, high = found.interval
    if low >= 0.5:
        return (
            "the estimates tell good policies from bad ones; between near equals they may still err"
        )
    if low > 0.0:
        return (
            "the estimates are right more often than not: good to weed out bad policies, not to"
            " find the best"
        )
    if high < 0.0:
        return "the estimates order the policies the wrong way round: do not choose by them"
    return "that cannot be told from chance: do not choose by these estimates alone"


def agreement_sentences(judged: Sequence[Judged]) -> list[str]:
    """What can be known without tests: whether independent fits agree, over all snapshots and on
    the choice.
    """
    size = max((len(snapshot.fits) for snapshot in judged), default=0)
    complete = [snapshot for snapshot in judged if len(snapshot.fits) == size]
    if size < 2 or len(complete) < 2:
        return []
    pairs = list(combinations(zip(*(snapshot.fits for snapshot in complete), strict=True), 2))
    members, updates = [s.member for s in complete], [s.updates for s in complete]
    overall = float(np.mean([spearman(*pair) for pair in pairs]))
    among = float(np.mean([mean_spearman_among_members(*pair, members, updates) for pair in pairs]))
    beside = "" if np.isnan(among) else f", among members after equal updates {among:.2f}"
    sentences = [
        f"The rank correlation of {size} independent fits is {rho_in_words(overall)} over"
        f" {len(complete)} snapshots{beside}."
    ]
    seen = [(s.held_out, s.estimate) for s in complete if s.held_out is not None]
    if len(seen) > 1:
        rho = spearman(*zip(*seen, strict=True))
        sentences.append(
            "That of estimates over held-out episodes alone with those over all episodes is"
            f" {rho_in_words(rho)}."
        )
    verdict = "The fits agree, which does not assure that they are right."
    last = newest_of_members(complete)
    if len(last) > 1:
        gap, differ = _gap(last)
        apart = f"The best and the second-best member are {number(gap)} apart"
        sentences.append(f"{apart}; from fit to fit such a gap differs by {number(differ)}.")
        if not gap > differ:
            verdict = (
                "The choice is within what the fits differ by: do not choose by these estimates"
                " alone."
            )
    if not overall >= AGREE or among < AGREE:
        verdict = "The fits disagree on the order: do not choose by these estimates alone."
    return [*sentences, verdict]


def _gap(last: Sequence[Judged]) -> tuple[float, float]:
    """The gap between the two best members, and by how much two members' gap differs from fit to
    fit (the median over all pairs).

    A fit uses the same initial networks and batches for every policy, so their common effect
    cancels in a gap.
    """
    best, second = sorted((float(np.mean(snapshot.fits)) for snapshot in last), reverse=True)[:2]
    gaps = [np.subtract(one.fits, other.fits) for one, other in combinations(last, 2)]
    differences = [abs(first - second) for gap in gaps for first, second in combinations(gap, 2)]
    return best - second, float(np.median(differences))


def chosen_sentences(judged: Sequence[Judged]) -> list[str]:
    """Which member's last snapshot is chosen by estimate and which by return, and what choosing by
    estimate costs.
    """
    last = newest_of_members(judged)
    by_estimate = max(last, key=lambda snapshot: snapshot.estimate)
    choice = (
        f"By estimate the choice is member {by_estimate.member} (estimate"
        f" {number(by_estimate.estimate)})"
    )
    means = [snapshot.true for snapshot in last if snapshot.true is not None]
    if by_estimate.true is None or len(means) < len(last):
        return [f"{choice}, of {len(last)} members' last snapshots."]
    by_return = last[int(np.argmax(means))]
    if by_return.member == by_estimate.member:
        return [
            f"{choice}, mean return {number(by_estimate.true)}; by return it is the same, of"
            f" {len(last)} members."
        ]
    cost = max(means) - by_estimate.true
    spread = max(means) - min(means)
    return [
        f"{choice}, mean return {number(by_estimate.true)}; by return it is member"
        f" {by_return.member}, {number(max(means))}. Choosing by estimate costs {number(cost)},"
        f" where {number(spread)} lie between the best and the worst of {len(last)} members."
    ]


def _with_interval(found: RankCorrelation) -> str:
    return f"{found.rho:.2f} (95% interval {found.interval.low:.2f} to {found.interval.high:.2f})"


def rho_in_words(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.2f}"
