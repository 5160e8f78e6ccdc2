"""Performance profiles (Agarwal et al. 2021, arXiv 2108.13264): the share of a group's episodes
whose return lies above each threshold.
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
from cqlray.results.report.style import Look, as_svg, draw_band, legend_below, looks
from cqlray.results.statistics.profiles import performance_profile
from cqlray.results.statistics.reference_scores import ReferenceScores
from cqlray.results.statistics.resampling import Floats

THRESHOLDS = 121
MOST_DESCRIBED = 4  # groups in the text alternative


def profile_figure(
    groups: Sequence[Group], scores: ReferenceScores | None, num_samples: int, seed: int
) -> str:
    """The groups' profiles at their last test as a figure for a page; empty where none was tested.

    `scores` are the ends of the normalised scale; None leaves returns as they are. Bands are of
    `num_samples` resamples, drawn by the run's `seed`.
    """
    whole = [
        group.returns is not None and bool(np.isfinite(group.returns).all()) for group in groups
    ]
    shown, group_looks = list(compress(groups, whole)), list(compress(looks(groups), whole))
    if not shown:
        return ""
    values = [_values(group, scores) for group in shown]
    unit = "normalised scores" if scores else "returns"
    medians = [
        f"{number(float(np.median(v)))} ({g.name})"
        for g, v in zip(shown[:MOST_DESCRIBED], values, strict=False)
    ]
    more = f" and {len(shown) - MOST_DESCRIBED} more groups" if len(shown) > MOST_DESCRIBED else ""
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
    return figure(_draw(shown, group_looks, values, unit, num_samples, seed), alt, words.strip())


def _values(group: Group, scores: ReferenceScores | None) -> Floats:
    """[members, episodes]."""
    assert group.returns is not None
    return scores.normalized(group.returns) if scores else group.returns


@as_svg
def _draw(
    drawn: Any,
    groups: Sequence[Group],
    group_looks: Sequence[Look],
    values: Sequence[Floats],
    unit: str,
    num_samples: int,
    seed: int,
) -> None:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    margin = 0.03 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, THRESHOLDS)
    alone = len(groups) == 1 and len(groups[0].members) > 1
    axes: Any = drawn.add_subplot(xlabel=unit, ylabel="share of episodes above", ylim=(-0.02, 1.02))
    for scores, look, group in zip(values, group_looks, groups, strict=True):
        generator = seeding.generator(seed, "bootstrap")
        profile = performance_profile(
            scores, thresholds, generator, num_samples if look.named else 1
        )
        axes.plot(
            thresholds,
            profile.share,
            look.style,
            color=look.colour,
            linewidth=2.0 if look.named else 0.8,
            label=f"all {len(group.members)} members" if alone else look.label,
        )
        draw_band(axes, thresholds, profile.low, profile.high, look)
    legend_below(drawn, axes)
