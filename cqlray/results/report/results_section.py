"""The report's results: aggregates and references, a line for each member, and the three ways of
scoring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cqlray.results.report.formatting import (
    NOTHING,
    aggregate_words,
    interval,
    member_cells,
    normalized_by,
    number,
    option_name,
    sentence,
    setting_name,
    setting_or_all,
    swept_names,
    tested_elsewhere,
)
from cqlray.results.report.page import escape, folded, paragraph, section, table
from cqlray.results.statistics.scores import group_scores
from cqlray.results.statistics.summary import RunRecord, best_group, cql_groups, is_cql

THREE_WAYS = ("last test", "mean over last third", "each member's best test")
BEST_FLATTERS = (
    "The best test is chosen by the returns that it is then measured by, so it flatters."
)
MOST_ROWS = 16  # of a table that is shown whole
FEW = 10  # members: with fewer, a bootstrap's interval is somewhat too narrow


def results_section(run: RunRecord, result: dict[str, Any]) -> str:
    """Aggregates and references, then a line for each member; empty where no member was tested."""
    if not any(member["returns"] for member in result["members"]):
        return ""
    members = _members_table(run, result)
    return section(
        "Results",
        _aggregates_table(run, result),
        _note(run, result),
        (
            members
            if len(run.members) <= MOST_ROWS
            else folded(f"All {len(run.members)} members", members)
        ),
    )


def _aggregates_table(run: RunRecord, result: dict[str, Any]) -> str:
    """The main result first, then the references, then every setting."""
    best = best_group(result)
    shown = best or result
    name = (
        f"IQM, {setting_name(best['swept'])} (best of {len(cql_groups(result))} settings)"
        if best
        else _everyone(run)
    )
    lines = [_aggregate_line(name, shown)]
    if scores := shown["normalized"]:
        lines.append(["IQM, normalised", number(scores["iqm"]), interval(scores), ""])
    references = (("teacher", "teacher"), ("dataset mean", "dataset"), ("random policy", "random"))
    lines += [
        [name, number(result[key]), "", ""] for name, key in references if result[key] is not None
    ]
    lines += [
        _aggregate_line(f"IQM, {setting_name(group['swept'])}", group) for group in result["groups"]
    ]
    if best:
        lines.append(_aggregate_line(f"{_everyone(run)}, whatever their setting", result))
    head = ["", "return", "95% interval", "worst member's mean"]
    kind = "scroll names wide" if len(lines) <= MOST_ROWS else "scroll names"
    return table(head, lines, strong=0, kind=kind)


def _members_table(run: RunRecord, result: dict[str, Any]) -> str:
    swept = swept_names(run.members)
    head = ["member", "seed", *map(option_name, swept), "updates", "mean return"]
    rows = []
    for member in result["members"]:
        returns = member["returns"]
        ends = [number(np.min(returns)), number(np.max(returns))] if returns else [NOTHING] * 2
        rows.append([*member_cells(member, swept), *ends])
    return table([*head, "worst episode", "best episode"], rows)


def _everyone(run: RunRecord) -> str:
    kind = "" if all(is_cql(entry) for entry in run.members) else "CQL "
    alone = sum(is_cql(entry) for entry in run.members) == 1
    return f"mean of the {kind}member" if alone else f"IQM of all {kind}members"


def _aggregate_line(name: str, aggregate: dict[str, Any]) -> list[str]:
    return [name, number(aggregate["iqm"]), interval(aggregate), number(aggregate["worst_member"])]


def _note(run: RunRecord, result: dict[str, Any]) -> str:
    """How the numbers were made."""
    size = sum(is_cql(entry) for entry in run.members)
    episodes = len(result["members"][0]["returns"])
    tests = (
        f"{episodes} episodes at the last test that all have"
        if result["iqm"] is not None
        else "episodes"
    )
    scores = (best_group(result) or result)["normalized"]
    by = ""
    if scores:
        ends = normalized_by(scores["random"], scores["reference"], scores["source"])
        by = f" Normalised: {escape(ends)}."
    if result["references_of_data"]:
        by += f" {escape(sentence(tested_elsewhere(result['references_of_data'])))}"
    chosen = (
        " The best setting is chosen by the returns that it is then measured by, so it flatters."
        if best_group(result)
        else ""
    )
    few = " Of so few members the interval is somewhat too narrow." if size < FEW else ""
    if size == 1:
        few = " With one member the interval is about this one policy, not about training."
    return (
        '<p class="soft">IQM: mean over the middle half of the members (their mean returns over'
        f" {tests}). Interval: 95%, bootstrap over members and over the episodes that they share"
        f" (after Agarwal et al. 2021).{few}{chosen}{by}</p>"
    )


def aggregates_section(result: dict[str, Any]) -> str:
    """IQM, median, mean and optimality gap side by side for each setting, as papers differ in which
    one they report.
    """
    groups = result["groups"] or [result]
    known = result["iqm"] is not None or any(group["iqm"] is not None for group in groups)
    if not known or all(len(group["members"]) == 1 for group in groups):  # all are its mean
        return ""
    rows = [
        [
            setting_or_all(group.get("swept", {})),
            *(_with_interval(group, key) for key in ("iqm", "median", "mean")),
        ]
        for group in groups
    ]
    head = ["setting", "IQM", "median", "mean"]
    note = "All are over members' mean returns, with 95% intervals."
    if all(group["normalized"] for group in groups):
        head.append("optimality gap")
        for row, group in zip(rows, groups, strict=True):
            row.append(_with_interval(group["normalized"], "optimality_gap"))
        note += (
            " Optimality gap: how far normalised scores fall short of 100 on average; lower is"
            " better."
        )
    return section(
        "IQM, median, mean", table(head, rows, kind="scroll names"), paragraph(note, "soft")
    )


def _with_interval(aggregate: dict[str, Any], name: str) -> str:
    return (
        f"{number(aggregate[name])} {interval(aggregate, name)}"
        if aggregate[name] is not None
        else NOTHING
    )


def three_ways_section(run: RunRecord, samples: int, seed: int) -> str:
    """Last, best and mean-over-last-third scores side by side, as papers differ in which one they
    report.
    """
    groups = [group for group in group_scores(run, samples, seed) if len(group.updates) > 1]
    if not groups:
        return ""
    rows = [
        [setting_or_all(group.swept), *map(aggregate_words, group.three_ways)] for group in groups
    ]
    return section(
        "Last, mean over last third, best",
        table(["setting", *THREE_WAYS], rows, kind="scroll names"),
        paragraph(f"IQM and its 95% interval. {BEST_FLATTERS}", "soft"),
    )
