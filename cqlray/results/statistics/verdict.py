"""Is a policy better than what was logged: estimates beside the log's own return, tests beside the
dataset's and the teacher's, never a discounted number beside an undiscounted one.

Estimates: fitted Q evaluation's value of the first states minus the discounted returns logged from
these very states. The interval of that difference is over first states, over members (seeds) and
over fits, by Welch and Satterthwaite, so two of a kind that disagree make it wide. It is made
wider still by what fitted Q evaluation gets wrong where the truth is known: on the logged actions
themselves. What no interval holds is its error for actions that the log does not have.

Tests: interquartile means over members. Student and teacher have the same episodes, so these are
resampled together; the dataset has others, and the intervals of both sides are combined (MOVER,
Zou & Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from cqlray import seeding
from cqlray.results.statistics.calibration import CUT_SHORT
from cqlray.results.statistics.resampling import (
    UNKNOWN,
    Floats,
    Interval,
    crossed_means,
    interquartile_mean,
    interval,
    iqm_of_members,
)
from cqlray.results.statistics.summary import (
    RunRecord,
    final_rows,
    is_cql,
    references_of_data,
    settings,
)
from cqlray.storage.rows import BesideTheLog, FittedQRow, Swept


@dataclass(frozen=True)
class Verdict:
    """The members of one setting beside a reference."""

    swept: Swept
    members: list[int]
    by: str
    """estimates (discounted, from the data alone) or tests (undiscounted, in the environment)."""
    reference: str
    """log, dataset or teacher."""
    value: float
    value_interval: Interval
    reference_value: float
    reference_interval: Interval
    difference: float
    difference_interval: Interval
    misfit: float = 0.0
    """By how much fitted Q evaluation misses the log's own return; part of the interval."""
    cut_short: bool = False
    """Whether most of the log's own return lies beyond time limits, and so is estimated."""

    @property
    def verdict(self) -> str:
        """better, worse or cannot be told: by the interval of the difference."""
        low, high = self.difference_interval
        if self.cut_short or not (low > 0.0 or high < 0.0):
            return "cannot be told"
        return "better" if low > 0.0 else "worse"


def verdicts(
    run: RunRecord, rows: Sequence[FittedQRow], num_samples: int, seed: int
) -> list[Verdict]:
    """Of every setting: by tests where there are any, and by estimates where there are any.

    `rows` are those of fqe.jsonl. A setting whose members have no tests or estimates after equal
    updates is left out.
    """
    found: list[Verdict] = []
    held: dict[int, dict[int, FittedQRow]] = {entry["member"]: {} for entry in run.members}
    for row in rows:
        if BesideTheLog.__annotations__.keys() <= row.keys() and row["member"] in held:
            held[row["member"]][row["updates"]] = row
    for swept, members in settings(run):
        found += _by_tests(run, swept, members, num_samples, seed)
        found += _by_estimates([held[member] for member in members], swept, members)
    return found


def headline(found: Sequence[Verdict]) -> Verdict | None:
    """The one that stands first: by tests beside the dataset if there are any, else by estimates;
    of several settings of CQL the one with the highest value. None where nothing was judged.
    """
    cql = [verdict for verdict in found if is_cql({"swept": verdict.swept})]
    for reference in ("dataset", "log"):
        of_kind = [verdict for verdict in cql if verdict.reference == reference]
        known = [verdict for verdict in of_kind if math.isfinite(verdict.value)]
        if known:
            return max(known, key=lambda verdict: verdict.value)
    return None


def _by_estimates(
    held: Sequence[dict[int, FittedQRow]], swept: Swept, members: list[int]
) -> list[Verdict]:
    """`held`: each member's rows that are held against the log, by updates."""
    shared = set(held[0]).intersection(*held[1:])
    if not shared:
        return []
    chosen = [rows[max(shared)] for rows in held]
    sizes = {len(row[key] or ()) for row in chosen for key in ("gain_fits", "fqe_fits")}
    if len(sizes) != 1 or not sizes.pop():  # of several versions, or damaged
        return []
    one = chosen[0]
    episodes = one["log_episodes"]
    gains = _fits([row["gain_fits"] for row in chosen])
    values = _fits([row.get("fqe_fits") for row in chosen])
    misfit = abs(_known(one["log_return_fitted"]) - _known(one["log_return"]))
    difference = combined(gains, [_known(row["gain_error"]) for row in chosen], episodes)
    log = np.array([[_known(one["log_return"])]])
    verdict = Verdict(
        swept,
        members,
        by="estimates",
        reference="log",
        value=float(values.mean()),
        value_interval=combined(values, [_known(r["fqe_return_error"]) for r in chosen], episodes),
        reference_value=float(log[0, 0]),
        reference_interval=combined(log, [_known(one["log_return_error"])], episodes),
        difference=float(gains.mean()),
        difference_interval=Interval(difference.low - misfit, difference.high + misfit),
        misfit=misfit,
        cut_short=one["log_tail_weight"] > CUT_SHORT,
    )
    return [verdict]


