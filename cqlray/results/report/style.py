"""The look of every figure: colours, line styles, legends, and the SVG text that it becomes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cqlray.config.secrets import printable
from cqlray.results.report.formatting import number
from cqlray.results.report.groups import Group
from cqlray.results.statistics.resampling import Floats, iqm_of_members

# Okabe and Ito's palette, which colour-blind readers can tell apart. Its black is for the reference
# lines; its yellow is left out, as it is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MEAN_STYLE = "-."  # of the dataset's mean return
WIDTH, HEIGHT = 5.4, 3.4  # inches; narrow, so that the text is still readable on a phone
LEGEND_ROW = 0.19  # inches
GREY = "#999999"
OTHERS = "the other "
LONGEST_NAME = 64  # characters in a legend
# Groups in a legend. More would fill the page, and nobody could tell their lines apart.
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
# Readers with dark pages see the same figure in light ink. The figure needs these rules itself, as
# an embedded image does not inherit the page's style.
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


@dataclass(frozen=True)
class Look:
    """How a group is drawn."""

    colour: str
    style: str
    label: str  # in the legend, which leaves out a label that begins with "_"
    named: bool  # has its colour, its name and its interval; otherwise it is one of many grey lines


def looks(groups: Sequence[Group]) -> list[Look]:
    """A colour and line style for each group.

    Where there are more than MOST_NAMED, the best at the last test are named and the rest grey.
    """
    best = set(range(len(groups)))
    if len(groups) > MOST_NAMED:
        scores = [
            -np.inf if g.returns is None or np.isnan(g.returns).any() else iqm_of_members(g.returns)
            for g in groups
        ]
        best = set(np.argsort(scores)[::-1][: len(COLOURS)].tolist())
    ranks, grey = itertools.count(), itertools.count()
    return [
        _named_look(group.name, next(ranks))
        if index in best
        else Look(GREY, "-", "_" if next(grey) else f"{OTHERS}{len(groups) - len(best)}", False)
        for index, group in enumerate(groups)
    ]


def _named_look(name: str, rank: int) -> Look:
    # Groups that have to share a colour differ in line style.
    colour, style = COLOURS[rank % len(COLOURS)], STYLES[rank // len(COLOURS) % len(STYLES)]
    return Look(colour, style, literal(name), True)


def literal(name: str) -> str:
    """A name as a legend shows it: matplotlib would set what stands between two dollar signs as
    formulas, and leave out a label that begins with "_"; XML has no control characters.
    """
    label = " ".join(printable(name).split())
    label = label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 3]}..."
    return ("\N{ZERO WIDTH SPACE}" * label.startswith("_") + label).replace("$", r"\$")


def draw_band(axes: Any, x: ArrayLike, low: ArrayLike, high: ArrayLike, look: Look) -> None:
    """A named group's interval around its line."""
    if look.named:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)


def draw_bars(axes: Any, edges: Floats, counts: Any, colour: str, **options: Any) -> None:
    """A histogram of counts between edges."""
    axes.bar(
        edges[:-1], counts, np.diff(edges), align="edge", color=colour, edgecolor="white", **options
    )


def draw_mean(axes: Any, mean: float) -> None:
    """A line at the mean of a histogram."""
    label = f"mean {number(mean)}"
    axes.axvline(mean, color="black", linestyle=MEAN_STYLE, linewidth=1.1, label=label)


def legend_below(figure: Any, axes: Any) -> None:
    """A legend under the axes. The figure grows with it, so that a long one does not squeeze the
    axes.
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


P = ParamSpec("P")


def as_svg(draw: Callable[Concatenate[Any, P], None]) -> Callable[P, str]:
    """Makes a function that draws into a figure, its first argument, one that takes the other
    arguments and returns the SVG text. Matplotlib's global settings stay as they are.
    """

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> str:
        svg = io.StringIO()
        with mpl.rc_context(SETTINGS):
            figure = Figure(layout="constrained")
            FigureCanvasSVG(figure)
            draw(figure, *args, **options)
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        return svg.getvalue().replace("</style>", f"{_DARK}</style>", 1)

    return drawn
