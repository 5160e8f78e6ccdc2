"""The results of a run as a table for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cqlray.results.report.formatting import (
    NOTHING,
    count,
    interval,
    normalized_by,
    number,
    option_name,
    setting_value,
    tested_elsewhere,
)
from cqlray.results.statistics.summary import RunRecord


def results_table(summary: dict[str, Any], run: RunRecord) -> Table:
    """A line for each member, then the aggregate of all, of each setting of a sweep, and the
    references.

    Args:
        summary: what `summarize` returned.
        run: the record that it is about.
    """
    swept = list(dict.fromkeys(name for entry in run.members for name in entry["swept"]))
    table = Table(
        title=Text(title(run)),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    numbers: dict[str, Any] = {"justify": "right", "no_wrap": True}
    for name in ("member", "seed"):
        table.add_column(name, **numbers)
    for name in swept:  # in a narrow terminal the long names break, the values do not
        width = max(len(setting_value(entry["swept"][name])) for entry in run.members)
        table.add_column(Text(option_name(name)), justify="right", min_width=width, overflow="fold")
    for name in ("updates", "mean return", "worst to best episode"):
        table.add_column(name, **numbers)

    def add(*cells: str) -> None:
        table.add_row(*map(Text, cells))  # Text: what stands in square brackets is no markup

    def add_line(name: str, setting: dict[str, Any], value: float | None, note: str = "") -> None:
        add(
            name,
            "",
            *(setting_value(setting[key]) if key in setting else "" for key in swept),
            "",
            number(value),
            note,
        )

    for member in summary["members"]:
        returns = member["returns"]
        spread = f"{number(np.min(returns))} to {number(np.max(returns))}" if returns else NOTHING
        values = [setting_value(member[name]) for name in swept]
        add(
            str(member["member"]),
            str(member["seed"]),
            *values,
            count(member["updates"]),
            number(member["mean_return"]),
            spread,
        )
    table.add_section()
    for group in summary["groups"]:
        add_line("IQM [95%]", group["swept"], group["iqm"], interval(group))
    everyone = "all cql [95%]" if "algorithm" in swept else "all [95%]" if swept else "IQM [95%]"
    add_line(everyone, {}, summary["iqm"], interval(summary))
    notes = []
    if scores := summary["normalized"]:
        add_line("normalised", {}, scores["iqm"], interval(scores))
        notes.append(f"normalised: {normalized_by(scores)}")
    table.add_section()
    for name, key in (("teacher", "teacher"), ("dataset", "dataset"), ("random", "random")):
        add_line(name, {}, summary[key])
    if summary["references_of_data"] and any(member["returns"] for member in summary["members"]):
        notes.append(tested_elsewhere(summary["references_of_data"]))
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    return table


def title(run: RunRecord) -> str:
    """The environment and how long the students were trained."""
    return (
        f"{run.config['env']['id']}: CQL, {run.config['cql']['num_updates']:,} updates for each"
        " member"
    )