def combined(means: ArrayLike, errors: ArrayLike, episodes: int) -> Interval:
    """95% interval of a mean over members and fits that all judge the same episodes.

    The variances of the three are added; Welch's and Satterthwaite's degrees of freedom say how
    well so few of each tell them. With one member, it is about that one policy.

    Args:
        means: [members, fits], each over the episodes.
        errors: [members], each mean's standard error over the episodes. As the members share the
            episodes, it does not shrink with their number.
    """
    matrix, squares = np.asarray(means, np.float64), np.square(np.asarray(errors, np.float64))
    members, fits = matrix.shape
    parts = [(float(squares.mean()), episodes - 1)]
    if members > 1:
        parts.append((float(matrix.mean(axis=1).var(ddof=1)) / members, members - 1))
    if fits > 1:
        parts.append((float(matrix.mean(axis=0).var(ddof=1)) / fits, fits - 1))
    centre, variance = float(matrix.mean()), sum(part for part, _ in parts)
    if episodes < 2 or not math.isfinite(centre) or not math.isfinite(variance):
        return UNKNOWN
    if variance == 0.0:
        return Interval(centre, centre)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return Interval(centre - half, centre + half)


def _by_tests(
    run: RunRecord, swept: Swept, members: list[int], num_samples: int, seed: int
) -> list[Verdict]:
    everyone = [entry["member"] for entry in run.members]
    shared = final_rows(run, everyone)
    final = {m: shared[m] for m in members} if shared else final_rows(run, members)
    if not final:
        return []
    scores = np.array([row["returns"] for row in final.values()], dtype=np.float64)
    value, ends = _iqm(scores, num_samples, seed)
    found = []
    if run.dataset is not None:
        mean, of_data = dataset_interval(run.dataset)
        gap = difference_interval(value, ends, mean, of_data)
        found.append(
            Verdict(
                swept, members, "tests", "dataset", value, ends, mean, of_data, value - mean, gap
            )
        )
    tests = [row["returns"] for row in run.evaluations if row["policy"] == "teacher"]
    if tests and "teacher" not in references_of_data(run) and len(tests[-1]) == scores.shape[1]:
        teacher = np.asarray(tests[-1], np.float64)
        mean, of_teacher = _iqm(teacher[None], num_samples, seed)
        gain, gap = _iqm(scores - teacher, num_samples, seed)
        found.append(
            Verdict(swept, members, "tests", "teacher", value, ends, mean, of_teacher, gain, gap)
        )
    return found


def _iqm(scores: Floats, num_samples: int, seed: int) -> tuple[float, Interval]:
    """IQM of the members' means and its interval, of the same stream as in `summarize`, so that the
    same scores have the same interval everywhere.
    """
    generator = seeding.generator(seed, "bootstrap")
    ends = interval(scores, interquartile_mean, generator, num_samples, resample=crossed_means)
    return iqm_of_members(scores), ends


def dataset_interval(dataset: object) -> tuple[float, Interval]:
    """The mean return of a dataset's episodes and its 95% interval.

    A description keeps a histogram of the returns and not each one, so each is taken to lie at the
    end of its bin that is further from the mean: the interval is a little too wide, never too
    narrow.
    """
    returns = dataset["returns"]  # type: ignore[index]
    mean = _known(returns["mean"])
    edges = np.asarray(returns["histogram"]["edges"], np.float64)
    counts = np.asarray(returns["histogram"]["counts"], np.float64)
    total = float(counts.sum())
    if total < 2.0 or not math.isfinite(mean):
        return mean, UNKNOWN
    furthest = np.maximum(np.abs(edges[:-1] - mean), np.abs(edges[1:] - mean))
    error = math.sqrt(float((counts * furthest**2).sum()) / (total - 1.0) / total)
    half = float(stdtrit(total - 1.0, 0.975)) * error
    return mean, Interval(mean - half, mean + half)


def difference_interval(one: float, of_one: Interval, other: float, of_other: Interval) -> Interval:
    """95% interval of one minus other, which are independent, from the interval of each."""
    return Interval(
        one - other - math.hypot(one - of_one.low, of_other.high - other),
        one - other + math.hypot(of_one.high - one, other - of_other.low),
    )


def _fits(rows: Sequence[list[float | None] | None]) -> Floats:
    """[members, fits], NaN for None."""
    return np.array(rows, dtype=np.float64)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
