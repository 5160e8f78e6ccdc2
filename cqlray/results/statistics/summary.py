"""From a run's rows to its results: pure functions of the run's record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cqlray import seeding
from cqlray.results.statistics.reference_scores import reference_scores
from cqlray.results.statistics.resampling import (
    Floats,
    Statistic,
    crossed_means,
    estimate,
    interquartile_mean,
    interval,
    mean,
    median,
    of_members,
    optimality_gap,
)
from cqlray.storage.locations import AnyPath
from cqlray.storage.rows import (
    EvaluationRow,
    MemberEntry,
    MetricsRow,
    StudentMetrics,
    StudentTest,
    Swept,
)

Results = dict[str, Any]
"""Numbers by name, as `--json` prints them."""

AGGREGATES: dict[str, Statistic] = {"iqm": interquartile_mean, "median": median, "mean": mean}


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run directory, read once. What the run has not come to yet is empty or
    None.

    Rows are as in the files: metrics sorted by (stage, member, updates), evaluations by (policy,
    member, updates). A return or mean that was not finite is NaN or None.
    """

    directory: AnyPath
    config: dict[str, Any]
    manifest: dict[str, Any]
    teacher: dict[str, Any] | None
    dataset: dict[str, Any] | None
    members: list[MemberEntry]
    metrics: list[MetricsRow]
    evaluations: list[EvaluationRow]
    running: bool = False  # whether a process was working on the run when it was read

    @cached_property
    def tests(self) -> dict[int, dict[int, StudentTest]]:
        """Every member's tests by update count, earliest first. Made once, since searching all rows
        for each member takes time quadratic in the members.
        """
        found: dict[int, dict[int, StudentTest]] = {}
        for row in self.evaluations:
            if row["policy"] == "student":
                found.setdefault(row["member"], {})[row["updates"]] = row
        return {member: dict(sorted(rows.items())) for member, rows in found.items()}

    @cached_property
    def training(self) -> dict[int, list[StudentMetrics]]:
        """Every member's metrics, in the order of the rows."""
        found: dict[int, list[StudentMetrics]] = {}
        for row in self.metrics:
            if row["stage"] == "students":
                found.setdefault(row["member"], []).append(row)
        return found


def student_rows(run: RunRecord, member: int) -> dict[int, StudentTest]:
    """A member's evaluation rows by update count, earliest first."""
    return run.tests.get(member, {})


def mean_returns(rows: Collection[StudentTest]) -> list[float]:
    """The mean return of each test."""
    returns = [row["returns"] for row in rows]
    if len(set(map(len, returns))) == 1:  # one call for all takes a tenth of the time
        means: list[float] = np.array(returns, dtype=np.float64).mean(axis=1).tolist()
        return means
    return [float(np.mean(episodes)) for episodes in returns]


def common_updates(run: RunRecord, members: Iterable[int]) -> list[int]:
    """Update counts at which all of the members were tested, rising; empty for no members."""
    tested = [student_rows(run, member).keys() for member in members]
    return sorted(set(tested[0]).intersection(*tested[1:])) if tested else []


def final_rows(run: RunRecord, members: Sequence[int]) -> dict[int, StudentTest]:
    """Each member's row at the last update count at which all of them were tested; empty if there
    is none.
    """
    shared = common_updates(run, members)
    return {member: student_rows(run, member)[shared[-1]] for member in members} if shared else {}


def reference_return(run: RunRecord, policy: str) -> float | None:
    """Mean return of "teacher" or "random" in its test; None if it was not tested."""
    returns = [row["returns"] for row in run.evaluations if row["policy"] == policy]
    return float(np.mean(returns[-1])) if returns else None


def references_of_data(run: RunRecord) -> list[str]:
    """Which of "teacher" and "random" have returns from the data's description instead of a test by
    this run; such rows have no lengths.
    """
    last = {row["policy"]: row for row in run.evaluations}
    return [
        policy
        for policy in ("teacher", "random")
        if policy in last and "lengths" not in last[policy]
    ]


def dataset_return(run: RunRecord) -> float | None:
    """Mean return of the dataset's episodes; None without a dataset."""
    return None if run.dataset is None else float(run.dataset["returns"]["mean"])


def settings(run: RunRecord) -> list[tuple[Swept, list[int]]]:
    """Each setting of the sweep and the members that have it, in the members' order; without a
    sweep, one setting.
    """
    found: list[tuple[Swept, list[int]]] = []
    for entry in run.members:
        same = [group for swept, group in found if swept == entry["swept"]]
        if same:
            same[0].append(entry["member"])
        else:
            found.append((entry["swept"], [entry["member"]]))
    return found


def tested_settings(run: RunRecord) -> list[tuple[Swept, list[int], list[int]]]:
    """Each setting, its members, and the update counts at which all members of the run were tested;
    where there are none, those at which the setting's members were.
    """
    shared = common_updates(run, [entry["member"] for entry in run.members])
    return [
        (swept, members, shared or common_updates(run, members)) for swept, members in settings(run)
    ]


def is_cql(entry: Mapping[str, Any]) -> bool:
    """Whether a member was trained with CQL and is not a baseline."""
    return bool(entry["swept"].get("algorithm", "cql") == "cql")


def conservative_weight(run: RunRecord, entry: MemberEntry) -> float | None:
    """A member's conservative weight; None for behaviour cloning, which uses no critic."""
    if entry["swept"].get("algorithm") == "bc":
        return None
    if entry["swept"].get("algorithm") == "sac":
        return 0.0
    return float(
        entry["swept"].get("conservative_weight", run.config["cql"]["conservative_weight"])
    )


