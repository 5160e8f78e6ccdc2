"""The results of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cqlray.config.secrets import printable
from cqlray.results.report.formatting import (
    ends_in_words,
    environment_name,
    interval,
    member_cells,
    normalized_by,
    number,
    option_name,
    range_of,
    setting_value,
    swept_names,
    tested_elsewhere,
    warning_lines,
)
from cqlray.results.report.verdict_words import verdict_sentence, verdicts_of
from cqlray.results.statistics.summary import RunRecord, best_group
from cqlray.results.statistics.verdict import Verdict
from cqlray.storage.rows import Swept

RETURN = ("mean return", "worst to best episode")
ESTIMATE = ("estimate (discounted)", "95% interval")  # by fitted Q, where nothing was tested


def results_table(summary: dict[str, Any], run: RunRecord) -> Table:
    """A line for each member, then the aggregate of all, of each setting of a sweep, and the
    references; `summary` is what `summarize` returned for the run.
    """
    swept = swept_names(run.members)
    table = Table(
        title=Text(printable(title(run))),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    found = verdicts_of(run)
    estimated = _estimated(summary)
    _add_columns(table, run, swept, ESTIMATE if estimated else RETURN)
    sections = _estimates(summary, found, swept) if estimated else _tests(summary, swept)
    for section in sections:
        for cells in section:
            table.add_row(*map(Text, cells))  # as Text, so that square brackets are no markup
        table.add_section()
    if notes := _notes(summary, run, found):
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    return table


def _estimated(summary: dict[str, Any]) -> bool:
    """Whether the table is of estimates: no member was tested, and fitted Q judged some."""
    members = summary["members"]
    untested = not any(member["returns"] for member in members)
    return untested and any(member.get("fqe_return") is not None for member in members)


def _tests(summary: dict[str, Any], swept: Sequence[str]) -> Iterator[list[list[str]]]:
    """The table's sections by tests."""
    yield [
        [*member_cells(member, swept), range_of(member["returns"])] for member in summary["members"]
    ]
    yield _aggregates(summary, swept)
    yield [_line(name, swept, {}, summary[name]) for name in ("teacher", "dataset", "random")]


def _estimates(
    summary: dict[str, Any], found: Sequence[Verdict], swept: Sequence[str]
) -> Iterator[list[list[str]]]:
    """The table's sections by estimates. None is of undiscounted returns."""
    yield [
        [
            *member_cells(
                {**member, "updates": member["fqe_updates"], "mean_return": member["fqe_return"]},
                swept,
            ),
            "",
        ]
        for member in summary["members"]
    ]
    yield [
        _line("mean [95%]", swept, v.swept, v.value, ends_in_words(v.value_interval)) for v in found
    ]
    yield [
        _line("the log [95%]", swept, {}, v.reference_value, ends_in_words(v.reference_interval))
        for v in found[:1]
    ]


def _add_columns(table: Table, run: RunRecord, swept: Sequence[str], last: tuple[str, str]) -> None:
    numbers: dict[str, Any] = {"justify": "right", "no_wrap": True}
    for name in ("member", "seed"):
        table.add_column(name, **numbers)
    for name in swept:  # in a narrow terminal the long names are wrapped, the values are not
        width = max(len(setting_value(entry["swept"][name])) for entry in run.members)
        table.add_column(Text(option_name(name)), justify="right", min_width=width, overflow="fold")
    for name in ("updates", *last):
        table.add_column(name, **numbers)


def _aggregates(summary: dict[str, Any], swept: Sequence[str]) -> list[list[str]]:
    """A line for each group, one for all members, and that one normalised."""
    best = best_group(summary)
    lines = [
        _line(
            "best IQM [95%]" if group is best else "IQM [95%]",
            swept,
            group["swept"],
            group["iqm"],
            interval(group),
        )
        for group in summary["groups"]
    ]
    everyone = "all cql [95%]" if "algorithm" in swept else "all [95%]" if swept else "IQM [95%]"
    lines.append(_line(everyone, swept, {}, summary["iqm"], interval(summary)))
    if scores := (best or summary)["normalized"]:  # of what the report leads with
        lines.append(_line("normalised", swept, {}, scores["iqm"], interval(scores)))
    return lines


def _line(
    name: str, swept: Sequence[str], setting: Swept, value: float | None, note: str = ""
) -> list[str]:
    """The cells of a line that is not about one member."""
    values = [setting_value(setting[key]) if key in setting else "" for key in swept]
    return [name, "", *values, "", number(value), note]


def _notes(summary: dict[str, Any], run: RunRecord, found: Sequence[Verdict]) -> list[str]:
    notes = []
    if sentence := verdict_sentence(run, found):
        notes.append(sentence)
    if actions := summary.get("actions"):
        notes += warning_lines(actions["warnings"])
    if scores := (best_group(summary) or summary)["normalized"]:
        ends = normalized_by(scores["random"], scores["reference"], scores["source"])
        notes.append(f"normalised: {ends}")
    if summary["references_of_data"] and any(member["returns"] for member in summary["members"]):
        notes.append(tested_elsewhere(summary["references_of_data"]))
    return notes


def title(run: RunRecord) -> str:
    """The environment and how long the students were trained."""
    environment = environment_name(run.config["env"]["id"])
    return f"{environment}: CQL, {run.config['cql']['num_updates']:,} updates for each member"
