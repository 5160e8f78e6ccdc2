"""Choosing a policy without the environment: what fitted Q evaluation says, and how far it can be
trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cqlray import seeding
from cqlray.results.record import lines
from cqlray.results.report.formatting import count, duration, number
from cqlray.results.report.groups import groups_of
from cqlray.results.report.page import figure, figures, folded, paragraph, section, table
from cqlray.results.report.plots import legend_below, looks, svg_figure
from cqlray.results.report.timeline import time_line
from cqlray.results.statistics.selection import (
    RankCorrelation,
    mean_spearman_among_members,
    rank_correlation,
    rank_correlation_among_members,
    spearman,
)
from cqlray.results.statistics.summary import Row, RunRecord, student_rows

LEAST = 5  # snapshots; of fewer a rank correlation says nothing
ENOUGH_MEMBERS = 5  # whose order is hardly chance: one of 120, where that of three is one of 6
AGREE = 0.5  # rank correlation, below which fits are said to disagree
MOST_ROWS = 16  # of the table that is shown at once


@dataclass(frozen=True)
class Judged:
    """A snapshot that fitted Q evaluation judged."""

    member: int
    updates: int
    estimate: float
    true: float | None
    """Mean return of its test; None where it was not tested."""
    fits: tuple[float, ...] = ()
    """The estimate by each of the independent fits, whose mean it is."""
    held_out: float | None = None
    """The estimate over the episodes that no Q was fitted on; None where there are none."""
    bellman_error: float | None = None
    """Root mean squared error of Q on those episodes, in rewards."""


@dataclass(frozen=True)
class Trust:
    """How alike estimates and the returns of tests order the tested snapshots."""

    overall: RankCorrelation
    """Over all snapshots: mostly about training's progress."""
    among: RankCorrelation
    """Among members after equal updates: about the choice of a member."""
    newer: float
    """The rank correlation of updates with returns, which "the newest is best" has without any
    estimate.
    """


def choice_section(run: RunRecord, rows: Sequence[Row], num_samples: int, seed: int) -> str:
    """The section; empty for a run whose policies were not judged.

    `rows` are those of fqe.jsonl.
    """
    judged = judged_snapshots(run, rows)
    if not judged:
        return ""
    pairs = [snapshot for snapshot in judged if snapshot.true is not None]
    found = trust(pairs, num_samples, seed)
    said = trust_sentences(pairs, found) + (
        agreement_sentences(judged) if len(pairs) < LEAST else []
    )
    listed = table(
        ["member", "updates", "estimate", "mean return of its test"],
        [_line(snapshot) for snapshot in judged],
    )
    return section(
        "Choosing without the environment",
        *map(paragraph, [*said, *chosen_sentences(judged)]),
        (
            figures(
                figure(
                    _scatter(run, pairs),
                    _alt(pairs, found.overall),
                    "Estimate against mean return, a point for each snapshot.",
                )
            )
            if pairs
            else ""
        ),
        listed if len(judged) <= MOST_ROWS else folded(f"All {len(judged)} snapshots", listed),
        paragraph(_note(run, rows, judged), "soft"),
    )


def judged_snapshots(run: RunRecord, rows: Sequence[Row]) -> list[Judged]:
    """Of the rows of fqe.jsonl, sorted by member and updates: the last row of each, left out where
    it was not finite.

    The estimate is in the environment's rewards (fqe_return); where no row has that, in the rewards
    as trained on.
    """
    name = "fqe_return" if any(row.get("fqe_return") is not None for row in rows) else "fqe_value"
    latest = {(row["member"], row["updates"]): row for row in rows}
    latest = {key: row for key, row in latest.items() if row.get(name) is not None}
    tested = {member: student_rows(run, member) for member in {member for member, _ in latest}}
    found = []
    for (member, updates), row in sorted(latest.items()):
        test = tested[member].get(updates)
        mean = float(np.mean(test["returns"])) if test else float("nan")
        fits = row.get("fqe_fits") or ()
        found.append(
            Judged(
                member,
                updates,
                estimate=float(row[name]),
                true=mean if np.isfinite(mean) else None,
                fits=() if None in fits else tuple(fits),
                held_out=row.get("fqe_return_held_out"),
                bellman_error=row.get("fqe_bellman_error"),
            )
        )
    return found


def trust(pairs: Sequence[Judged], num_samples: int, seed: int) -> Trust:
    """Of the tested snapshots; what is not defined is NaN."""
    columns = (
        [s.estimate for s in pairs],
        [s.true for s in pairs],
        [s.member for s in pairs],
        [s.updates for s in pairs],
    )
    estimates, returns, members, updates = (
        np.array(column, dtype=np.float64) for column in columns
    )
    streams = (
        seeding.stream(seed, purpose)
        for purpose in ("fitted-q-bootstrap", "fitted-q-bootstrap-members")
    )
    one, other = map(np.random.default_rng, streams)
    return Trust(
        overall=rank_correlation(estimates, returns, members, one, num_samples),
        among=rank_correlation_among_members(
            estimates, returns, members, updates, other, num_samples
        ),
        newer=spearman(updates, returns) if len(pairs) > 1 else float("nan"),
    )


def trust_sentences(pairs: Sequence[Judged], found: Trust) -> list[str]:
    """How far the estimates can be trusted to choose, in plain words."""
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
        f"Spearman's rank correlation with the returns of {size} is {_told(found.overall)}{newest}."
    )
    return [overall, _choice_sentence(pairs, found)]


