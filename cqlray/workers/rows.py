"""Join the rows that several evaluator calls return for one test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from cqlray.storage.rows import Played

# A number for each episode; a row without critics has no excesses.
LISTS: Final = ("returns", "lengths", "excesses")
MEANS: Final = ("value", "discounted_return", "tail_value", "tail_weight")


def merge_rows(parts: Sequence[Sequence[Played]]) -> list[Played]:
    """Join parts of a test (each has a row for every member, over some episodes): a row a member.

    Returns, lengths and excesses are joined in the parts' order, means are weighted by episodes,
    seconds are summed.
    """
    merged = []
    for rows in zip(*parts, strict=True):
        episodes = [len(row["returns"]) for row in rows]
        joined: dict[str, Any] = {
            name: [v for row in rows for v in row[name]] for name in LISTS if name in rows[0]
        }
        for name in MEANS:
            if name in rows[0]:
                weighted = sum(row[name] * count for row, count in zip(rows, episodes, strict=True))
                joined[name] = weighted / sum(episodes)
        joined["seconds"] = sum(row["seconds"] for row in rows)
        merged.append(cast(Played, joined))
    return merged
