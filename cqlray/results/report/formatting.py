"""Numbers and settings in words, the same in the terminal, the figures and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cqlray.config.schema import NO_ENVIRONMENT

NOTHING = "-"
"""In the place of a number that is not there."""


def number(value: float | None) -> str:
    """A return for people: three digits or all before the point.

    ASCII, so that it prints and pastes everywhere.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    text = f"{size:,.{digits}f}" if size < 1e7 else f"{size:.3g}"
    return f"-{text}" if value < 0 and text.strip("0.") else text


def count(value: int | None) -> str:
    """10,000."""
    return NOTHING if value is None else f"{value:,}"


def interval(summary: dict[str, Any], name: str = "iqm") -> str:
    """The interval of an aggregate: [-186.1, -130.7]."""
    return (
        NOTHING
        if summary[name] is None
        else f"[{number(summary[f'{name}_low'])}, {number(summary[f'{name}_high'])}]"
    )


def normalized_by(scores: dict[str, Any]) -> str:
    """What normalised scores are measured by: 0 is -280.2, 100 is 12,135 (D4RL's published
    reference scores).
    """
    return (
        f"0 is {number(scores['random'])}, 100 is {number(scores['reference'])}"
        f" ({scores['source']})"
    )


def tested_elsewhere(policies: Sequence[str]) -> str:
    """What is to be known of references that the run did not test, but the data's description tells
    of.
    """
    names = " and ".join("random policy" if policy == "random" else policy for policy in policies)
    return (
        f"{names}: as tested when the data was collected, on episodes that need not be the"
        " students'"
    )


def sentence(words: str) -> str:
    """Words as a sentence; str.capitalize would make the rest of them small."""
    return f"{words[0].upper()}{words[1:]}."


def environment_name(identifier: str) -> str:
    """An environment's id, or what to call there being none."""
    return "logged data" if identifier == NO_ENVIRONMENT else identifier


def option_name(name: str) -> str:
    """An option of the config in words: conservative weight."""
    return name.replace("_", " ")


def setting_name(swept: dict[str, Any]) -> str:
    """A setting of the sweep: conservative weight 5, lagrange True."""
    return ", ".join(f"{option_name(name)} {setting_value(value)}" for name, value in swept.items())


def setting_value(value: Any) -> str:
    """A swept value: 5 for 5.0, 0.0003, True."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """48 s, 12 min 3 s, 5 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
