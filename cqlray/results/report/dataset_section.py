"""The run's dataset in its report: its card where the data is here and small, else what its
description tells.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from cqlray.data.card import card
from cqlray.data.loading import iterate_shards
from cqlray.results.report import plots
from cqlray.results.report.dataset_card import references_line
from cqlray.results.report.dataset_card_page import actions_figure, returns_figure, tiers_table
from cqlray.results.report.formatting import number, percentages, sentence
from cqlray.results.report.page import escape, figure, figures, section, table
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import DATASET

MOST_TRANSITIONS = 500_000  # of a dataset that a report reads; reading so many takes seconds
MOST_SHARES = 12  # action dimensions whose coverage is listed


def dataset_section(run: RunRecord) -> str:
    """The section; empty for a run without a dataset."""
    if run.dataset is None:
        return ""
    directory, description = run.directory / DATASET, run.dataset
    if _at_hand(directory, description):
        found = card(description, partial(iterate_shards, directory, description))
        tiers, mean = tiers_table(found, description), description["returns"]["mean"]
        drawn = [returns_figure(found, mean), actions_figure(found, description)]
    else:
        tiers, drawn = _tiers(description), [_returns(description)]
    return section("Dataset", tiers, _note(description), figures(*drawn))


def _at_hand(directory: AnyPath, description: dict[str, Any]) -> bool:
    """Whether the dataset is small and all its shards are in the run directory. A dataset that
    existed before the run is elsewhere, or may be gone.
    """
    shards, few = description["shards"], description["transitions"] <= MOST_TRANSITIONS
    return bool(shards) and few and all((directory / shard["file"]).is_file() for shard in shards)


def _tiers(description: dict[str, Any]) -> str:
    keys = ("episodes", "transitions")
    rows = [
        [name, *(f"{t[k]:,}" for k in keys), number(t["mean_return"])]
        for name, t in description["tiers"].items()
    ]
    rows.append(
        ["all", *(f"{description[k]:,}" for k in keys), number(description["returns"]["mean"])]
    )
    return table(["tier", "episodes", "transitions", "mean return"], rows, strong=len(rows) - 1)


def _returns(description: dict[str, Any]) -> str:
    quantiles = description["returns"]["quantiles"]
    alt = (
        f"Histogram of {description['episodes']:,} returns, {number(quantiles['0'])} to"
        f" {number(quantiles['1'])}."
    )
    return figure(plots.dataset_returns(description), alt, "Returns of the dataset's episodes.")


def _note(description: dict[str, Any]) -> str:
    """Coverage of the actions, the normalised scale, and the digest."""
    shares = description.get("action_coverage") or []
    if len(shares) > MOST_SHARES:
        coverage = (
            f"Actions cover between {min(shares):.0%} and {max(shares):.0%} of their bounds in each"
            " dimension. "
        )
    else:
        listed = f"Actions cover {percentages(shares)} of their bounds, dimension by dimension. "
        coverage = listed if shares else ""
    references = references_line(description)
    references = f"{sentence(references)} " if references else ""
    return (
        f'<p class="soft">{escape(coverage + references)}Digest'
        f" <code>{escape(description['digest'])}</code></p>"
    )