def summarize(run: RunRecord, num_samples: int, seed: int) -> dict[str, Any]:
    """The results of a run, as `--json` prints them.

    The aggregates are IQM, median and mean, each with the ends of its interval, and the worst
    member's mean. They are over members' mean returns at the last update count at which all members
    were tested (or all of CQL's members, where a baseline was not). Without such a count, because
    there are no tests or a member was not tested yet, they are None, and each member's line is
    about its last test. Baselines are not part of the aggregates.

    `groups` has the same for the members of each setting of a sweep and of each baseline. Where a
    sweep has several settings, look at the groups: the aggregate over all members is of a mixture.
    `normalized` has the aggregates, and the optimality gap, on the scale where the data's random
    policy is 0 and its reference 100. `references_of_data` names those of teacher and random policy
    that were tested when the data was collected, and so perhaps on other episodes than the
    students. Intervals are of `num_samples` resamples, drawn by the run's `seed`.
    """
    everyone = [entry["member"] for entry in run.members]
    cql = [entry["member"] for entry in run.members if is_cql(entry)]
    final = final_rows(run, everyone) or final_rows(run, cql)
    return {
        **_result(run, _narrowed(final, cql), num_samples, seed),
        "members": [_member_result(run, entry, final) for entry in run.members],
        "teacher": reference_return(run, "teacher"),
        "dataset": dataset_return(run),
        "random": reference_return(run, "random"),
        "references_of_data": references_of_data(run),
        "groups": [
            {
                "swept": swept,
                "members": members,
                **_result(
                    run, _narrowed(final, members) or final_rows(run, members), num_samples, seed
                ),
            }
            for swept, members in settings(run)
            if swept
        ],
    }


def best_group(result: dict[str, Any]) -> Results | None:
    """Of several settings of CQL in a summary, the one with the highest IQM; None where there is
    only one setting, or none was tested.
    """
    cql = cql_groups(result)
    known = [group for group in cql if group["iqm"] is not None and not np.isnan(group["iqm"])]
    return max(known, key=lambda group: float(group["iqm"])) if len(cql) > 1 and known else None


def cql_groups(result: dict[str, Any]) -> list[Results]:
    """The groups of a summary that are settings of CQL, without the baselines."""
    return [group for group in result["groups"] if is_cql(group)]


def curve(
    run: RunRecord,
    members: Sequence[int],
    num_samples: int,
    seed: int,
    counts: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """The aggregate of some members at the given update counts, by default at every count at which
    all of them were tested.

    Each point has updates, iqm, iqm_low, iqm_high, and member_means (mean returns in the members'
    order).
    """
    points = []
    for updates in common_updates(run, members) if counts is None else counts:
        scores = _scores(student_rows(run, member)[updates] for member in members)
        aggregate = _aggregate(scores, {"iqm": interquartile_mean}, num_samples, seed)
        means = scores.mean(axis=1).tolist()
        points.append({"updates": updates, **aggregate, "member_means": means})
    return points


def _result(run: RunRecord, rows: dict[int, StudentTest], num_samples: int, seed: int) -> Results:
    """The aggregates over one row of each member and the worst member's mean, and the aggregates
    normalised.
    """
    scores = _scores(rows.values()) if rows else None
    aggregate = _aggregate(scores, AGGREGATES, num_samples, seed)
    reference = None if run.dataset is None else reference_scores(run.dataset)
    normalised: Results | None = None
    if reference is not None and scores is not None:
        normalised = {name: float(reference.normalized(value)) for name, value in aggregate.items()}
        # The gap is not an affine map of the scores, so it cannot be normalised afterwards.
        normalised |= _aggregate(
            reference.normalized(scores), {"optimality_gap": optimality_gap}, num_samples, seed
        )
        normalised |= {
            "random": reference.random,
            "reference": reference.reference,
            "source": reference.source,
        }
    return {
        **aggregate,
        "worst_member": None if scores is None else float(scores.mean(axis=1).min()),
        "normalized": normalised,
    }


def _narrowed(rows: dict[int, StudentTest], members: Iterable[int]) -> dict[int, StudentTest]:
    kept = set(members)
    return {member: row for member, row in rows.items() if member in kept}


def _scores(rows: Iterable[StudentTest]) -> Floats:
    """[members, episodes]."""
    return np.array([row["returns"] for row in rows], dtype=np.float64)


def _aggregate(
    scores: Floats | None, statistics: dict[str, Statistic], num_samples: int, seed: int
) -> Results:
    """Statistics of members' scores [members, episodes] and the ends of their intervals, by name;
    all None without scores.
    """
    found: Results = {}
    for name, statistic in statistics.items():
        value, low, high = (None, None, None)
        if scores is not None:
            # The same stream for every interval, so that the same scores have the same interval in
            # the table and in the figure.
            generator = seeding.generator(seed, "bootstrap")
            value = estimate(scores, of_members(statistic))
            low, high = interval(scores, statistic, generator, num_samples, resample=crossed_means)
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found


def _member_result(run: RunRecord, entry: MemberEntry, final: dict[int, StudentTest]) -> Results:
    """A member's line, about the last test that all had or, where there is none, its last test."""
    tests = list(student_rows(run, entry["member"]).values())
    row = final.get(entry["member"]) or (tests[-1] if tests else None)
    return {
        "member": entry["member"],
        "seed": entry["seed"],
        **entry["swept"],
        "mean_return": None if row is None else float(np.mean(row["returns"])),
        "returns": [] if row is None else np.asarray(row["returns"]).tolist(),
        "updates": None if row is None else row["updates"],
    }
