"""What the benchmarks' commands share: how their flags are checked and their results printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

ABOUT = {
    "learner": "Updates per second beside the device's limit.",
    "members": "Many members, a learner a core, beside one on all cores.",
    "rollout": "Environment steps per second of rollout workers.",
    "data": "Shards and columns on their way to a learner.",
    "actor": "The learner in its Ray actor beside its bare loop.",
    "peers": "Updates per second beside d3rlpy's CQL, in turns.",
}
Parser = type[argparse.ArgumentParser]


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, positive: Sequence[str]
) -> argparse.Namespace:
    """The options of a command, to which it adds --json; those named in `positive` must be positive
    where they are given.
    """
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    given = [getattr(options, name) for name in positive if getattr(options, name) is not None]
    numbers = [n for value in given for n in (value if isinstance(value, list) else [value])]
    if not all(0 < number < math.inf for number in numbers):
        flags = [f"--{name.replace('_', '-')}" for name in positive]
        parser.error(f"{', '.join(flags[:-1])} and {flags[-1]} must be positive")
    return options


def show(result: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    """Print a result as JSON or by `text`; returns the command's exit status."""
    print(json.dumps(result) if as_json else text(result))
    return 0


def say(line: str) -> None:
    """Print a line on what happens, which is not part of the result."""
    print(line, file=sys.stderr)
