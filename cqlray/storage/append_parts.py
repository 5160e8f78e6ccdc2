"""Appended lines are stored as objects that never change; an object's name says what it holds.

Part `first-last-token.jsonl` holds the appends `first` to `last`. Parts are merged into wider ones
and then deleted. Readers skip a part that a wider one contains, so a kill between merging and
deleting loses nothing and duplicates nothing.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple


class Part(NamedTuple):
    """The appends `first` to `last`, both included.

    The token keeps two writers (there should be only one) from overwriting each other.
    """

    first: int
    last: int
    name: str

    @staticmethod
    def of(first: int, last: int) -> Part:
        """A new part with a fresh token."""
        return Part(first, last, f"{first:09d}-{last:09d}-{os.urandom(4).hex()}.jsonl")


def parse(names: list[str]) -> list[Part]:
    """The parts among a directory's file names."""
    found = (re.fullmatch(r"(\d{9})-(\d{9})-[0-9a-f]{8}\.jsonl", name) for name in names)
    return [Part(int(match[1]), int(match[2]), match[0]) for match in found if match]


def standing(parts: list[Part]) -> list[Part]:
    """The parts in order, without those that a wider part contains."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.first, -part.last, part.name)):
        widest = kept[-1] if kept else None
        if (
            widest is None
            or part.last > widest.last
            or (part.first, part.last) == (widest.first, widest.last)
        ):
            kept.append(part)
    return kept


def mergeable(parts: list[Part], per_merge: int) -> list[Part]:
    """The parts at the end that were merged as often as the last one: those to merge next."""
    levels = [int(math.log(part.last - part.first + 1, per_merge) + 1e-9) for part in parts]
    count = next(
        (index for index, level in enumerate(reversed(levels)) if level != levels[-1]), len(levels)
    )
    return parts[len(parts) - count :]
