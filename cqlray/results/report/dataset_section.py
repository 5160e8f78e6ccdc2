"""The run's dataset in its report: its card where the data is here and small, else what its
description tells.
"""

from __future__ import annotations

from functools import partial

from cqlray.data.card import card
from cqlray.data.loading import iterate_shards
from cqlray.results.report import plots
from cqlray.results.report.dataset_card import references_line
from cqlray.results.report.dataset_card_page import actions_figure, returns_figure, tiers_table
from cqlray.results.report.formatting import number, percentages, sentence
from cqlray.results.report.page import escape, figure, figures, section, table
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.run_directory import DATASET

MOST_TRANSITIONS = 500_000  # of a dataset that a report reads; reading so many takes seconds
MOST_SHARES = 12  # action dimensions whose coverage is listed


def dataset_section(run: RunRecord) -> str:
    """The section; empty for a run without a dataset."""
    if run.dataset is None:
        return ""
    if _at_hand(run):
        found = card(run.dataset, partial(iterate_shards, run.directory / DATASET, run.dataset))
        tiers = tiers_table(found, run.dataset)
        drawn = [
            returns_figure(found, run.dataset["returns"]["mean"]),
            actions_figure(found, run.dataset),
        ]
    else:
        tiers, drawn = _tiers(run), [_returns(run)]
    return section("Dataset", tiers, _note(run), figures(*drawn))


def _at_hand(run: RunRecord) -> bool:
    """Whether the dataset is small and all its shards are in the run directory. A dataset that
    existed before the run is elsewhere, or may be gone.
    """
    assert run.dataset is not None
    shards, directory = run.dataset["shards"], run.directory / DATASET
    few = run.dataset["transitions"] <= MOST_TRANSITIONS
    return bool(shards) and few and all((directory / shard["file"]).is_file() for shard in shards)


def _tiers(run: RunRecord) -> str:
    assert run.dataset is not None
    keys = ("episodes", "transitions")
    rows = [
        [name, *(f"{t[k]:,}" for k in keys), number(t["mean_return"])]
        for name, t in run.dataset["tiers"].items()
    ]
    rows.append(
        ["all", *(f"{run.dataset[k]:,}" for k in keys), number(run.dataset["returns"]["mean"])]
    )
    return table(["tier", "episodes", "transitions", "mean return"], rows, strong=len(rows) - 1)


def _returns(run: RunRecord) -> str:
    assert run.dataset is not None
    quantiles = run.dataset["returns"]["quantiles"]
    alt = (
        f"Histogram of {run.dataset['episodes']:,} returns, {number(quantiles['0'])} to"
        f" {number(quantiles['1'])}."
    )
    return figure(plots.dataset_returns(run), alt, "Returns of the dataset's episodes.")


def _note(run: RunRecord) -> str:
    """Coverage of the actions, the normalised scale, and the digest."""
    assert run.dataset is not None
    shares = run.dataset.get("action_coverage") or []
    if len(shares) > MOST_SHARES:
        coverage = (
            f"Actions cover between {min(shares):.0%} and {max(shares):.0%} of their bounds in each"
            " dimension. "
        )
    else:
        listed = f"Actions cover {percentages(shares)} of their bounds, dimension by dimension. "
        coverage = listed if shares else ""
    references = references_line(run.dataset)
    references = f"{sentence(references)} " if references else ""
    return (
        f'<p class="soft">{escape(coverage + references)}Digest'
        f" <code>{escape(run.dataset['digest'])}</code></p>"
    )
