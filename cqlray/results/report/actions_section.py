"""What would the policy do differently? Its actions beside the logged ones, in the report."""

from __future__ import annotations

from typing import Any

from cqlray.results.policy_actions import Beside, beside_the_log
from cqlray.results.report.formatting import number, warning_lines
from cqlray.results.report.page import escape, figure, figures, paragraph, section, table
from cqlray.results.report.style import COLOURS, as_svg, literal
from cqlray.results.statistics.actions import Dimension
from cqlray.results.statistics.summary import RunRecord

MOST_DRAWN = 6  # dimensions
MOST_ROWS = 32
MEANT = (
    "Distance: mean absolute difference. Outside: share of the policy's actions beyond all of the"
    " log's, and beyond the middle 99% of them. On a bound: the policy's share, the log's in"
    " brackets."
)
MOST_NAMED = 6  # numbers of an observation in the table


def actions_section(run: RunRecord) -> str:
    """The section; empty where there is no policy yet or its data is not at hand."""
    found = beside_the_log(run)
    if found is None:
        return ""
    dimensions = found.comparison.dimensions
    warned = "".join(
        f'<p class="warn">{escape(words)}</p>' for words in warning_lines(found.comparison.warnings)
    )
    drawn = [
        figure(_draw(one), _alt(one), f"{one.name}: share of states by action.")
        for one in dimensions[:MOST_DRAWN]
    ]
    chosen = f", the best by {found.chosen_by}" if found.chosen_by else ""
    lead = (
        f"Member {found.member}{chosen}, after {found.updates:,} updates, beside what was logged in"
        f" {found.comparison.states:,} states of its data, drawn by the run's seed. It was trained"
        " on these; there is no held-out part."
    )
    return section(
        "What would it do differently?",
        paragraph(lead),
        warned,
        _dimensions(dimensions[:MOST_ROWS]),
        paragraph(MEANT, "soft"),
        figures(*drawn),
        paragraph("Where they differ most:"),
        _furthest(found),
    )


def _dimensions(dimensions: list[Dimension]) -> str:
    head = [
        "action",
        "policy: mean (std)",
        "log: mean (std)",
        "distance",
        "outside log",
        "outside 99%",
        "on a bound",
    ]
    rows = [
        [
            one.name,
            f"{number(one.policy_mean)} ({number(one.policy_std)})",
            f"{number(one.logged_mean)} ({number(one.logged_std)})",
            number(one.distance),
            f"{one.outside_range:.1%}",
            f"{one.outside_usual:.1%}",
            f"{one.at_bound:.0%} ({one.logged_at_bound:.0%})",
        ]
        for one in dimensions
    ]
    return table(head, rows, kind="scroll names")


def _furthest(found: Beside) -> str:
    shown = found.observation_names[:MOST_NAMED]
    actions = [one.name for one in found.comparison.dimensions[:MOST_NAMED]]
    head = [*shown, *(f"{name}, policy" for name in actions), *(f"{name}, log" for name in actions)]
    rows = [
        [
            *(number(float(value)) for value in state.observation[: len(shown)]),
            *(number(float(value)) for value in state.policy[: len(actions)]),
            *(number(float(value)) for value in state.logged[: len(actions)]),
        ]
        for state in found.comparison.furthest
    ]
    return table(head, rows, kind="scroll")


def _alt(one: Dimension) -> str:
    return (
        f"Histograms of {one.name}: the policy's mean is {number(one.policy_mean)}, the log's"
        f" {number(one.logged_mean)}."
    )


@as_svg
def _draw(drawing: Any, one: Dimension) -> None:
    axes = drawing.subplots()
    total = max(1, sum(one.logged_counts))
    for counts, name, colour in (
        (one.logged_counts, "log", COLOURS[1]),
        (one.policy_counts, "policy", COLOURS[0]),
    ):
        shares = [count / total for count in counts]
        axes.stairs(shares, one.edges, label=name, color=colour, fill=name == "log", alpha=0.75)
    axes.set_xlabel(literal(one.name))
    axes.set_ylabel("share of states")
    axes.legend()
