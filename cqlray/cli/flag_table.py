"""The flags of `cqlray run`, `train` and `collect`: the fields of RunConfig, and Options beside it.

cql.batch_size is --cql.batch-size; a switch such as cql.lagrange is --cql.lagrange, and
--cql.no-lagrange turns it off.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray.config.schema import RunConfig

# Sections and fields of RunConfig that a command has no use for.
HIDDEN = {
    "run": ("dataset", "columns"),
    "train": ("teacher", "collection"),
    "collect": ("dataset", "columns", "num_seeds", "baselines", "cql", "sweep", "evaluation"),
}
# Short names.
ALIASES = {
    "run": {"--env": "--env.id"},
    "train": {"--env": "--env.id"},
    "collect": {
        "--env": "--env.id",
        "--tiers": "--collection.tiers",
        "--episodes": "--collection.episodes",
    },
}


@dataclass(frozen=True)
class Options:
    """What the command line may say beside the config."""

    config: Path | None = None
    """YAML file to start from; flags go over it."""
    preset: str | None = None
    """Defaults to start from; the YAML file and flags go over them.

    By default general, or pendulum for Pendulum-v1.
    """
    json: bool = False
    """Print the result as JSON."""
    debug: bool = False
    """Show the traceback of an error."""
    quiet: bool = False
    """Print no progress."""


@dataclass(frozen=True)
class Flag:
    """The field that a flag sets, and the type of that field."""

    path: tuple[str, ...]
    hint: Any
    turns_off: bool = False

    @property
    def is_switch(self) -> bool:
        return self.hint is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.hint) in (tuple, dict)

    @property
    def placeholder(self) -> str:
        """What stands for the value in help and messages: INT, TEXT ..."""
        return _placeholder(self.hint)


@functools.cache
def flags() -> dict[str, Flag]:
    """Every flag there is, by its name."""
    found: dict[str, Flag] = {}
    for path, hint in (*_fields(Options), *_fields(RunConfig)):
        name = "--" + ".".join(path).replace("_", "-")
        found[name] = Flag(path, hint)
        if hint is bool and len(path) > 1:
            found[negated(name)] = Flag(path, hint, turns_off=True)
    return found


def flags_of(command: str) -> list[str]:
    """The names of a command's flags, short ones first."""
    known = [name for name, flag in flags().items() if flag.path[0] not in HIDDEN[command]]
    return [*ALIASES[command], *known]


def negated(name: str) -> str:
    """The name of the flag that turns a switch off."""
    section, _, leaf = name.rpartition(".")
    return f"{section}.no-{leaf}"


def _fields(cls: type, section: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and type of each field, those of nested dataclasses included."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from _fields(hints[f.name], (*section, f.name))
        else:
            yield (*section, f.name), hints[f.name]


def _placeholder(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return "NAME VALUE ..."
    if origin is tuple:
        return f"{_placeholder(arguments[0])} ..."
    if origin in (typing.Union, types.UnionType):
        return _placeholder(arguments[0])
    if origin is typing.Literal:
        return "|".join(arguments)
    return {bool: "", int: "INT", float: "NUM", str: "TEXT", Path: "FILE"}[hint]
