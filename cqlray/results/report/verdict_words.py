"""Whether the policies beat what was logged, in a sentence: the same in the terminal, the report
and the model card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cqlray.results.record import fitted_q_rows
from cqlray.results.report.formatting import ends_in_words, number, setting_name
from cqlray.results.statistics.summary import RunRecord, conservative_weight, is_cql
from cqlray.results.statistics.verdict import Verdict, headline, verdicts

REFERENCES = {
    "log": "the policy that made the log",
    "dataset": "the dataset's episodes",
    "teacher": "the teacher",
}
LEFT_OUT = (
    "Its interval is over first states, members and fits, and is wider by what the estimate misses"
    " of the log's own return; it leaves out the estimate's error for actions that the log does"
    " not have."
)


def verdicts_of(run: RunRecord) -> list[Verdict]:
    """All verdicts of a run."""
    samples, seed = run.config["evaluation"]["bootstrap_samples"], run.config["seed"]
    return verdicts(run, fitted_q_rows(run), samples, seed)


def verdict_sentence(run: RunRecord, found: Sequence[Verdict]) -> str:
    """The headline in one sentence, with what its interval leaves out; says what is missing where
    nothing was judged.
    """
    first = headline(found)
    if first is None:
        if run.members and fitted_q_rows(run):
            return (
                "Better than the log? Cannot be told: no setting of CQL has finite estimates that"
                " were held against the log after one number of updates."
            )
        return ""
    whose = f"{algorithm_of(run, first)}{_best(first, found)}"
    return f"Better than the log? {in_words(run, first, whose)}"


def in_words(run: RunRecord, verdict: Verdict, whose: str) -> str:
    """One verdict, as a sentence or two; `whose` names the members that it is about."""
    answer = verdict.verdict.capitalize()
    ends = f"{number(verdict.value)} {ends_in_words(verdict.value_interval)}"
    beside = f"{number(verdict.reference_value)} {ends_in_words(verdict.reference_interval)}"
    gap = f"{number(verdict.difference)} {ends_in_words(verdict.difference_interval)}"
    if verdict.by == "tests":
        return (
            f"{answer}: in tests {whose} returns {ends}, {REFERENCES[verdict.reference]} {beside};"
            f" the difference is {gap} (undiscounted, 95% intervals)."
        )
    discount = run.config["cql"]["discount"]
    cut = " Most of the log's own return lies beyond time limits: it is a guess, too."
    return (
        f"{answer}: {whose} is estimated at {ends}, {REFERENCES[verdict.reference]} earned"
        f" {beside}; the difference is {gap} (both discounted by {discount:g}, from the same first"
        f" states, 95% intervals). {LEFT_OUT}{cut * verdict.cut_short}"
    )


def algorithm_of(run: RunRecord, verdict: Verdict) -> str:
    """The algorithm and setting of a verdict's members."""
    entry = next(entry for entry in run.members if entry["member"] == verdict.members[0])
    return algorithm_name(run, entry)


def algorithm_name(run: RunRecord, entry: Any) -> str:
    """A member's algorithm and setting, such as "CQL with conservative weight 5"."""
    algorithm = entry["swept"].get("algorithm", "cql")
    if algorithm != "cql":
        return {"sac": "the baseline offline SAC", "bc": "the baseline behaviour cloning"}[
            algorithm
        ]
    setting = {"conservative_weight": conservative_weight(run, entry), **entry["swept"]}
    setting.pop("algorithm", None)
    plain = setting["conservative_weight"] == 0.0 and not run.config["cql"]["lagrange"]
    return f"CQL with {setting_name(setting)}{', which is offline SAC' * plain}"


def _best(verdict: Verdict, found: Sequence[Verdict]) -> str:
    """Of several settings the headline is the best, which flatters it."""
    same = [v for v in found if v.reference == verdict.reference and is_cql({"swept": v.swept})]
    if len(same) < 2 or verdict is not headline(found):
        return ""
    return f" (the best of {len(same)} settings by this number, which flatters it)"


def as_json(run: RunRecord) -> dict[str, Any]:
    """All verdicts, as `--json` prints them."""
    found = verdicts_of(run)
    first = headline(found)
    return {
        "verdict": None if first is None else first.verdict,
        "sentence": verdict_sentence(run, found),
        "discount": run.config["cql"]["discount"],
        "settings": [{**dataclasses.asdict(v), "verdict": v.verdict} for v in found],
    }
