"""The page that --help of `cqlray run`, `train` and `collect` prints: each flag with its field's
docstring and default, on a screen or two.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from cqlray.cli.flag_table import ALIASES, HIDDEN, Options, flags
from cqlray.config.presets import PRESETS
from cqlray.config.schema import RunConfig, SACConfig

_ABOUT = {
    "run": (
        "Train a teacher, collect a dataset, train students on it with CQL, evaluate them and write"
        " a report."
    ),
    "train": (
        "Train students with CQL on a dataset that is there already: a dataset or run directory."
    ),
    "collect": "Train a teacher and collect a dataset; no students.",
}


def help_text(command: str, defaults: RunConfig | None = None, width: int | None = None) -> str:
    """The page for a terminal of this width, with these defaults in brackets."""
    width = max(60, min(width or shutil.get_terminal_size().columns, 120))
    about = f"{_ABOUT[command]} Defaults stand in brackets; presets are {', '.join(PRESETS)}."
    blocks = [
        f"usage: cqlray {command} [--config FILE] [--preset NAME] [--OPTION VALUE ...]",
        textwrap.fill(about, width),
    ]
    short = {name: alias for alias, name in ALIASES[command].items()}
    for title, rows in _sections(command, defaults or PRESETS["pendulum"]):
        lines = [textwrap.fill(title, width)]
        for flag, text in rows:
            alias = short.get(flag.partition(" ")[0])
            lines.append(_row(f"{alias}, {flag}" if alias else flag, text, width))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _sections(command: str, defaults: RunConfig) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each section's title and its rows: a flag, and what it does."""
    hidden = HIDDEN[command]
    yield "General", list(_general_rows(hidden, defaults))
    shared = [f.name for f in dataclasses.fields(SACConfig)]
    learners = [name for name in ("cql", "teacher") if name not in hidden]
    for f in dataclasses.fields(RunConfig):
        section = getattr(defaults, f.name)
        if f.name in hidden or not dataclasses.is_dataclass(section):
            continue
        title = f"{f.name}: {_summary(type(section))}"
        if f.name == "sweep":
            yield title, list(_sweep_rows())
            continue
        names = [g.name for g in dataclasses.fields(section)]
        if f.name in learners:
            names = [name for name in names if name not in shared]
        yield title, [_described((f.name, name), defaults) for name in names]
        if f.name == learners[0]:
            also = "; the same with --teacher for the teacher" if len(learners) > 1 else ""
            rows = [_described((f.name, name), defaults, learners[1:]) for name in shared]
            yield f"{f.name}: networks and optimisation{also}", rows


def _general_rows(hidden: Sequence[str], defaults: RunConfig) -> Iterator[tuple[str, str]]:
    yield "-h, --help", "Print this page."
    for f in dataclasses.fields(Options):
        yield f"--{f.name} {flags()[f'--{f.name}'].placeholder}".rstrip(), _docs(Options)[f.name]
    for f in dataclasses.fields(RunConfig):
        if f.name not in hidden and not dataclasses.is_dataclass(getattr(defaults, f.name)):
            yield _described(("", f.name), defaults)


def _sweep_rows() -> Iterator[tuple[str, str]]:
    yield (
        "--sweep.OPTION VALUE ...",
        "Values to try of any --cql option but num-updates; several sweeps multiply.",
    )
    yield "", "As in --sweep.conservative-weight 1 5 10 --num-seeds 4: 12 students."


def _described(
    path: tuple[str, str], defaults: RunConfig, others: Sequence[str] = ()
) -> tuple[str, str]:
    """A flag with its placeholder, and its docstring with its default; others are sections that
    share the option.
    """
    section, name = path
    holder: Any = getattr(defaults, section) if section else defaults
    flag = f"--{section}.{name}".replace("--.", "--").replace("_", "-")
    found = flags()[flag]
    default = _default(getattr(holder, name))
    for other in others:
        value = _default(getattr(getattr(defaults, other), name))
        default += f"; {other} {value or 'none'}" if value != default else ""
    if found.is_switch:
        flag = f"--{section}.[no-]{name}".replace("_", "-")
    text = _docs(holder.__class__)[name] + (f" [{default}]" if default else "")
    return f"{flag} {found.placeholder}".rstrip(), text


def _default(value: Any) -> str:
    """A default in the help page; nothing where the docstring says what happens by default."""
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).removesuffix(".0")


def _row(flag: str, text: str, width: int) -> str:
    column = 36
    lines = textwrap.wrap(text, width - column, break_on_hyphens=False)
    left = f"  {flag}"
    first = [f"{left:<{column}}{lines.pop(0)}"] if len(left) < column else [left]
    return "\n".join([*first, *(" " * column + line for line in lines)])


def _summary(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of its bases; empty where the source is not
    there.
    """
    found = {f.name: "" for f in dataclasses.fields(cls)}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
