"""The report on choosing a policy without the environment: what fitted Q evaluation estimates, and
how far its estimates can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cqlray.results.record import events
from cqlray.results.report.formatting import count, duration, number
from cqlray.results.report.groups import groups_of
from cqlray.results.report.page import figure, figures, folded, paragraph, section, table
from cqlray.results.report.plots import spread
from cqlray.results.report.selection_sentences import (
    LEAST,
    Judged,
    agreement_sentences,
    chosen_sentences,
    judged_snapshots,
    newest_of_members,
    rho_in_words,
    trust,
    trust_sentences,
)
from cqlray.results.report.style import as_svg, legend_below, looks
from cqlray.results.report.timeline import time_line
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.rows import FittedQRow

MOST_ROWS = 16  # of the table that is shown at once
MOST_LISTED = 5_000  # snapshots in it
MOST_COMPARED = 8_000  # snapshots whose order is compared with that of their tests


def selection_section(
    run: RunRecord, rows: Sequence[FittedQRow], num_samples: int, seed: int
) -> str:
    """The section; empty where fitted Q evaluation judged no policy of the run.

    `rows` are those of fqe.jsonl.
    """
    judged = judged_snapshots(run, rows)
    if not judged:
        return ""
    tested = [snapshot for snapshot in judged if snapshot.true is not None]
    pairs = _spread(tested)
    found = trust(pairs, num_samples, seed)
    sentences = trust_sentences(pairs, found) + (
        agreement_sentences(judged) if len(pairs) < LEAST else []
    )
    if len(pairs) < len(tested):
        sentences.append(f"These are {len(pairs):,} of {len(tested):,}, spread over the updates.")
    drawn = ""
    if pairs:
        alt = (
            f"Scatter plot of estimates against mean returns of {len(pairs)} snapshots; rank"
            f" correlation {rho_in_words(found.overall.rho)}."
        )
        words = "Estimate against mean return, a point for each snapshot."
        drawn = figures(figure(_scatter(run, pairs), alt, words))
    return section(
        "Choosing without the environment",
        *map(paragraph, [*sentences, *chosen_sentences(judged)]),
        drawn,
        _listed(judged),
        paragraph(_note(run, rows, judged), "soft"),
    )


def _spread(tested: Sequence[Judged]) -> Sequence[Judged]:
    """All of the tested snapshots; of more than MOST_COMPARED those after some update counts,
    evenly spread: to order half a million two thousand times would take hours.
    """
    if len(tested) <= MOST_COMPARED:
        return tested
    members = len({snapshot.member for snapshot in tested})
    counts = sorted({snapshot.updates for snapshot in tested})
    kept = set(spread(counts, max(1, MOST_COMPARED // members)))
    return [snapshot for snapshot in tested if snapshot.updates in kept]


def _listed(judged: Sequence[Judged]) -> str:
    """The snapshots as a table; of very many each member's newest."""
    shown, title = judged, f"All {len(judged)} snapshots"
    if len(judged) > MOST_LISTED:
        shown = newest_of_members(judged)
        title = f"The newest snapshot of each of {len(shown):,} members, {len(judged):,} in all"
    head = ["member", "updates", "estimate", "mean return of its test"]
    rows = [[str(s.member), count(s.updates), number(s.estimate), number(s.true)] for s in shown]
    listed = table(head, rows)
    return listed if len(judged) <= MOST_ROWS else folded(title, listed)


def _note(run: RunRecord, rows: Sequence[FittedQRow], judged: Sequence[Judged]) -> str:
    """What an estimate is, and what it cost."""
    words = (
        "Estimate: fitted Q evaluation of each snapshot's policy on the dataset alone, mean over"
        " the first states. It is a discounted return: beside a test's, which is not, its order"
        " counts and not its size."
    )
    errors = [snapshot.bellman_error for snapshot in judged if snapshot.bellman_error is not None]
    if errors:
        words += (
            f" On held-out episodes Q misses its targets by {number(float(np.median(errors)))} in"
            " reward (median snapshot)."
        )
    line = time_line(events(run), run.running)
    training = line.busy.get(("students", "learner"))
    # A session that was killed has not recorded how long its learners were busy.
    known = training and all(session.ending != "killed" for session in line.sessions)
    beside = (
        f", training its learners {duration(training.busy_seconds)}" if training and known else ""
    )
    return (
        f"{words} It took its processes"
        f" {duration(sum(row.get('seconds') or 0.0 for row in rows))}{beside}."
    )


@as_svg
def _scatter(drawn: Any, run: RunRecord, pairs: Sequence[Judged]) -> None:
    """Each member's last snapshot is outlined, as these are what one chooses from."""
    last = {snapshot.member: snapshot.updates for snapshot in pairs}
    groups = groups_of(run)
    axes: Any = drawn.add_subplot(xlabel="mean return of its test", ylabel="estimate")
    for group, look in zip(groups, looks(groups), strict=True):
        own = set(group.members)
        of_group = [snapshot for snapshot in pairs if snapshot.member in own]
        if not of_group:
            continue
        label = look.label if len(groups) > 1 else "a snapshot (outlined: a member's last)"
        edges = ["black" if s.updates == last[s.member] else "none" for s in of_group]
        x, y = [s.true for s in of_group], [s.estimate for s in of_group]
        axes.scatter(
            x, y, 26.0, look.colour, alpha=0.8, edgecolors=edges, linewidths=0.9, label=label
        )
    legend_below(drawn, axes)
