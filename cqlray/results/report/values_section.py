"""Whether the critics' values stayed below observed returns, in words and as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from cqlray.results.report import plots
from cqlray.results.report.formatting import number
from cqlray.results.report.page import figure, figures, folded, paragraph, section
from cqlray.results.statistics.calibration import (
    BoundCheck,
    Calibration,
    calibrations,
    check_bounds,
)
from cqlray.results.statistics.summary import RunRecord

MOST_WEIGHTS = 4  # whose sentences are shown at once


def values_section(run: RunRecord, samples: int, seed: int) -> str:
    """Whether values stayed below observed returns, which is what CQL is for."""
    found = calibrations(run)
    if not found:
        return ""
    checks = check_bounds(run, samples, seed)
    bounds = {check.conservative_weight: check for check in checks}
    sentences = [
        paragraph(f"{_bound(bounds[one.conservative_weight])} {_details(one, bounds)}")
        for one in found
        if one.conservative_weight in bounds
    ]
    if len(checks) > MOST_WEIGHTS:
        sentences = [
            paragraph(_overview(checks)),
            folded(f"Each of the {len(checks)} conservative weights", "\n".join(sentences)),
        ]
    if run.config["cql"]["entropy_backup"]:
        sentences.append(
            paragraph(
                "Here values hold the entropy bonus (cql.entropy_backup), which returns do not."
            )
        )
    note = (
        "Observed: the discounted sum of rewards as trained on, plus the critics' own discounted"
        " value where the time limit cut an episode off."
    )
    words = (
        "Value of the first state against the discounted return of the same episodes, in rewards as"
        " trained on."
    )
    alt = (
        "Scatter plot of values against observed returns."
        f" {' '.join(map(_compared, found[:MOST_WEIGHTS]))}"
    )
    drawn = figure(plots.value_calibration(run), alt, words) if plots.comparable_tests(run) else ""
    return section(
        "Do values stay below returns?", *sentences, figures(drawn), paragraph(note, "soft")
    )


def _overview(checks: Sequence[BoundCheck]) -> str:
    """For how many conservative weights the lower bound held."""
    held = [check.overall.held for check in checks]
    counts = (
        f"it held for {held.count(True)}, did not hold for {held.count(False)}, cannot be told for"
        f" {held.count(None)}"
    )
    return f"The lower bound: {counts} of {len(checks)} conservative weights."


def _bound(check: BoundCheck) -> str:
    """A sentence on whether the lower bound held for a conservative weight."""
    weight, size = f"Conservative weight {check.conservative_weight:g}", len(check.members)
    if check.overall.held is None:
        return f"{weight}: whether the lower bound held {check.overall.verdict}."
    counts = (
        f"it held in {check.count(True)}, did not hold in {check.count(False)}, cannot be told in"
        f" {check.count(None)}"
    )
    return (
        f"{weight}: the lower bound {check.overall.verdict}; {counts} of {size}"
        f" member{'s' * (size != 1)}."
    )


def _details(one: Calibration, bounds: dict[float, BoundCheck]) -> str:
    """How values and returns compare, and what to do where the bound did not hold."""
    return f"{_compared(one)}{_advice(one, bounds[one.conservative_weight].overall.held)}"


def _compared(one: Calibration) -> str:
    """The mean of the last tests, without a verdict: that is the bound's to give."""
    ended = "below" if one.last_excess <= 0 else "above"
    always = "always " if one.below == one.tests else ""
    return (
        f"At the last test values are {ended} observed returns, by"
        f" {number(abs(one.last_excess))} on average; they were {always}at or below them in"
        f" {one.below} of {one.tests} tests."
    )


def _advice(one: Calibration, held: bool | None) -> str:
    """What would lower values that are too high, or tell more. The weight is not blamed while
    training may be.
    """
    if held or (held is None and one.last_excess <= 0):
        return ""
    if one.undertrained:
        direction = "rise" if one.moved > 0 else "fall"
        return (
            f" The values still {direction}, by {number(abs(one.moved))} over the last third of the"
            " tests: train longer before you judge the weight."
        )
    if held is None:
        return ""
    return " A higher conservative weight lowers them."
