"""The report on whether the policies beat what was logged: the sentence, then every setting."""

from __future__ import annotations

from cqlray.results.report.formatting import ends_in_words, number
from cqlray.results.report.page import folded, paragraph, section, table
from cqlray.results.report.verdict_words import (
    LEFT_OUT,
    algorithm_of,
    verdict_sentence,
    verdicts_of,
)
from cqlray.results.statistics.summary import RunRecord
from cqlray.results.statistics.verdict import Verdict

MOST_ROWS = 8  # of the table that is shown at once


def verdict_section(run: RunRecord) -> str:
    """The section; empty where nothing was judged."""
    found = verdicts_of(run)
    words = verdict_sentence(run, found)
    if not words:
        return ""
    tables = [_table(run, [v for v in found if v.by == by]) for by in ("tests", "estimates")]
    return section("Better than the log?", paragraph(words), *tables)


def _table(run: RunRecord, found: list[Verdict]) -> str:
    """Verdicts of one kind; a table never holds discounted and undiscounted numbers."""
    if not found:
        return ""
    tests = found[0].by == "tests"
    rows = [
        [
            algorithm_of(run, verdict).replace(" with ", ", "),
            verdict.verdict,
            f"{number(verdict.difference)} {ends_in_words(verdict.difference_interval)}",
            f"{number(verdict.value)} {ends_in_words(verdict.value_interval)}",
            f"{f'{verdict.reference} ' * tests}{number(verdict.reference_value)}"
            f" {ends_in_words(verdict.reference_interval)}",
        ]
        for verdict in found
    ]
    head = ["policy", "verdict", "difference", "value", "beside" if tests else "log"]
    discount = run.config["cql"]["discount"]
    note = (
        "By tests in the environment, undiscounted, IQM over members; 95% intervals. Students and"
        " teacher played the same episodes; the dataset's are others."
        if tests
        else f"By fitted Q evaluation, discounted by {discount:g}, in the environment's rewards;"
        f" 95% intervals. Fitted Q misses the log's own return by {number(found[0].misfit)}"
        f" here. {LEFT_OUT}"
    )
    content = table(head, rows, kind="scroll names wide") + paragraph(note, "soft")
    title = f"{len(rows)} verdicts by {found[0].by}"
    return content if len(rows) <= MOST_ROWS else folded(title, content)
