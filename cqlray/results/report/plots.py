"""The figures of a report, each an SVG text: the same record gives the same bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cqlray.results.report.formatting import number
from cqlray.results.report.groups import Group, groups_of
from cqlray.results.statistics.resampling import iqm_of_members
from cqlray.results.statistics.summary import (
    RunRecord,
    conservative_weight,
    curve,
    dataset_return,
    observed_return,
    reference_return,
    references_of_data,
    student_rows,
)

# Okabe and Ito's palette, which the colour-blind can tell apart; its black is for the reference
# lines, and its yellow, too pale for a line on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
REFERENCES = {"teacher": "--", "dataset mean": "-.", "random": ":"}
WIDTH, HEIGHT = (
    5.4,
    3.4,
)  # inches; narrow, so that the text is still readable where the figure fills a phone's width
LEGEND_ROW = 0.19  # inches
GREY = "#999999"
OTHERS = "the other "
LONGEST_NAME = 64  # characters in a legend
# groups in a legend; of more than that it would take the page, and nobody could tell their lines
# apart
MOST_NAMED = 8
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cqlray",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
}
# A reader whose pages are dark has the same figure with light ink: an image of its own cannot take
# the page's.
_DARK = """
@media (prefers-color-scheme: dark) {
text { fill: #e6e8ea }
[style*="stroke: #000000"] { stroke: #e6e8ea !important }
[style*="fill: #000000"] { fill: #e6e8ea !important }
[style*="stroke: #666666"] { stroke: #8a929c !important }
[style*="stroke: #e4e4e4"] { stroke: #363c44 !important }
[style*="stroke: #ffffff"] { stroke: #1d2125 !important }
}
"""


def learning_curves(run: RunRecord, num_samples: int, seed: int) -> str:
    """Mean return of every member over its updates; for each setting of the sweep the IQM and its
    95% interval.
    """
    with svg_figure() as (figure, svg):
        axes = figure.add_subplot()
        draw_learning_curves(axes, run, num_samples, seed)
        legend_below(figure, axes)
    return svg.getvalue()


def draw_learning_curves(axes: Any, run: RunRecord, num_samples: int, seed: int) -> None:
    """What learning_curves shows, into matplotlib axes of anybody's."""
    groups = groups_of(run)
    draw_curves(axes, groups, num_samples, seed)
    for group, look in zip(groups, looks(groups), strict=True):
        for member in group.members:
            rows = student_rows(run, member)
            means = [np.mean(row["returns"]) for row in rows.values()]
            axes.plot(
                list(rows),
                means,
                look.style,
                color=look.colour,
                alpha=0.45 if look.named else 0.2,
                linewidth=0.9,
            )
    references = (
        reference_return(run, "teacher"),
        dataset_return(run),
        reference_return(run, "random"),
    )
    of_data = references_of_data(run)
    for (name, style), value in zip(REFERENCES.items(), references, strict=True):
        if value is not None:
            label = f"{name} {number(value)}{' (told by the data)' if name in of_data else ''}"
            axes.axhline(value, color="black", linestyle=style, linewidth=1.1, label=label)


def draw_curves(axes: Any, groups: Sequence[Group], num_samples: int, seed: int) -> None:
    """The IQM and its 95% interval over updates, a curve for each group."""
    axes.set(xlabel="updates", ylabel="return")
    for group, look in zip(groups, looks(groups), strict=True):
        points = curve(group.run, group.members, num_samples if look.named else 1, seed)
        updates = [p["updates"] for p in points]
        width = 2.2 if look.named else 0.9
        label = look.label if points else "_"
        axes.plot(
            updates,
            [p["iqm"] for p in points],
            look.style,
            color=look.colour,
            linewidth=width,
            label=label,
        )
        if look.named:
            low, high = ([p[key] for p in points] for key in ("iqm_low", "iqm_high"))
            axes.fill_between(updates, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def value_calibration(run: RunRecord) -> str:
    """The critics' value of the first state against what the same episodes brought: a point for
    each test of a member.
    """
    with svg_figure() as (figure, svg):
        axes = figure.add_subplot(
            xlabel="observed discounted return", ylabel="critics' value of the first state"
        )
        ends: list[float] = []
        groups = groups_of(run)
        for group, look in zip(groups, looks(groups), strict=True):
            points = [
                point for member in group.members for point in _calibration_points(run, member)
            ]
            if not points:
                continue
            observed, values, progress = (np.array([p[i] for p in points]) for i in range(3))
            ends += [*observed, *values]
            name = (
                look.label
                if len(groups) > 1
                else "a test of a member (darker: later, outlined: last)"
            )
            # Later tests are darker: what counts is where a member ends.
            axes.scatter(
                observed,
                values,
                22.0,
                look.colour,
                alpha=0.25 + 0.75 * progress,
                edgecolors=["black" if p == 1.0 else "none" for p in progress],
                linewidths=0.8,
                label=name,
            )
        margin = 0.06 * (max(ends) - min(ends)) or 1.0
        limits = (min(ends) - margin, max(ends) + margin)
        axes.plot(limits, limits, color="black", linewidth=1.0)
        axes.set(xlim=limits, ylim=limits)
        axes.set_title(
            "above the line: overestimation; below: underestimation",
            loc="left",
            fontsize=9,
            style="italic",
        )
        legend_below(figure, axes)
    return svg.getvalue()


def dataset_returns(run: RunRecord) -> str:
    """Histogram of the returns of the dataset's episodes, with its mean."""
    assert run.dataset is not None
    histogram, mean = run.dataset["returns"]["histogram"], run.dataset["returns"]["mean"]
    with svg_figure() as (figure, svg):
        axes = figure.add_subplot(xlabel="return of an episode", ylabel="episodes")
        edges = np.array(histogram["edges"])
        axes.bar(
            edges[:-1],
            histogram["counts"],
            np.diff(edges),
            align="edge",
            color=COLOURS[5],
            edgecolor="white",
        )
        axes.axvline(
            mean,
            color="black",
            linestyle=REFERENCES["dataset mean"],
            linewidth=1.1,
            label=f"mean {number(mean)}",
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, axes)
    return svg.getvalue()


def teacher_curve(run: RunRecord) -> str:
    """The teacher's mean return at its tests over environment steps; the best, which the run goes
    on with, is ringed.
    """
    assert run.teacher is not None
    tests = run.teacher["tests"]
    with svg_figure() as (figure, svg):
        axes = figure.add_subplot(xlabel="environment steps", ylabel="mean return")
        steps, means = (
            [test[key] for test in tests] for key in ("environment_steps", "mean_return")
        )
        axes.plot(steps, means, "o-", color=COLOURS[0], markersize=4, label="teacher's tests")
        best = [test for test in tests if test["round"] == run.teacher["best_round"]]
        for test in best:
            where, height = test["environment_steps"], test["mean_return"]
            axes.plot(
                where,
                height,
                "o",
                markersize=11,
                fillstyle="none",
                color=COLOURS[1],
                label=f"best {number(height)}",
            )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        legend_below(figure, axes)
    return svg.getvalue()


def comparable_tests(run: RunRecord) -> bool:
    """Whether there is a point for value_calibration to draw."""
    return any(_calibration_points(run, entry["member"]) for entry in run.members)


def _calibration_points(run: RunRecord, member: int) -> list[tuple[float, float, float]]:
    """(observed, value, progress in (0, 1]) of a member's tests that have both numbers; a clone has
    none.
    """
    entry = next(entry for entry in run.members if entry["member"] == member)
    rows = student_rows(run, member) if conservative_weight(run, entry) is not None else {}
    points = []
    for updates, row in rows.items():
        observed, value = observed_return(row), row.get("value")
        if observed is not None and value is not None:
            points.append((observed, value, updates / max(rows)))
    return points


@dataclass(frozen=True)
class Look:
    """How a group is drawn."""

    colour: str
    style: str
    label: str  # in the legend; one that begins with "_" is not in it
    named: bool


def looks(groups: Sequence[Group]) -> list[Look]:
    """A colour and line style for each group.

    Of more than MOST_NAMED the best at the last test are named, the rest grey.
    """
    best = set(range(len(groups)))
    if len(groups) > MOST_NAMED:
        scores = [
            -np.inf if g.returns is None or np.isnan(g.returns).any() else iqm_of_members(g.returns)
            for g in groups
        ]
        best = set(np.argsort(scores)[::-1][: len(COLOURS)].tolist())
    names, drawn = itertools.count(), itertools.count()
    found = []
    for index, group in enumerate(groups):
        if index in best:
            rank = next(names)
            # Styles tell apart what has to share a colour.
            colour, style = COLOURS[rank % len(COLOURS)], STYLES[rank // len(COLOURS) % len(STYLES)]
            name = (
                group.name
                if len(group.name) <= LONGEST_NAME
                else f"{group.name[: LONGEST_NAME - 3]}..."
            )
            found.append(
                Look(colour, style, name.replace("$", r"\$"), True)
            )  # else what stands between two is mathematics
        else:
            label = "_" if next(drawn) else f"{OTHERS}{len(groups) - len(best)}"
            found.append(Look(GREY, "-", label, False))
    return found


def legend_below(figure: Any, axes: Any) -> None:
    """A legend under the axes; the figure grows with it, so that many settings do not press the
    axes together.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        figure.set_size_inches(WIDTH, HEIGHT)
        return
    order = sorted(range(len(labels)), key=lambda index: labels[index].startswith(OTHERS))
    handles, labels = [handles[index] for index in order], [labels[index] for index in order]
    columns = 2 if max(map(len, labels)) <= 34 and len(labels) > 1 else 1
    rows = -(-len(labels) // columns)
    figure.set_size_inches(WIDTH, HEIGHT + LEGEND_ROW * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


@contextmanager
def svg_figure() -> Iterator[tuple[Any, io.StringIO]]:
    """A figure of our settings and the text that it is written to when the block ends; nothing
    global is changed.
    """
    svg, drawn = io.StringIO(), io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, svg
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg.write(drawn.getvalue().replace("</style>", f"{_DARK}</style>", 1))
