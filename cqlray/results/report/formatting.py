"""How numbers, settings and members are written, the same in the terminal, the figures and the
report.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cqlray.config.schema import NO_ENVIRONMENT
from cqlray.results.statistics.resampling import Interval
from cqlray.results.statistics.scores import Aggregate
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.run_directory import CONFIG

NOTHING = "-"
"""Stands where there is no number."""


def number(value: float | None) -> str:
    """A return, rounded for people to three digits, or to a whole number from 1,000 on.

    All ASCII, so that it prints and pastes everywhere.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    text = f"{size:,.{digits}f}" if size < 1e7 else f"{size:.3g}"
    return f"-{text}" if value < 0 and text.strip("0.") else text


def count(value: int | None) -> str:
    """A whole number, such as 10,000."""
    return NOTHING if value is None else f"{value:,}"


def percentages(shares: Sequence[float]) -> str:
    """Shares as percentages, such as "43%, 97%"."""
    return ", ".join(f"{share:.0%}" for share in shares)


def interval(summary: dict[str, Any], name: str = "iqm") -> str:
    """The interval of an aggregate, such as [-186.1, -130.7]."""
    return (
        NOTHING
        if summary[name] is None
        else f"[{number(summary[f'{name}_low'])}, {number(summary[f'{name}_high'])}]"
    )


def ends_in_words(ends: Interval) -> str:
    """An interval, such as [-186.1, -130.7]."""
    return f"[{number(ends.low)}, {number(ends.high)}]" if np.isfinite(ends).all() else NOTHING


def aggregate_words(score: Aggregate) -> str:
    """An IQM and its interval, such as -158.1 [-183.8, -128.7]."""
    return f"{number(score.iqm)} {ends_in_words(score.interval)}"


def normalized_by(random: float, reference: float, source: str) -> str:
    """The scale of normalised scores, such as "0 is -280.2, 100 is 12,135 (D4RL's published
    reference scores)".
    """
    return f"0 is {number(random)}, 100 is {number(reference)} ({source})"


def tested_elsewhere(policies: Sequence[str]) -> str:
    """A caution about reference policies that this run did not test, whose returns are from the
    data's description.
    """
    names = " and ".join("random policy" if policy == "random" else policy for policy in policies)
    return (
        f"{names}: as tested when the data was collected, on episodes that need not be the"
        " students'"
    )


def sentence(words: str) -> str:
    """Words as a sentence. (str.capitalize would also change the rest of them to lower case.)"""
    return f"{words[0].upper()}{words[1:]}."


def environment_name(identifier: str) -> str:
    """An environment's id, or "logged data" where there is no environment."""
    return "logged data" if identifier == NO_ENVIRONMENT else identifier


def option_name(name: str) -> str:
    """An option of the config in words, such as "conservative weight"."""
    return name.replace("_", " ")


def setting_name(swept: dict[str, Any]) -> str:
    """A setting of the sweep, such as "conservative weight 5, lagrange True"."""
    return ", ".join(f"{option_name(name)} {setting_value(value)}" for name, value in swept.items())


def setting_or_all(swept: dict[str, Any]) -> str:
    """A setting's name in a table; without a sweep the setting is everyone's."""
    return setting_name(swept) or "all members"


def setting_value(value: Any) -> str:
    """A swept value, such as 5 (for 5.0), 0.0003 or True."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time, such as 48 s, 12 min 3 s or 5 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def swept_names(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that a sweep varies, in the order in which the members' entries name them."""
    return list(dict.fromkeys(name for entry in members for name in entry["swept"]))


def member_cells(member: dict[str, Any], swept: Sequence[str]) -> list[str]:
    """Of a member in a summary: its index, seed, swept values, updates and mean return."""
    return [
        str(member["member"]),
        str(member["seed"]),
        *(setting_value(member[name]) for name in swept),
        count(member["updates"]),
        number(member["mean_return"]),
    ]


def range_of(returns: Sequence[float]) -> str:
    """The lowest and the highest return, such as "-310.2 to -120.4"."""
    return f"{number(np.min(returns))} to {number(np.max(returns))}" if returns else NOTHING


def versions_in_words(versions: dict[str, str]) -> str:
    """Packages and their versions, such as "cqlray 0.1.0, torch 2.9.1"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def repeat_command(run: RunRecord) -> str:
    """The command that makes the run again in another directory."""
    command = "train" if run.config.get("dataset") else "run"
    if run.manifest.get("dataset_only"):
        command = "collect"
    config = shlex.quote(str(run.directory / CONFIG))
    return f"cqlray {command} --config {config} --out NEW_DIRECTORY"


def warning_lines(warnings: list[str]) -> list[str]:
    """Each way in which a policy drifted or collapsed, as a sentence."""
    return [f"The policy has left the log's ways in {words}." for words in warnings]
