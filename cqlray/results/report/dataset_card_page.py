"""A data set's card as a page: tables and figures in one HTML file, in the report's style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import EngFormatter, MaxNLocator

from cqlray.data.card import COVERAGE_RADIUS, Card, Histogram, Tier
from cqlray.results.report.dataset_card import coverage_sentence, references_line
from cqlray.results.report.formatting import number, sentence
from cqlray.results.report.page import escape, figure, figures, page, section, table
from cqlray.results.report.style import (
    COLOURS,
    HEIGHT,
    WIDTH,
    as_svg,
    draw_bars,
    draw_mean,
    legend_below,
    literal,
)
from cqlray.storage.run_directory import write_bytes

ROW_HEIGHT = 1.5  # inches, of a row of the actions' histograms
_PROVENANCE = ("source", "format", "author", "algorithm", "description", "code", "licence")


def write_card(card: Card, description: dict[str, Any], path: Path) -> None:
    """Write the card as one HTML file that needs no other. Arguments as for card_lines."""
    write_bytes(path, render(card, description).encode())


def render(card: Card, description: dict[str, Any]) -> str:
    """The page's HTML; the same data set gives the same text."""
    environment = description["environment"].get("id") or "logged data"
    references = references_line(description)
    parts = [
        f"<h1>{escape(environment)}: dataset</h1>",
        f'<p class="lead">{escape(_sentence(card, description))}</p>',
        f"<p>{escape(sentence(references))}</p>" if references else "",
        section("Episodes", tiers_table(card, description)),
        section("Figures", figures(*_figures(card, description))),
        _origin(description),
        f'<p class="soft">Digest <code>{escape(description["digest"])}</code></p>',
    ]
    return page(f"cqlray: {environment}", parts)


def _sentence(card: Card, description: dict[str, Any]) -> str:
    quantiles, dims = description["returns"]["quantiles"], len(card.actions)
    size = card.coverage.components.shape[1]
    return (
        f"{card.transitions:,} transitions in {card.episodes:,} episodes; observations of {size}"
        f" number{'s' * (size != 1)}, actions of {dims}. Returns lie between"
        f" {number(quantiles['0'])} and {number(quantiles['1'])}, with mean"
        f" {number(description['returns']['mean'])}."
    )


def tiers_table(card: Card, description: dict[str, Any]) -> str:
    """A line for each tier, and one for all of them."""
    head = ["tier", "episodes", "transitions", "mean return", "mean length"]
    head += ["terminated", "truncated"]
    rows = [_row(t.name, t, t.mean_return, t.terminated / t.episodes) for t in card.tiers]
    if len(rows) > 1:
        rows.append(_row("all", card, description["returns"]["mean"], card.terminated))
    return table(head, rows, strong=len(rows) - 1 if len(rows) > 1 else None)


def _row(name: str, part: Card | Tier, mean_return: float, terminated: float) -> list[str]:
    """`terminated` is the share of the part's episodes."""
    size = [f"{part.episodes:,}", f"{part.transitions:,}"]
    means = [number(mean_return), number(part.transitions / part.episodes)]
    return [name, *size, *means, f"{terminated:.1%}", f"{1 - terminated:.1%}"]


def _figures(card: Card, description: dict[str, Any]) -> list[str]:
    mean = description["returns"]["mean"]
    occupied = int((card.coverage.counts > 0).sum())
    beyond = f" {card.coverage.outside:,} lie outside the picture." if card.coverage.outside else ""
    return [
        returns_figure(card, mean),
        figure(
            _lengths(card.lengths),
            f"Histogram of episode lengths, {_range(card.lengths)} steps.",
            "Lengths of the episodes.",
        ),
        figure(
            _rewards(card.rewards),
            f"Histogram of rewards, {_range(card.rewards)}; mean {number(card.reward_mean)}.",
            f"Rewards, counted on a logarithmic axis: mean {number(card.reward_mean)}, "
            f"standard deviation {number(card.reward_std)}.",
        ),
        figure(
            _coverage(card),
            f"Map of the observations on two axes; {occupied:,} of its cells hold an observation.",
            f"Coverage: {coverage_sentence(card)}. Each dimension was brought to standard deviation"
            f" 1 before.{beyond}",
        ),
        actions_figure(card, description),
    ]


def returns_figure(card: Card, mean: float) -> str:
    """The episodes' returns by tier, as a figure for a page."""
    alt = f"Histogram of {_range(card.returns)}; mean {number(mean)}."
    return figure(_returns(card, mean), alt, "Returns of the episodes.")


def actions_figure(card: Card, description: dict[str, Any]) -> str:
    """The actions, dimension by dimension, as a figure for a page."""
    span = (
        "its bounds"
        if description["environment"].get("action_low") is not None
        else "the range that occurs"
    )
    alt = f"A histogram of each of the {len(card.actions)} action dimensions over {span}."
    return figure(_actions(card), alt, f"Actions, each dimension over {span}.")