def _choice_sentence(pairs: Sequence[Judged], found: Trust) -> str:
    """What the estimates are worth to choose a member by."""
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
    told = f"Among members after equal updates it is {_told(found.among)}"
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
    """What the data alone says of trust: whether independent fits agree, over all snapshots and on
    the choice.
    """
    size = max((len(snapshot.fits) for snapshot in judged), default=0)
    own = [snapshot for snapshot in judged if len(snapshot.fits) == size]
    if size < 2 or len(own) < 2:
        return []
    pairs = list(combinations(zip(*(snapshot.fits for snapshot in own), strict=True), 2))
    members, updates = [s.member for s in own], [s.updates for s in own]
    overall = float(np.mean([spearman(*pair) for pair in pairs]))
    among = float(np.mean([mean_spearman_among_members(*pair, members, updates) for pair in pairs]))
    beside = "" if np.isnan(among) else f", among members after equal updates {among:.2f}"
    sentences = [
        f"The rank correlation of {size} independent fits is {_rho(overall)} over {len(own)}"
        f" snapshots{beside}."
    ]
    seen = [(s.held_out, s.estimate) for s in own if s.held_out is not None]
    if len(seen) > 1:
        rho = spearman(*zip(*seen, strict=True))
        sentences.append(
            "That of estimates over held-out episodes alone with those over all episodes is"
            f" {_rho(rho)}."
        )
    verdict = "The fits agree, which does not assure that they are right."
    last = list({snapshot.member: snapshot for snapshot in own}.values())
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
    """Between the two best members, and how much two members' gap differs from fit to fit, the
    median over all pairs.

    Fits share initial networks and batches among policies, so what they have in common falls out of
    a gap.
    """
    best, second = sorted((float(np.mean(snapshot.fits)) for snapshot in last), reverse=True)[:2]
    gaps = [np.subtract(one.fits, other.fits) for one, other in combinations(last, 2)]
    differences = [abs(first - second) for gap in gaps for first, second in combinations(gap, 2)]
    return best - second, float(np.median(differences))


def chosen_sentences(judged: Sequence[Judged]) -> list[str]:
    """Which member's last snapshot each way of choosing takes, and what choosing by estimate
    costs.
    """
    last = list({snapshot.member: snapshot for snapshot in judged}.values())
    by_estimate = max(last, key=lambda snapshot: snapshot.estimate)
    choice = (
        f"By estimate the choice is member {by_estimate.member} (estimate"
        f" {number(by_estimate.estimate)})"
    )
    tested = [snapshot for snapshot in last if snapshot.true is not None]
    if by_estimate.true is None or len(tested) < len(last):
        return [f"{choice}, of {len(last)} members' last snapshots."]
    means = [snapshot.true for snapshot in tested if snapshot.true is not None]
    by_return = tested[int(np.argmax(means))]
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


def _note(run: RunRecord, rows: Sequence[Row], judged: Sequence[Judged]) -> str:
    """What an estimate is, and what it cost."""
    said = (
        "Estimate: fitted Q evaluation of each snapshot's policy on the dataset alone, mean over"
        " the first states. It is a discounted return, so its order counts, not its size."
    )
    errors = [snapshot.bellman_error for snapshot in judged if snapshot.bellman_error is not None]
    if errors:
        said += (
            f" On held-out episodes Q misses its targets by {number(float(np.median(errors)))} in"
            " reward (median snapshot)."
        )
    line = time_line(lines(run, "events.jsonl"), run.running)
    training = line.busy.get(("students", "learner"))
    # A session that was killed leaves no word of how long its learners were at work.
    known = training and all(session.ending != "killed" for session in line.sessions)
    beside = (
        f", training its learners {duration(training.busy_seconds)}" if training and known else ""
    )
    return (
        f"{said} It took its processes"
        f" {duration(sum(row.get('seconds') or 0.0 for row in rows))}{beside}."
    )


def _told(found: RankCorrelation) -> str:
    return f"{found.rho:.2f} (95% interval {found.interval.low:.2f} to {found.interval.high:.2f})"


def _rho(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.2f}"


def _line(snapshot: Judged) -> list[str]:
    return [
        str(snapshot.member),
        count(snapshot.updates),
        number(snapshot.estimate),
        number(snapshot.true),
    ]


def _alt(pairs: Sequence[Judged], found: RankCorrelation) -> str:
    return (
        f"Scatter plot of estimates against mean returns of {len(pairs)} snapshots; rank"
        f" correlation {_rho(found.rho)}."
    )


def _scatter(run: RunRecord, pairs: Sequence[Judged]) -> str:
    """Each member's last snapshot is outlined: these are what is chosen from."""
    last = {snapshot.member: snapshot.updates for snapshot in pairs}
    groups = groups_of(run)
    with svg_figure() as (drawn, svg):
        axes: Any = drawn.add_subplot(xlabel="mean return of its test", ylabel="estimate")
        for group, look in zip(groups, looks(groups), strict=True):
            own = [snapshot for snapshot in pairs if snapshot.member in group.members]
            if not own:
                continue
            label = look.label if len(groups) > 1 else "a snapshot (outlined: a member's last)"
            edges = ["black" if s.updates == last[s.member] else "none" for s in own]
            x, y = [s.true for s in own], [s.estimate for s in own]
            axes.scatter(
                x, y, 26.0, look.colour, alpha=0.8, edgecolors=edges, linewidths=0.9, label=label
            )
        legend_below(drawn, axes)
    return svg.getvalue()
