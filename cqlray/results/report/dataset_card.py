"""A data set's card in the terminal; dataset_card_page makes the HTML page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from cqlray.config.secrets import printable
from cqlray.data.card import Card, Histogram
from cqlray.data.source import columns_in_words
from cqlray.results.report.formatting import normalized_by, number, percentages
from cqlray.results.statistics.reference_scores import reference_scores

COLUMNS = 100
INDENT = " " * 13
BARS = " ▁▂▃▄▅▆▇█"
DIMENSIONS = 8  # of the actions, at most, get a line each; the HTML page has them all
LONGEST_LABEL = 10  # of an action; `columns` above has the whole names


def card_lines(card: Card, description: dict[str, Any]) -> list[str]:
    """What `cqlray dataset info` prints: lines of at most 100 columns, with histograms as bars of
    eight heights.

    Args:
        card: the data set's card.
        description: the contents of dataset.json.
    """
    lines = [
        _paragraph(title, text) if isinstance(text, str) else [text[0]]
        for title, text in _entries(card, description)
    ]
    return [line for paragraph in lines for line in paragraph]


def bars(histogram: Histogram) -> str:
    """The bins as characters: a blank for an empty bin, the highest bar for the fullest one."""
    most = max(int(histogram.counts.max()), 1)
    return "".join(BARS[-(-int(count) * (len(BARS) - 1) // most)] for count in histogram.counts)


def references_line(description: dict[str, Any]) -> str:
    """The data set's normalised mean return and its scale; empty where it has no reference
    scores.
    """
    found = reference_scores(description)
    if found is None:
        return ""
    score = float(found.normalized(description["returns"]["mean"]))
    ends = normalized_by(found.random, found.reference, found.source)
    return f"normalised mean return {number(score)}, where {ends}"


def _entries(card: Card, description: dict[str, Any]) -> Iterator[tuple[str, str | tuple[str]]]:
    """Title and text of each paragraph; a line that must not be wrapped is a tuple."""
    environment, returns = description["environment"], description["returns"]
    yield "environment", str(environment.get("id") or "not said")
    if columns := description.get("columns"):
        yield "columns", columns_in_words(columns)
    for origin in description.get("provenance") or []:
        for line in origin.get("reading") or []:
            yield "reading", str(line)
    yield "episodes", f"{card.episodes:,}, {card.transitions:,} transitions"
    for tier in card.tiers:
        yield f"  {tier.name}", f"{tier.episodes:,} episodes, mean return {tier.mean_return:.1f}"
    spread = ", ".join(f"{float(q):.0%} {value:.1f}" for q, value in returns["quantiles"].items())
    yield "returns", f"mean {returns['mean']:.1f}; quantiles {spread}"
    yield "", _drawn(card.returns)
    if references := references_line(description):
        yield "references", references
    lengths, ended = card.lengths, card.terminated
    yield "lengths", f"mean {card.transitions / card.episodes:.1f} steps"
    ends = f"{lengths.low + 0.5:,.0f} {bars(lengths)} {lengths.high - 0.5:,.0f}"
    yield "", (f"{INDENT}{ends}",)
    yield "ends", f"{ended:.1%} of the episodes terminated, {1 - ended:.1%} truncated"
    rewards = f"mean {number(card.reward_mean)}, standard deviation {number(card.reward_std)}"
    yield "rewards", rewards
    yield "", _drawn(card.rewards)
    yield from _action_entries(card, description["action_coverage"])
    yield "coverage", coverage_sentence(card)
    yield "digest", description["digest"]


def _action_entries(
    card: Card, shares: Sequence[float] | None
) -> Iterator[tuple[str, str | tuple[str]]]:
    if shares:
        yield "actions", f"cover {percentages(shares)} of their bounds, dimension by dimension"
    else:
        yield "actions", "bounds not said; over the range that occurs"
    for name, histogram in zip(card.action_names, card.actions[:DIMENSIONS], strict=False):
        short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
        yield f"  {short}", _drawn(histogram, f"  {short}")
    if len(card.actions) > DIMENSIONS:
        yield "", f"and {len(card.actions) - DIMENSIONS} more, in the card that --html draws"


def coverage_sentence(card: Card) -> str:
    """How much of the observations' variance the two axes of the map show."""
    size, shares = card.coverage.components.shape[1], card.coverage.explained
    held = f"{shares[0]:.0%} and {shares[1]:.0%}"
    taken = f", one in {card.coverage.every} looked at" if card.coverage.every > 1 else ""
    return (
        f"{size:,} observation dimension{'s' * (size != 1)}{taken}; two principal components hold"
        f" {held} of the variance"
    )


def _drawn(histogram: Histogram, title: str = "") -> tuple[str]:
    return (f"{title:<12} {number(histogram.low)} {bars(histogram)} {number(histogram.high)}",)


def _paragraph(title: str, text: str) -> list[str]:
    return textwrap.wrap(
        printable(text),
        COLUMNS,
        initial_indent=f"{printable(title):<12} ",
        subsequent_indent=INDENT,
    )
