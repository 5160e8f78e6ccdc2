"""Performance profiles (Agarwal et al. 2021, arXiv 2108.13264): how many of a group's episodes
bring more than so much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np

from cqlray import seeding
from cqlray.results.report.formatting import normalized_by, number
from cqlray.results.report.groups import Group
from cqlray.results.report.page import figure
from cqlray.results.report.plots import Look, legend_below, looks, svg_figure
from cqlray.results.statistics.comparison import normalized_scores, performance_profile
from cqlray.results.statistics.reference_scores import ReferenceScores
from cqlray.results.statistics.resampling import Floats

THRESHOLDS = 121
MOST_TOLD = 4  # groups in the text alternative


def profile_figure(
    groups: Sequence[Group], scores: ReferenceScores | None, num_samples: int, seed: int
) -> str:
    """The profiles as a figure of a page; empty where no group has been tested.

    Args:
        groups: each is drawn by its returns at its last test.
        scores: what returns are normalised by; None leaves them as they are.
        num_samples: bootstrap resamples of each band.
        seed: the run's seed.
    """
    whole = [
        group.returns is not None and bool(np.isfinite(group.returns).all()) for group in groups
    ]
    shown, own_looks = list(compress(groups, whole)), list(compress(looks(groups), whole))
    if not shown:
        return ""
    values = [_values(group, scores) for group in shown]
    unit = "normalised scores" if scores else "returns"
    medians = [
        f"{number(float(np.median(v)))} ({g.name})"
        for g, v in zip(shown[:MOST_TOLD], values, strict=False)
    ]
    more = f" and {len(shown) - MOST_TOLD} more groups" if len(shown) > MOST_TOLD else ""
    alt = (
        f"Performance profiles of {unit}. Half of the episodes lie above"
        f" {', '.join(medians)}{more}."
    )
    by = ""
    if scores:
        ends = normalized_by(scores.random, scores.reference, scores.source)
        by = f"Normalised: {ends}. "
    words = (
        "Performance profile: share of the last test's episodes above each"
        f" {'score' if scores else 'return'}, with its pointwise 95% interval; further right is"
        f" better. {by}"
    )
    return figure(_draw(shown, own_looks, values, unit, num_samples, seed), alt, words.strip())


def _values(group: Group, scores: ReferenceScores | None) -> Floats:
    """[members, episodes]."""
    assert group.returns is not None
    return (
        normalized_scores(group.returns, scores.random, scores.reference)
        if scores
        else group.returns
    )


def _draw(
    groups: Sequence[Group],
    own_looks: Sequence[Look],
    values: Sequence[Floats],
    unit: str,
    num_samples: int,
    seed: int,
) -> str:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    margin = 0.03 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, THRESHOLDS)
    with svg_figure() as (drawn, svg):
        axes: Any = drawn.add_subplot(
            xlabel=unit, ylabel="share of episodes above", ylim=(-0.02, 1.02)
        )
        for scores, look, group in zip(values, own_looks, groups, strict=True):
            generator = np.random.default_rng(seeding.stream(seed, "bootstrap"))
            profile = performance_profile(
                scores, thresholds, generator, num_samples if look.named else 1
            )
            label = (
                f"all {len(group.members)} members"
                if len(groups) == 1 and len(group.members) > 1
                else look.label
            )
            width = 2.0 if look.named else 0.8
            axes.plot(
                thresholds,
                profile.share,
                look.style,
                color=look.colour,
                linewidth=width,
                label=label,
            )
            if look.named:
                axes.fill_between(
                    thresholds,
                    profile.low,
                    profile.high,
                    color=look.colour,
                    alpha=0.18,
                    linewidth=0,
                )
        legend_below(drawn, axes)
    return svg.getvalue()
