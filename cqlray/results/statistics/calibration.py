"""Values against returns: did the critics' lower bound hold?

CQL's critics should underestimate what the policy earns from the first state on. The excess of an
episode is min_i Q_i(s_0, pi(s_0)) minus the return that was then observed: the discounted sum of
the rewards as trained on and, where the time limit cut the episode off, the critics' discounted
value of the rest. That last part has the critics' error, too. Where the error is the same
everywhere, an excess is that error times 1 - discount^length. Where the error grows along an
episode, the excess may even have the opposite sign. So there is no verdict on episodes that are cut
short while the rest still has much weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from cqlray import seeding
from cqlray.results.statistics.resampling import UNKNOWN, Floats, Interval, interval, mean
from cqlray.results.statistics.summary import RunRecord, conservative_weight, student_rows
from cqlray.storage.rows import EvaluationRow, MemberEntry, StudentTest

# A bootstrap of fewer numbers that all have one sign gives an interval of that sign, which claims
# too much.
MIN_RESAMPLED = 5
# Mean discount of the part beyond the time limit. Above this, critics would mostly be compared with
# themselves.
CUT_SHORT = 0.5


@dataclass(frozen=True)
class Calibration:
    """The critics' value of the first state compared with the observed returns, for one
    conservative weight.
    """

    conservative_weight: float
    tests: int
    """Tests of any member that have both numbers."""
    below: int
    """How many of these had a value at or below the observed return."""
    last_excess: float
    """Value minus observed return at each member's last such test, averaged over members, in
    rewards as trained on.
    """
    moved: float = 0.0
    """By how much the value still changed over the last third of the tests, averaged over members:
    far from 0, the critics are not trained to the end.
    """

    @property
    def undertrained(self) -> bool:
        """Whether the values still moved by so much that it may explain what they exceed returns
        by: a quarter of it or more.
        """
        return abs(self.moved) > abs(self.last_excess) / 4.0


def observed_return(row: EvaluationRow) -> float | None:
    """Mean discounted return of a test as the critics define it: the rewards up to the time limit,
    and the critics' value of what comes after it.
    """
    seen, tail = row.get("discounted_return"), row.get("tail_value")
    return None if seen is None or tail is None else float(seen + tail)


def compared_tests(run: RunRecord, entry: MemberEntry) -> list[tuple[int, float, float]]:
    """(updates, observed return, value) of each of a member's tests that has both; none for
    behaviour cloning.
    """
    if conservative_weight(run, entry) is None:
        return []
    rows = student_rows(run, entry["member"]).items()
    found = [(updates, observed_return(row), row.get("value")) for updates, row in rows]
    return [
        (updates, observed, value)
        for updates, observed, value in found
        if observed is not None and value is not None
    ]


def calibrations(run: RunRecord) -> list[Calibration]:
    """One for each conservative weight of the run, rising; weights without a comparable test are
    left out.
    """
    # By weight: for each member, the excess at each of its tests.
    excesses: dict[float, list[list[float]]] = {}
    moved: dict[float, list[float]] = {}
    for entry in run.members:
        compared = compared_tests(run, entry)
        excess = [value - observed for _, observed, value in compared]
        weight = conservative_weight(run, entry)
        if excess and weight is not None:
            third = compared[-max(1, len(compared) // 3) - 1 :]  # none of fewer than three tests
            change = third[-1][2] - third[0][2] if len(compared) > 2 else 0.0
            moved.setdefault(weight, []).append(change)
            excesses.setdefault(weight, []).append(excess)
    return [
        Calibration(
            conservative_weight=weight,
            tests=sum(map(len, members)),
            below=sum(value <= 0 for member in members for value in member),
            last_excess=float(np.mean([member[-1] for member in members])),
            moved=float(np.mean(moved[weight])),
        )
        for weight, members in sorted(excesses.items())
    ]


@dataclass(frozen=True)
class Excess:
    """The mean of value minus observed return, in rewards as trained on, and what is known about
    its sign.
    """

    mean: float
    interval: Interval
    """The 95% interval of the mean."""
    episodes: int
    cut_short: bool = False
    """Whether so much lies beyond the time limit that critics would be compared with themselves."""

    @property
    def held(self) -> bool | None:
        """Whether the lower bound held; None where that is not known."""
        if self.cut_short or not np.isfinite(self.interval).all():
            return None
        if self.interval.high <= 0.0:
            return True
        return False if self.interval.low > 0.0 else None

    @property
    def verdict(self) -> str:
        """`held` in words."""
        if self.cut_short:
            return (
                "cannot be told: the time limit ends episodes so early that most of what follows is"
                " the critics' own guess"
            )
        if self.held is None:
            return f"cannot be told from {self.episodes} episode{'s' if self.episodes != 1 else ''}"
        size = f"{self.mean:,.0f}" if self.mean >= 1000.0 else f"{self.mean:.3g}"
        return "held" if self.held else f"did not hold (overestimates by {size})"


@dataclass(frozen=True)
class BoundCheck:
    """Whether the lower bound held for one conservative weight, at its members' last tests."""

    conservative_weight: float
    overall: Excess
    """The mean over members. The interval is from resampled members and episodes, so members that
    disagree make it wide. Two or three members that agree make it narrow: the verdict is then about
    these members more than about training. With one member, it is that member's excess.
    """
    members: dict[int, Excess]
    """The excess of each tested member. Its interval is about this one policy and its critics."""

    def count(self, held: bool | None) -> int:
        """How many members' bound held (True), did not hold (False), or is not known to have held
        (None).
        """
        return sum(excess.held is held for excess in self.members.values())


