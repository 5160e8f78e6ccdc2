"""Choosing a policy without the environment: what fitted Q evaluation says, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cqlray import seeding
from cqlray.evaluation.selection import RankCorrelation, rank_correlation
from cqlray.evaluation.summary import Row, RunRecord, student_rows
from cqlray.reporting.groups import groups_of
from cqlray.reporting.page import figure, figures, folded, paragraph, section, table
from cqlray.reporting.plots import legend_below, looks, svg_figure
from cqlray.reporting.words import count, duration, number

LEAST = 5  # snapshots; of fewer a rank correlation says nothing
MOST_ROWS = 16  # of the table that is shown at once


@dataclass(frozen=True)
class Judged:
    """A snapshot that fitted Q evaluation judged."""

    member: int
    updates: int
    estimate: float
    true: float | None
    """Mean return of its test; None where it was not tested."""


def choice_section(run: RunRecord, rows: Sequence[Row], num_samples: int, seed: int) -> str:
    """The section; empty for a run whose policies were not judged. `rows` are those of fqe.jsonl."""
    judged = judged_snapshots(run, rows)
    if not judged:
        return ""
    pairs = [snapshot for snapshot in judged if snapshot.true is not None]
    found = _correlation(pairs, num_samples, seed)
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    listed = table(["member", "updates", "estimate", "mean return of its test"], [_line(snapshot) for snapshot in judged])
    note = (
        "Estimate: fitted Q evaluation of each snapshot's policy on the dataset alone, mean over the first states. It is a "
        f"discounted return, so its order counts, not its size. It took {duration(seconds)} in all."
    )
    return section(
        "Choosing without the environment",
        *map(paragraph, [*trust_sentences(pairs, found), *chosen_sentences(judged)]),
        figures(figure(_scatter(run, pairs), _alt(pairs, found), "Estimate against mean return, a point for each snapshot."))
        if pairs
        else "",
        listed if len(judged) <= MOST_ROWS else folded(f"All {len(judged)} snapshots", listed),
        paragraph(note, "soft"),
    )


def judged_snapshots(run: RunRecord, rows: Sequence[Row]) -> list[Judged]:
    """Of the rows of fqe.jsonl, sorted by member and updates; estimates that were not finite are left out.

    The estimate is in the environment's rewards (fqe_return); where no row has that, in the rewards as trained on.
    """
    name = "fqe_return" if any(row.get("fqe_return") is not None for row in rows) else "fqe_value"
    latest = {(row["member"], row["updates"]): row for row in rows if row.get(name) is not None}
    tested = {member: student_rows(run, member) for member in {member for member, _ in latest}}
    found = []
    for (member, updates), row in sorted(latest.items()):
        test = tested[member].get(updates)
        mean = float(np.mean(test["returns"])) if test else None
        found.append(Judged(member, updates, float(row[name]), mean if mean is not None and np.isfinite(mean) else None))
    return found


def trust_sentences(pairs: Sequence[Judged], found: RankCorrelation) -> list[str]:
    """How far the estimates can be trusted to choose, in plain words."""
    if not pairs:
        return ["No snapshot was tested in the environment, so how far these estimates can be trusted is not known."]
    size = f"{len(pairs)} snapshot{'s' if len(pairs) != 1 else ''}"
    if len(pairs) < LEAST:
        return [f"Tests of {size} are too few to tell how far the estimates can be trusted."]
    if np.isnan(found.rho):
        return [f"All {size} have the same estimate or the same return: there is no order to compare."]
    low, high = found.interval
    told = f"Spearman's rank correlation with the returns of {size} is {found.rho:.2f} (95% interval {low:.2f} to {high:.2f})"
    if low >= 0.5:
        verdict = "the estimates tell good policies from bad ones; between near equals they may still err"
    elif low > 0.0:
        verdict = "the estimates are right more often than not: good to weed out bad policies, not to find the best"
    elif high < 0.0:
        verdict = "the estimates order the policies the wrong way round: do not choose by them"
    else:
        verdict = "that cannot be told from chance: do not choose by these estimates alone"
    return [f"{told}: {verdict}."]


def chosen_sentences(judged: Sequence[Judged]) -> list[str]:
    """Which member's last snapshot each way of choosing takes, and what choosing by estimate costs."""
    last = list({snapshot.member: snapshot for snapshot in judged}.values())
    by_estimate = max(last, key=lambda snapshot: snapshot.estimate)
    lines = [f"By estimate the choice is member {by_estimate.member} (estimate {number(by_estimate.estimate)})"]
    tested = [snapshot for snapshot in last if snapshot.true is not None]
    if by_estimate.true is None or len(tested) < len(last):
        return [f"{lines[0]}, of {len(last)} members' last snapshots."]
    means = [snapshot.true for snapshot in tested if snapshot.true is not None]
    by_return = tested[int(np.argmax(means))]
    if by_return.member == by_estimate.member:
        return [f"{lines[0]}, mean return {number(by_estimate.true)}; by return it is the same, of {len(last)} members."]
    cost = max(means) - by_estimate.true
    spread = max(means) - min(means)
    return [
        f"{lines[0]}, mean return {number(by_estimate.true)}; by return it is member {by_return.member}, {number(max(means))}. "
        f"Choosing by estimate costs {number(cost)}, where {number(spread)} lie between the best and the worst of "
        f"{len(last)} members."
    ]


def _correlation(pairs: Sequence[Judged], num_samples: int, seed: int) -> RankCorrelation:
    columns = ([s.estimate for s in pairs], [s.true for s in pairs], [s.member for s in pairs])
    estimates, returns, members = (np.array(column, dtype=np.float64) for column in columns)
    generator = np.random.default_rng(seeding.stream(seed, "fitted-q-bootstrap"))
    return rank_correlation(estimates, returns, members, generator, num_samples)


def _line(snapshot: Judged) -> list[str]:
    return [str(snapshot.member), count(snapshot.updates), number(snapshot.estimate), number(snapshot.true)]


def _alt(pairs: Sequence[Judged], found: RankCorrelation) -> str:
    rho = "not defined" if np.isnan(found.rho) else f"{found.rho:.2f}"
    return f"Scatter plot of estimates against mean returns of {len(pairs)} snapshots; rank correlation {rho}."


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
            axes.scatter(x, y, 26.0, look.colour, alpha=0.8, edgecolors=edges, linewidths=0.9, label=label)
        legend_below(drawn, axes)
    return svg.getvalue()