def _range(histogram: Histogram) -> str:
    return f"{number(histogram.low)} to {number(histogram.high)}"


@as_svg
def _returns(drawn: Any, card: Card, mean: float) -> None:
    """A histogram of the returns, with the tiers stacked on each other."""
    axes = drawn.add_subplot(xlabel="return of an episode", ylabel="episodes")
    below = np.zeros(len(card.returns.counts), np.int64)
    for index, tier in enumerate(card.tiers):
        _draw(axes, tier.returns, COLOURS[(index + 5) % len(COLOURS)], below, literal(tier.name))
        below = below + tier.returns.counts
    draw_mean(axes, mean)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(drawn, axes)


@as_svg
def _lengths(drawn: Any, histogram: Histogram) -> None:
    drawn.set_size_inches(WIDTH, HEIGHT)
    axes = drawn.add_subplot(xlabel="steps of an episode", ylabel="episodes")
    _draw(axes, histogram, COLOURS[5])
    # Otherwise a single length would be a bar as wide as the figure, over fractions of a step.
    if histogram.high - histogram.low < 10:
        axes.set_xlim(histogram.low - 5, histogram.high + 5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
        axis.set_major_formatter(EngFormatter(sep=""))


@as_svg
def _rewards(drawn: Any, histogram: Histogram) -> None:
    drawn.set_size_inches(WIDTH, HEIGHT)
    axes = drawn.add_subplot(xlabel="reward of a step", ylabel="transitions")
    _draw(axes, histogram, COLOURS[5])
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)  # so that a bin with a single reward is visible


def _draw(
    axes: Any, histogram: Histogram, colour: str, below: Any = 0, label: str | None = None
) -> None:
    options = {"bottom": below, "linewidth": 0.4, "label": label}
    draw_bars(axes, histogram.edges, histogram.counts, colour, **options)


@as_svg
def _actions(drawn: Any, card: Card) -> None:
    """A small histogram for each dimension."""
    columns = min(len(card.actions), 3)
    rows = -(-len(card.actions) // columns)
    drawn.set_size_inches(WIDTH, HEIGHT if rows == 1 else ROW_HEIGHT * rows)
    for dimension, (name, histogram) in enumerate(
        zip(card.action_names, card.actions, strict=True)
    ):
        axes = drawn.add_subplot(rows, columns, dimension + 1)
        _draw(axes, histogram, COLOURS[5])
        axes.set_title(literal(name), fontsize=9, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        ends = (histogram.low, (histogram.low + histogram.high) / 2, histogram.high)
        axes.set_xticks(ends, [f"{end:.3g}" for end in ends])
        axes.tick_params(labelsize=8)


@as_svg
def _coverage(drawn: Any, card: Card) -> None:
    """A map of the observations on their first two principal components; darker cells have more."""
    counts = card.coverage.counts
    cells = COVERAGE_RADIUS * np.linspace(-1.0, 1.0, len(counts) + 1)
    drawn.set_size_inches(WIDTH, HEIGHT + 0.6)
    axes = drawn.add_subplot(xlabel="first component", ylabel="second component")
    shades = ListedColormap(mpl.colormaps["Blues"](np.linspace(0.3, 1.0, 256)))
    cells_held, norm = np.ma.masked_equal(counts.T, 0), LogNorm(1, max(int(counts.max()), 2))
    box = (cells[0], cells[-1], cells[0], cells[-1])
    drawing = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "zorder": 1.0}
    image = axes.imshow(cells_held, cmap=shades, norm=norm, extent=box, **drawing)
    for limits, axis in ((axes.set_xlim, 1), (axes.set_ylim, 0)):
        held = np.flatnonzero(counts.any(axis=axis))
        if len(held):
            limits(max(cells[held[0]] - 0.5, cells[0]), min(cells[held[-1] + 1] + 0.5, cells[-1]))
    drawn.colorbar(image, label="observations in a cell")


def _origin(description: dict[str, Any]) -> str:
    """Where the data is from, as far as is known: a paragraph for each source."""
    origins = _flat(description.get("provenance") or [])
    lines = [
        "; ".join(f"{key} {origin[key]}" for key in _PROVENANCE if origin.get(key))
        for origin in origins
    ]
    lines += [f"reading: {line}" for origin in origins for line in origin.get("reading") or []]
    if description.get("licence"):
        lines.append(f"licence {description['licence']}")
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in dict.fromkeys(lines) if line)
    return f"<h2>Where it is from</h2>\n{paragraphs}" if paragraphs else ""


def _flat(origins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources, each followed by its sources where it was a dataset of cqlray's."""
    return [found for origin in origins for found in (origin, *_flat(origin.get("sources") or []))]
