"""The figures of a report, each as SVG text: the same record gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from cqlray.results.report.formatting import number
from cqlray.results.report.groups import Group, groups_of
from cqlray.results.report.style import (
    COLOURS,
    MEAN_STYLE,
    as_svg,
    draw_band,
    draw_bars,
    draw_mean,
    legend_below,
    looks,
)
from cqlray.results.statistics.calibration import compared_tests
from cqlray.results.statistics.summary import (
    RunRecord,
    common_updates,
    curve,
    dataset_return,
    mean_returns,
    reference_return,
    references_of_data,
    student_rows,
)
from cqlray.storage.rows import MemberEntry

# Where there are more, only some are drawn, evenly spread. A page of half a million points takes
# minutes to make and to open, and shows no more.
MOST_LINES = 200  # of members
MOST_TESTS = 100  # along a curve
MOST_POINTS = 4_000  # in value_calibration, unless there are more members

T = TypeVar("T")

REFERENCES = {"teacher": "--", "dataset mean": MEAN_STYLE, "random": ":"}


@as_svg
def learning_curves(figure: Any, run: RunRecord, num_samples: int, seed: int) -> None:
    """Mean return of every member over its updates, and for each setting of the sweep the IQM with
    its 95% interval.
    """
    axes = figure.add_subplot()
    draw_learning_curves(axes, run, num_samples, seed)
    legend_below(figure, axes)


def draw_learning_curves(axes: Any, run: RunRecord, num_samples: int, seed: int) -> None:
    """Draw what learning_curves shows into any matplotlib axes."""
    groups = groups_of(run)
    draw_curves(axes, groups, num_samples, seed)
    drawn = set(spread([member for group in groups for member in group.members], MOST_LINES))
    for group, look in zip(groups, looks(groups), strict=True):
        for member in filter(drawn.__contains__, group.members):
            rows = student_rows(run, member)
            updates = spread(list(rows), MOST_TESTS)
            axes.plot(
                updates,
                mean_returns([rows[count] for count in updates]),
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
    """The IQM with its 95% interval over updates, a curve for each group."""
    axes.set(xlabel="updates", ylabel="return")
    for group, look in zip(groups, looks(groups), strict=True):
        updates = spread(common_updates(group.run, group.members), MOST_TESTS)
        samples = num_samples if look.named else 1
        points = curve(group.run, group.members, samples, seed, updates)
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
        low, high = ([p[key] for p in points] for key in ("iqm_low", "iqm_high"))
        draw_band(axes, updates, low, high, look)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


@as_svg
def value_calibration(figure: Any, run: RunRecord) -> None:
    """The critics' value of the first state against the return observed in the same episodes: a
    point for each test of a member, or for some of its tests that are evenly spread.
    """
    most = max(1, MOST_POINTS // max(1, len(run.members)))
    compared = {entry["member"]: _points(run, entry) for entry in run.members}
    axes = figure.add_subplot(
        xlabel="observed discounted return", ylabel="critics' value of the first state"
    )
    ends: list[float] = []
    groups = groups_of(run)
    for group, look in zip(groups, looks(groups), strict=True):
        points = [p for member in group.members for p in spread(compared[member], most)]
        if points:
            label = "a test of a member (darker: later, outlined: last)"
            _draw_points(axes, points, look.colour, look.label if len(groups) > 1 else label)
            ends += [end for observed, value, _ in points for end in (observed, value)]
    _draw_diagonal(axes, min(ends), max(ends))
    legend_below(figure, axes)


def _draw_points(
    axes: Any, points: Sequence[tuple[float, float, float]], colour: str, label: str
) -> None:
    """Points of value_calibration. Later tests are darker, as what counts is where a member ends
    up.
    """
    observed, values, progress = (np.array([point[i] for point in points]) for i in range(3))
    axes.scatter(
        observed,
        values,
        22.0,
        colour,
        alpha=0.25 + 0.75 * progress,
        edgecolors=["black" if share == 1.0 else "none" for share in progress],
        linewidths=0.8,
        label=label,
    )


def _draw_diagonal(axes: Any, low: float, high: float) -> None:
    """Where value and return are equal."""
    margin = 0.06 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="black", linewidth=1.0)
    axes.set(xlim=limits, ylim=limits)
    title = "above the line: overestimation; below: underestimation"
    axes.set_title(title, loc="left", fontsize=9, style="italic")


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread from the first to the last (just the last, where
    `most` is 1).
    """
    if len(items) <= most:
        return list(items)
    places = np.linspace(len(items) - 1, 0, most).round().astype(int)[::-1]
    return [items[place] for place in places]


@as_svg
def dataset_returns(figure: Any, description: dict[str, Any]) -> None:
    """Histogram of the returns of a described dataset's episodes, with its mean."""
    histogram, mean = description["returns"]["histogram"], description["returns"]["mean"]
    axes = figure.add_subplot(xlabel="return of an episode", ylabel="episodes")
    draw_bars(axes, np.array(histogram["edges"]), histogram["counts"], COLOURS[5])
    draw_mean(axes, mean)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)


@as_svg
def teacher_curve(figure: Any, run: RunRecord) -> None:
    """The teacher's mean return at its tests, over environment steps, with a ring around the best
    test, whose snapshot the run goes on with.
    """
    assert run.teacher is not None
    tests = run.teacher["tests"]
    axes = figure.add_subplot(xlabel="environment steps", ylabel="mean return")
    steps, means = ([test[key] for test in tests] for key in ("environment_steps", "mean_return"))
    axes.plot(steps, means, "o-", color=COLOURS[0], markersize=4, label="teacher's tests")
    for test in tests:
        if test["round"] == run.teacher["best_round"]:
            where, height = test["environment_steps"], test["mean_return"]
            ring = {"markersize": 11, "fillstyle": "none", "color": COLOURS[1]}
            axes.plot(where, height, "o", label=f"best {number(height)}", **ring)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend_below(figure, axes)


def comparable_tests(run: RunRecord) -> bool:
    """Whether value_calibration has any point to draw."""
    return any(compared_tests(run, entry) for entry in run.members)


def _points(run: RunRecord, entry: MemberEntry) -> list[tuple[float, float, float]]:
    """(observed, value, progress in (0, 1]) of each test of a member that has both numbers."""
    last = max(student_rows(run, entry["member"]), default=0)
    return [(seen, value, updates / last) for updates, seen, value in compared_tests(run, entry)]
