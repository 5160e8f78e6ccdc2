"""The table of pairs: how likely a member of one group is to score higher than one of another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from cqlray import seeding
from cqlray.results.report.formatting import NOTHING
from cqlray.results.report.groups import Group
from cqlray.results.report.page import paragraph, section, table
from cqlray.results.statistics.improvement import probability_of_improvement

MOST_COMPARED = 8  # groups
FEWEST = 5  # members of each group; with fewer, too many resamples are alike for an interval


def improvement_section(groups: Sequence[Group], samples: int, seed: int) -> str:
    """How likely a member of one group is to score higher than a member of another, for each pair
    of groups with at least two members.

    Between single members the probability would always be 0 or 1, however much was chance.
    """
    several = [group for group in groups if len(group.members) > 1]
    known = [(group, group.returns.mean(axis=1)) for group in several if group.returns is not None]
    ranked = sorted(
        known, key=lambda pair: float(np.nan_to_num(pair[1].mean(), nan=-np.inf)), reverse=True
    )
    rows = []
    for index, ((first, one), (second, other)) in enumerate(
        combinations(ranked[:MOST_COMPARED], 2)
    ):
        generator = seeding.generator(seed, "improvement", index)
        found = probability_of_improvement(one, other, generator, samples)
        ends = (
            " to ".join(map(_share, found.interval))
            if min(len(one), len(other)) >= FEWEST
            else NOTHING
        )
        rows.append([first.name, second.name, _share(found.probability), ends])
    if not rows:
        return ""
    left_out = (
        f" The {MOST_COMPARED} groups with the highest means."
        if len(ranked) > MOST_COMPARED
        else ""
    )
    note = (
        "How often a member of the one scores higher than a member of the other, by their mean"
        " returns at the last test; 50% is no difference. It says how often, not by how much. With"
        " two members a side chance alone makes it 0 or 100% once in three times; of fewer than"
        f" {FEWEST} no interval is given.{left_out}"
    )
    head = ["a member of", "beats one of", "probability", "95% interval"]
    return section("Probability of improvement", table(head, rows, text=2), paragraph(note, "soft"))


def _share(value: float) -> str:
    return NOTHING if np.isnan(value) else f"{value:.0%}"
