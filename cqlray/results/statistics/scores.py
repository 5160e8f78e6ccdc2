"""Last, best and mean-over-last-third scores of members and of settings, side by side.

Papers report one or another of the three, and that choice alone can change a result by ten
normalised points. They are never mixed here: each column has one kind, from the same tests for all
members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cqlray import seeding
from cqlray.results.statistics.resampling import Floats, Interval, iqm_interval, iqm_of_members
from cqlray.results.statistics.summary import (
    RunRecord,
    common_updates,
    student_rows,
    tested_settings,
)
from cqlray.storage.rows import Swept


@dataclass(frozen=True)
class MemberScores:
    """Mean returns of one member; a NaN among the returns makes every mean over it NaN."""

    member: int
    updates: list[int]
    """Update counts of the tests that were used, rising."""
    last: float
    """At the last test."""
    best: float
    """At the test with the highest mean. It is chosen by the very returns that it then reports, so
    it flatters, the more so the more tests there are; without the environment nobody could have
    chosen it.
    """
    best_updates: int | None
    """Update count of that test, or of the first of several equal ones; None where best is NaN."""
    last_third: float
    """Mean over the last third of the tests, whose number is rounded up."""


@dataclass(frozen=True)
class Aggregate:
    """IQM over members' mean returns, with its 95% bootstrap interval."""

    iqm: float
    interval: Interval


@dataclass(frozen=True)
class GroupScores:
    """The three scores of the members of one setting of the sweep."""

    swept: Swept
    members: list[int]
    updates: list[int]
    """Update counts of the tests that were used, rising."""
    last: Aggregate
    best: Aggregate
    """Each member at its best test."""
    last_third: Aggregate
    """Each episode's return averaged over the last third of the tests."""

    @property
    def three_ways(self) -> tuple[Aggregate, Aggregate, Aggregate]:
        """Side by side, in the order of tables."""
        return self.last, self.last_third, self.best


def member_scores(run: RunRecord) -> list[MemberScores]:
    """The scores of each member of the run, at the tests that all members had, as the best of more
    tests would be an unfair comparison. Where there are no such tests (because a member was not
    tested yet), each member is scored at its own; a member without any is left out.
    """
    everyone = [entry["member"] for entry in run.members]
    shared = common_updates(run, everyone)
    found = []
    for member in everyone:
        updates = shared or common_updates(run, [member])
        if updates:
            found.append(_of_member(member, updates, _returns(run, member, updates)))
    return found


def group_scores(run: RunRecord, num_samples: int, seed: int) -> list[GroupScores]:
    """The scores of each setting of the sweep (of all members, without a sweep), at the tests that
    all members of the run had; where there are none, at those that the setting's members had. A
    setting without any is left out.

    `last` is the IQM that `summarize` gives for the group. Intervals are of `num_samples`
    resamples, drawn by the run's `seed`.
    """
    found = []
    for swept, members, updates in tested_settings(run):
        if updates:
            tested = [_returns(run, member, updates) for member in members]
            last = [returns[-1] for returns in tested]
            best = [returns[_best(returns)] for returns in tested]
            third = [_last_third(returns).mean(axis=0) for returns in tested]
            scores = (_aggregate(rows, num_samples, seed) for rows in (last, best, third))
            found.append(GroupScores(swept, members, updates, *scores))
    return found


def _returns(run: RunRecord, member: int, updates: Iterable[int]) -> Floats:
    """[tests, episodes]."""
    rows = student_rows(run, member)
    return np.array([rows[count]["returns"] for count in updates], dtype=np.float64)


def _best(returns: Floats) -> int:
    """Index of the test with the highest mean, or of the first of several equal ones.

    A test with NaN comes before all others, since argmax takes NaN for the highest: an unknown
    result is not ignored.
    """
    return int(np.argmax(returns.mean(axis=1)))


def _last_third(returns: Floats) -> Floats:
    """[tests, episodes] -> [the last third of them, rounded up, episodes]."""
    return returns[-len(returns) // 3 :]


def _of_member(member: int, updates: list[int], returns: Floats) -> MemberScores:
    best = _best(returns)
    highest = float(returns[best].mean())
    return MemberScores(
        member=member,
        updates=updates,
        last=float(returns[-1].mean()),
        best=highest,
        best_updates=None if np.isnan(highest) else updates[best],
        last_third=float(_last_third(returns).mean()),
    )


def _aggregate(rows: Sequence[Floats], num_samples: int, seed: int) -> Aggregate:
    scores = np.stack(rows)  # [members, episodes]
    # The same stream as in summarize, so that the same scores have the same interval everywhere.
    generator = seeding.generator(seed, "bootstrap")
    return Aggregate(iqm_of_members(scores), iqm_interval(scores, generator, num_samples))
