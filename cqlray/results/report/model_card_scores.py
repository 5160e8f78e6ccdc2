"""The scores on a model card: how the exported policy did in its tests, and beside what."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cqlray import seeding
from cqlray.results.record import fqe_returns
from cqlray.results.report.formatting import (
    aggregate_words,
    ends_in_words,
    normalized_by,
    number,
    sentence,
    tested_elsewhere,
)
from cqlray.results.report.verdict_words import REFERENCES, in_words, verdicts_of
from cqlray.results.statistics.calibration import check_bounds
from cqlray.results.statistics.reference_scores import reference_scores
from cqlray.results.statistics.resampling import UNKNOWN, Floats, interval, mean
from cqlray.results.statistics.scores import (
    Aggregate,
    GroupScores,
    MemberScores,
    group_scores,
    member_scores,
)
from cqlray.results.statistics.summary import (
    RunRecord,
    reference_return,
    references_of_data,
    student_rows,
)


def score_lines(run: RunRecord, member: int, updates: int, chosen_by: str | None) -> Iterator[str]:
    """What is known of how well a member's snapshot acts, as lines of Markdown.

    `chosen_by` is "return" or "fqe" where it was chosen as the best member, else None.
    """
    yield from _verdicts(run, member)
    scores = next((scores for scores in member_scores(run) if scores.member == member), None)
    if scores is None:
        yield from _untested(run, member, updates, chosen_by)
        return
    yield from _table(run, scores)
    yield ""
    which = f"of {updates:,} updates: the table is"
    if scores.updates[-1] == updates:
        which = "the one of the first line; the others are"
    yield f"- The exported policy is {which} of other snapshots of the same training."
    yield from _references(run, scores)
    yield from _bound(run, member)
    if chosen_by == "fqe":
        yield f"- {_choice_by_fitted_q(run, member, updates)}"
    if chosen_by == "return":
        yield (
            f"- It was chosen as the best of {len(run.members)} members by its last test, the same"
            " episodes that its score"
        )
        yield "  is of: the score flatters it. New episodes (`cqlray evaluate`) are a fair test."


def _verdicts(run: RunRecord, member: int) -> Iterator[str]:
    """Whether the members of its setting beat what was logged."""
    for verdict in verdicts_of(run):
        if member in verdict.members:
            beside, size = REFERENCES[verdict.reference], len(verdict.members)
            whose = f"its setting ({size} member{'s' * (size > 1)})"
            yield f"- Better than {beside}? {in_words(run, verdict, whose)}"
            yield ""


def _untested(run: RunRecord, member: int, updates: int, chosen_by: str | None) -> Iterator[str]:
    untested = "It was not tested: no episode was played with it."
    if chosen_by != "fqe":
        yield f"{untested} Nothing is known of how well it acts."
        return
    yield f"{untested} All that is known of how well it acts is an estimate from its data."
    yield ""
    yield f"- {_choice_by_fitted_q(run, member, updates)}"


def _choice_by_fitted_q(run: RunRecord, member: int, updates: int) -> str:
    estimate = fqe_returns(run).get(member, {}).get(updates)
    choice = (
        f"It was chosen as the best of {len(run.members)} members by fitted Q evaluation, from the"
        " dataset alone."
    )
    if estimate is None:
        return choice
    return f"{choice} Its estimated discounted return is {number(estimate)}: to rank by, no score."


def _table(run: RunRecord, scores: MemberScores) -> Iterator[str]:
    """The last, the best and the mean over the last third of a member's tests, never mixed: each
    has its line.
    """
    samples, seed = _bootstrap(run)
    returns = np.array(
        [student_rows(run, scores.member)[count]["returns"] for count in scores.updates],
        dtype=np.float64,
    )
    yield (
        "Sums of the rewards of whole episodes (undiscounted), the policy acting deterministically,"
        " with 95% bootstrap"
    )
    yield (
        f"intervals: of this policy over its {returns.shape[1]} episodes, the same first states in"
        " each test."
    )
    yield ""
    group = _group(run, scores)
    yield "| Score | This policy: mean |" + (
        f" All {len(group.members)} members of its setting: IQM |" if group else ""
    )
    yield "|---|---|---|" if group else "|---|---|"
    for name, score, episodes, aggregate in _lines(scores, returns, group):
        ends = interval(episodes[None], mean, seeding.generator(seed, "bootstrap"), samples)
        alone = ends_in_words(ends if len(episodes) > 1 else UNKNOWN)
        beside = f" {aggregate_words(aggregate)} |" if aggregate else ""
        yield f"| {name} | {number(score)} {alone} |{beside}"


def _bootstrap(run: RunRecord) -> tuple[int, int]:
    """Resamples of each interval, and the run's seed."""
    return run.config["evaluation"]["bootstrap_samples"], run.config["seed"]


def _group(run: RunRecord, scores: MemberScores) -> GroupScores | None:
    """The scores of all members of the same setting; None where it has no other member, or they had
    other tests.
    """
    for group in group_scores(run, *_bootstrap(run)):
        if scores.member in group.members and len(group.members) > 1:
            return group if group.updates == scores.updates else None
    return None


def _lines(
    scores: MemberScores, returns: Floats, group: GroupScores | None
) -> Iterator[tuple[str, float, Floats, Aggregate | None]]:
    """Of each line the name, the score, the returns [episodes] whose mean it is, and the group's.

    `returns` are those of the member's tests, [tests, episodes].
    """
    third = -(-len(scores.updates) // 3)
    best = 0 if scores.best_updates is None else scores.updates.index(scores.best_updates)
    last, last_third, at_best = group.three_ways if group else (None, None, None)
    name = f"last test, after {scores.updates[-1]:,} updates"
    yield name, scores.last, returns[-1], last
    name = f"best of {len(returns)} tests (flatters: chosen by these returns)"
    yield name, scores.best, returns[best], at_best
    name = f"mean over the last third of the tests ({third})"
    yield name, scores.last_third, returns[-third:].mean(axis=0), last_third


def _references(run: RunRecord, member: MemberScores) -> Iterator[str]:
    beside = {
        "the teacher": reference_return(run, "teacher"),
        "a random policy": reference_return(run, "random"),
    }
    for group in group_scores(run, *_bootstrap(run)):
        if group.swept.get("algorithm") == "bc":
            beside["behaviour cloning of the same data (IQM, last test)"] = group.last.iqm
    known = [f"{name} {number(value)}" for name, value in beside.items() if value is not None]
    if known:
        yield f"- Beside it: {', '.join(known)}."
    if of_data := references_of_data(run):
        yield f"- {sentence(tested_elsewhere(of_data))}"
    scores = None if run.dataset is None else reference_scores(run.dataset)
    if scores is not None:
        share = float(scores.normalized(member.last))
        ends = normalized_by(scores.random, scores.reference, scores.source)
        yield f"- Normalised score at the last test: {number(share)}, where {ends}."


def _bound(run: RunRecord, member: int) -> Iterator[str]:
    for check in check_bounds(run, *_bootstrap(run)):
        if member in check.members:
            yield (
                "- Lower bound (its critics' values at or below what the episodes brought, as CQL"
                " means them to be), at the"
            )
            yield f"  last test, in rewards as trained on: {check.members[member].verdict}."