def check_bounds(run: RunRecord, num_samples: int, seed: int) -> list[BoundCheck]:
    """One for each conservative weight of the run, rising; weights without a comparable test are
    left out.

    A value that was not finite is not ignored: nothing is known then about its member and weight.
    Intervals over members are of `num_samples` resamples, drawn by the run's `seed`.
    """
    tested: dict[float, dict[int, StudentTest]] = {}
    for entry in run.members:
        weight = conservative_weight(run, entry)
        newest_first = reversed(student_rows(run, entry["member"]).values())
        last = next((row for row in newest_first if "value" in row), None)
        if last is not None and weight is not None:
            tested.setdefault(weight, {})[entry["member"]] = last
    return [
        _check(weight, rows, seeding.generator(seed, "calibration", index), num_samples)
        for index, (weight, rows) in enumerate(sorted(tested.items()))
    ]


def member_excess(excesses: ArrayLike) -> Excess:
    """The mean of one member's excesses [episodes], with Student's interval; a NaN makes it NaN.

    Raises:
        ValueError: there are no episodes.
    """
    values = np.asarray(excesses, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"excesses have shape {values.shape}; they should be [episodes], at least one"
        )
    centre, episodes = float(values.mean()), len(values)
    if episodes == 1 or not np.isfinite(values).all():
        return Excess(centre, UNKNOWN, episodes)
    half = float(stdtrit(episodes - 1, 0.975) * values.std(ddof=1) / np.sqrt(episodes))
    return Excess(centre, Interval(centre - half, centre + half), episodes)


def _check(
    weight: float, rows: dict[int, StudentTest], generator: np.random.Generator, num_samples: int
) -> BoundCheck:
    members = {member: _of_row(row) for member, row in rows.items()}
    if len(members) == 1:
        return BoundCheck(weight, next(iter(members.values())), members)
    scores = _matrix(list(rows.values()))
    enough = scores.size >= MIN_RESAMPLED and np.isfinite(scores).all()
    ends = interval(scores, mean, generator, num_samples) if enough else UNKNOWN
    episodes = sum(excess.episodes for excess in members.values())
    cut_short = any(excess.cut_short for excess in members.values())
    return BoundCheck(weight, Excess(float(scores.mean()), ends, episodes, cut_short), members)


def _of_row(row: StudentTest) -> Excess:
    """The excess in one test. A row without `excesses` has only their mean, whose error is not
    known.
    """
    excesses = _excesses(row)
    if excesses is None:
        return Excess(_mean_excess(row), UNKNOWN, len(row["returns"]))
    cut_short = (row.get("tail_weight") or 0.0) > CUT_SHORT
    return dataclasses.replace(member_excess(excesses), cut_short=cut_short)


def _matrix(rows: Sequence[StudentTest]) -> Floats:
    """The excesses [members, episodes]; each member's mean, [members, 1], where episodes were not
    kept or differ in number.
    """
    excesses = [_excesses(row) for row in rows]
    kept = [values for values in excesses if values is not None]
    if len(kept) == len(rows) and len({len(values) for values in kept}) == 1:
        return np.stack(kept)
    return np.array([[_mean_excess(row)] for row in rows])


def _excesses(row: StudentTest) -> Floats | None:
    """The excesses [episodes] of a row, with NaN for null; None where it has none."""
    values = row.get("excesses")
    if values is None or len(values) == 0:
        return None
    return np.array(values, dtype=np.float64)


def _mean_excess(row: StudentTest) -> float:
    value, observed = row["value"], observed_return(row)
    return float("nan") if value is None or observed is None else float(value - observed)
