"""The report's training curves: losses and the like over updates, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from cqlray.results.report.groups import Group, groups_of
from cqlray.results.report.page import figure, figures, folded, paragraph, section
from cqlray.results.report.plots import MOST_TESTS, spread
from cqlray.results.report.style import as_svg, legend_below, literal, looks
from cqlray.results.statistics.summary import RunRecord

QUANTITIES = {
    "td_loss": "critic loss (TD)",
    "policy_loss": "policy loss",
    "conservative_gap": "conservative gap",
    "q_data": "q of the data",
    "entropy": "entropy",
    "temperature": "temperature",
    "multiplier": "multiplier",
}
MOST_THIN = 40  # members with a line of their own, in each of the seven figures

Curves = Mapping[int, Mapping[int, float]]
"""Values by member and updates."""


def training_section(run: RunRecord) -> str:
    """A figure for each quantity that training reported, folded; empty where it reported none."""
    groups = groups_of(run)
    drawn = []
    for quantity, name in QUANTITIES.items():
        curves = curves_of(run, quantity)
        if curves:
            svg = training_curves(groups, curves, name)
            drawn.append(figure(svg, f"Training curves: {name} over updates.", sentence_of(name)))
    if not drawn:
        return ""
    members = len(run.members)
    thin = f"{MOST_THIN} of {members:,} members" if members > MOST_THIN else "the members"
    words = (
        f"Thin: {thin}, each by itself; bold: the median of a setting's members that had come so"
        " far. A value that is not finite is a gap."
    )
    return section(
        "Training curves",
        folded("Losses, gap, q, entropy, temperature", paragraph(words, "soft") + figures(*drawn)),
    )


def sentence_of(name: str) -> str:
    """A figure's caption."""
    return f"{name[0].upper()}{name[1:]} over updates."


def curves_of(run: RunRecord, quantity: str) -> dict[int, dict[int, float]]:
    """What the students' training reported of a quantity, in rising order of updates."""
    found: dict[int, dict[int, float]] = {}
    for row in run.metrics:
        if row["stage"] == "students" and quantity in row:
            value: Any = row.get(quantity)
            value = np.nan if value is None else float(value)  # a gap
            found.setdefault(row["member"], {})[row["updates"]] = value
    return found if any(np.isfinite(list(c.values())).any() for c in found.values()) else {}


def medians(group: Group, curves: Curves) -> dict[int, float]:
    """The median over the group's members by updates, at no more than MOST_TESTS of them."""
    rows = [curves[member] for member in group.members if member in curves]
    updates = spread(sorted(set().union(*rows)), MOST_TESTS)
    return {at: float(np.median([row[at] for row in rows if at in row])) for at in updates}


@as_svg
def training_curves(canvas: Any, groups: list[Group], curves: Curves, name: str) -> None:
    """A quantity of every member (thin) and of every setting (bold) over updates."""
    axes = canvas.add_subplot(xlabel="updates", ylabel=name)
    members = [member for group in groups for member in group.members if member in curves]
    thin = set(spread(members, MOST_THIN))
    for group, look in zip(groups, looks(groups), strict=True):
        for member in filter(thin.__contains__, group.members):
            at = spread(list(curves[member]), MOST_TESTS)
            values = [curves[member][updates] for updates in at]
            axes.plot(at, values, look.style, color=look.colour, alpha=0.35, linewidth=0.8)
        middle = medians(group, curves)
        if middle:
            label = look.label if len(groups) > 1 else literal("median of the members")
            width = 2.2 if look.named else 0.9
            style = {"color": look.colour, "linewidth": width, "label": label}
            axes.plot(list(middle), list(middle.values()), look.style, **style)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend_below(canvas, axes)
