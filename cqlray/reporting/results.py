"""The results of a run: aggregates and references, a line for each member, and the three ways to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cqlray.evaluation.scores import Aggregate, group_scores
from cqlray.evaluation.summary import RunRecord, is_cql
from cqlray.reporting.page import escape, folded, paragraph, section, table
from cqlray.reporting.words import NOTHING, count, interval, normalized_by, number, option_name, setting_name, setting_value

MOST_ROWS = 16  # of a table that is shown whole


def results_section(run: RunRecord, result: dict[str, Any]) -> str:
    """Aggregates and references, then a line for each member; empty where no member was tested."""
    if not any(member["returns"] for member in result["members"]):
        return ""
    everyone = all(is_cql(entry) for entry in run.members)
    lines = [_aggregate_line(f"IQM of all {'' if everyone else 'CQL '}members", result)]
    if scores := result["normalized"]:
        lines.append(["IQM, normalised", number(scores["iqm"]), interval(scores), ""])
    references = (("teacher", "teacher"), ("dataset mean", "dataset"), ("random policy", "random"))
    lines += [[name, number(result[key]), "", ""] for name, key in references if result[key] is not None]
    lines += [_aggregate_line(f"IQM, {setting_name(group['swept'])}", group) for group in result["groups"]]
    swept = list(dict.fromkeys(name for entry in run.members for name in entry["swept"]))
    head = ["member", "seed", *map(option_name, swept), "updates", "mean return", "worst episode", "best episode"]
    members = table(head, [_member_line(member, swept) for member in result["members"]])
    kind = "scroll names wide" if len(lines) <= MOST_ROWS else "scroll names"
    return section(
        "Results",
        table(["", "return", "95% interval", "worst member's mean"], lines, strong=0, kind=kind),
        _note(run, result),
        members if len(run.members) <= MOST_ROWS else folded(f"All {len(run.members)} members", members),
    )


def _aggregate_line(name: str, aggregate: dict[str, Any]) -> list[str]:
    return [name, number(aggregate["iqm"]), interval(aggregate), number(aggregate["worst_member"])]


def _note(run: RunRecord, result: dict[str, Any]) -> str:
    """How the numbers were made."""
    tested = result["members"][0]["returns"]
    what = f"{len(run.members)} members' {len(tested)} episodes each" if result["iqm"] is not None else "all members' episodes"
    by = f" Normalised: {escape(normalized_by(result['normalized']))}." if result["normalized"] else ""
    one = " With one member the interval is about this one policy, not about training." if len(run.members) == 1 else ""
    return (
        f'<p class="soft">IQM: mean of the middle half of {what} at the last test that all have. Interval: bootstrap over '
        f"members, then over their episodes (Agarwal et al. 2021).{one}{by}</p>"
    )


def _member_line(member: dict[str, Any], swept: Sequence[str]) -> list[str]:
    returns = member["returns"]
    return [
        str(member["member"]),
        str(member["seed"]),
        *(setting_value(member[name]) for name in swept),
        count(member["updates"]),
        number(member["mean_return"]),
        number(np.min(returns)) if returns else NOTHING,
        number(np.max(returns)) if returns else NOTHING,
    ]


def three_ways_section(run: RunRecord, samples: int, seed: int) -> str:
    """Last, best and mean-over-last-third scores side by side: papers report one or the other."""
    groups = [group for group in group_scores(run, samples, seed) if len(group.updates) > 1]
    if not groups:
        return ""
    rows = [
        [setting_name(group.swept) or "all members", *(aggregate_words(a) for a in (group.last, group.last_third, group.best))]
        for group in groups
    ]
    head = ["setting", "last test", "mean over last third", "each member's best test"]
    note = "IQM and its 95% interval. The best test is chosen by the returns that it is then measured by, so it flatters."
    return section("Last, mean over last third, best", table(head, rows, kind="scroll names"), paragraph(note, "soft"))


def aggregate_words(score: Aggregate) -> str:
    """An IQM and its interval: -158.1 [-183.8, -128.7]."""
    return f"{number(score.iqm)} [{number(score.interval.low)}, {number(score.interval.high)}]"
