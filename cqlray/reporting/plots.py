"""The figures of a report, each an SVG text: the same record gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cqlray.evaluation.summary import (
    RunRecord,
    curve,
    dataset_return,
    observed_return,
    reference_return,
    settings,
    student_rows,
)
from cqlray.reporting.words import number, setting_name

# Okabe and Ito's palette, which the colour-blind can tell apart; its black is for the reference lines, and its yellow,
# too pale for a line on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
REFERENCES = {"teacher": "--", "dataset mean": "-.", "random": ":"}
WIDTH, HEIGHT = 5.4, 3.4  # inches; narrow, so that the text is still readable where the figure fills a phone's width
LEGEND_ROW = 0.19  # inches
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cqlray",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
}


def learning_curves(run: RunRecord, num_samples: int, seed: int) -> str:
    """Mean return of every member over its updates; for each setting of the sweep the IQM and its 95% interval."""
    with _figure() as (figure, svg):
        axes = figure.add_subplot()
        draw_learning_curves(axes, run, num_samples, seed)
        _legend_below(figure, axes)
    return svg.getvalue()


def draw_learning_curves(axes: Any, run: RunRecord, num_samples: int, seed: int) -> None:
    """What learning_curves shows, into matplotlib axes of anybody's."""
    axes.set(xlabel="updates", ylabel="return")
    for index, (swept, members) in enumerate(settings(run)):
        colour, style = _look(index)
        for member in members:
            rows = student_rows(run, member)
            means = [np.mean(row["returns"]) for row in rows.values()]
            axes.plot(list(rows), means, style, color=colour, alpha=0.35, linewidth=0.8)
        points = curve(run, members, num_samples, seed)
        updates = [p["updates"] for p in points]
        low, high = ([p[key] for p in points] for key in ("iqm_low", "iqm_high"))
        axes.fill_between(updates, low, high, color=colour, alpha=0.18, linewidth=0)
        name = setting_name(swept) if swept else "IQM of all members, 95% interval"
        axes.plot(updates, [p["iqm"] for p in points], style, color=colour, linewidth=2.2, label=name)
    references = (reference_return(run, "teacher"), dataset_return(run), reference_return(run, "random"))
    for (name, style), value in zip(REFERENCES.items(), references, strict=True):
        if value is not None:
            axes.axhline(value, color="black", linestyle=style, linewidth=1.1, label=f"{name} {number(value)}")
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def value_calibration(run: RunRecord) -> str:
    """The critics' value of the first state against what the same episodes brought: a point for each test of a member."""
    with _figure() as (figure, svg):
        axes = figure.add_subplot(xlabel="observed discounted return", ylabel="critics' value of the first state")
        ends: list[float] = []
        for index, (swept, members) in enumerate(settings(run)):
            points = [point for member in members for point in _calibration_points(run, member)]
            observed, values, progress = (np.array([p[i] for p in points]) for i in range(3))
            ends += [*observed, *values]
            name = setting_name(swept) if swept else "a test of a member (darker: later, outlined: last)"
            # Later tests are darker: what counts is where a member ends.
            axes.scatter(
                observed, values, 22.0, COLOURS[index % len(COLOURS)], alpha=0.25 + 0.75 * progress,
                edgecolors=["black" if p == 1.0 else "none" for p in progress], linewidths=0.8, label=name,
            )  # fmt: skip
        margin = 0.06 * (max(ends) - min(ends)) or 1.0
        limits = (min(ends) - margin, max(ends) + margin)
        axes.plot(limits, limits, color="black", linewidth=1.0)
        axes.set(xlim=limits, ylim=limits)
        axes.set_title("above the line: overestimation; below: underestimation", loc="left", fontsize=9, style="italic")
        _legend_below(figure, axes)
    return svg.getvalue()


def dataset_returns(run: RunRecord) -> str:
    """Histogram of the returns of the dataset's episodes, with its mean."""
    assert run.dataset is not None
    histogram, mean = run.dataset["returns"]["histogram"], run.dataset["returns"]["mean"]
    with _figure() as (figure, svg):
        axes = figure.add_subplot(xlabel="return of an episode", ylabel="episodes")
        edges = np.array(histogram["edges"])
        axes.bar(edges[:-1], histogram["counts"], np.diff(edges), align="edge", color=COLOURS[5], edgecolor="white")
        axes.axvline(mean, color="black", linestyle=REFERENCES["dataset mean"], linewidth=1.1, label=f"mean {number(mean)}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_below(figure, axes)
    return svg.getvalue()


def teacher_curve(run: RunRecord) -> str:
    """The teacher's mean return at its tests over environment steps; the best, which the run goes on with, is ringed."""
    assert run.teacher is not None
    tests = run.teacher["tests"]
    with _figure() as (figure, svg):
        axes = figure.add_subplot(xlabel="environment steps", ylabel="mean return")
        steps, means = ([test[key] for test in tests] for key in ("environment_steps", "mean_return"))
        axes.plot(steps, means, "o-", color=COLOURS[0], markersize=4, label="teacher's tests")
        best = [test for test in tests if test["round"] == run.teacher["best_round"]]
        for test in best:
            where, height = test["environment_steps"], test["mean_return"]
            axes.plot(where, height, "o", markersize=11, fillstyle="none", color=COLOURS[1], label=f"best {number(height)}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _legend_below(figure, axes)
    return svg.getvalue()


def comparable_tests(run: RunRecord) -> bool:
    """Whether there is a point for value_calibration to draw."""
    return any(_calibration_points(run, entry["member"]) for entry in run.members)


def _calibration_points(run: RunRecord, member: int) -> list[tuple[float, float, float]]:
    """(observed, value, progress in (0, 1]) of a member's tests that have both numbers."""
    rows = student_rows(run, member)
    points = []
    for updates, row in rows.items():
        observed, value = observed_return(row), row.get("value")
        if observed is not None and value is not None:
            points.append((observed, value, updates / max(rows)))
    return points


def _look(index: int) -> tuple[str, str]:
    """Colour and line style of a setting; styles tell apart what has to share a colour."""
    return COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]


def _legend_below(figure: Any, axes: Any) -> None:
    """A legend under the axes; the figure grows with it, so that many settings do not press the axes together."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 34 and len(labels) > 1 else 1
    rows = -(-len(labels) // columns)
    figure.set_size_inches(WIDTH, HEIGHT + LEGEND_ROW * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


@contextmanager
def _figure() -> Iterator[tuple[Any, io.StringIO]]:
    """A figure of our settings and the text that it is written to when the block ends; nothing global is changed."""
    svg = io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, svg
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
