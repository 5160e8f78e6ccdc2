"""Hundreds of wrong commands, made by going through every option of every command: each ends with
one line on stderr and exit status 2, and harms nothing on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import shlex
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cqlray.benchmarks.command import ABOUT
from cqlray.cli import dataset, main, parser
from cqlray.cli.flag_table import ALIASES, HIDDEN, Flag, flags, flags_of
from cqlray.config.schema import CQLConfig, RunConfig
from tests.unit.cli.test_main import FAMILIES
from tests.unit.cli.wrong_commands import BY_HAND
from tests.unit.results.run_directories import make_run

Wrong = tuple[list[str], str]  # the words, and a part of the line that must be in it


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, a log, a folder that is something else, and bad YAML."""
    make_run(tmp_path / "made", plan={"populations": [[0, 1]]})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    (tmp_path / "empty").mkdir()
    head = "episode,observation,action,reward,truncated"
    rows = [f"{i // 9},{i % 7}.5,0.{i},{i % 3}.0,{i % 9 == 8}" for i in range(360)]
    (tmp_path / "log.csv").write_text("\n".join([head, *rows, ""]))
    (tmp_path / "junk.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "bad.yaml").write_text("cql: {batch_size: [")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "unknown.yaml").write_text("cql: {batch_sise: 3}\n")
    (tmp_path / "columns.yaml").write_text("columns: {rewards: r}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def files(place: Path) -> dict[str, bytes | None]:
    return {str(f): f.read_bytes() if f.is_file() else None for f in place.rglob("*")}


def faults(commands: Iterable[Wrong], place: Path) -> Iterator[str]:
    """A line for each command that does not end as it should."""
    before = files(place)
    for words, part in commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status: Any = main.main(words)
            except SystemExit as error:
                status = f"SystemExit({error.code})"
            except Exception as error:
                status = repr(error)
        lines = err.getvalue().splitlines()
        told = len(lines) == 1 and lines[0].startswith("cqlray: ") and part in lines[0]
        command = f"cqlray {shlex.join(words)}"
        if status != 2 or out.getvalue() or not told:
            yield f"{command}: {status}, {part!r}, {out.getvalue()[:80]!r}, {lines}"
        if (now := files(place)) != before:
            yield f"{command}: changed {sorted(f for f, _ in before.items() ^ now.items())}"
            before = now


# run, train, collect: from the dataclasses


def bounds_of(path: tuple[str, ...]) -> dict[str, Any]:
    cls: Any = RunConfig
    *sections, name = path
    for section in sections:
        cls = typing.get_type_hints(cls)[section]
    if sections == ["sweep"]:
        cls = CQLConfig
    found = {f.name: f.metadata for f in dataclasses.fields(cls)}[name]
    return dict(found)


def is_a(hint: Any, kind: type) -> bool:
    return kind in (
        hint,
        *typing.get_args(hint),
        *sum(map(typing.get_args, typing.get_args(hint)), ()),
    )


def wrong_values(flag: Flag) -> Iterator[list[str]]:
    """Words that are no value of the flag: of another type, or out of its bounds."""
    hint, bounds = flag.hint, bounds_of(flag.path)
    if is_a(hint, int) or is_a(hint, float) or is_a(hint, bool) or "|" in flag.placeholder:
        yield ["nonsense"]
    if is_a(hint, int):
        yield ["1.5"]
    if is_a(hint, float):
        yield ["nan"]
    whole = is_a(hint, int)
    for kind, step in (("gt", 0), ("ge", -1), ("lt", 0), ("le", 1)):
        if kind in bounds:
            value = bounds[kind] + step
            yield [str(int(value) if whole else value)]


def of_flag(command: str, name: str, flag: Flag) -> Iterator[Wrong]:
    """Ways to go wrong with one flag. (--debug shows a traceback on purpose.)"""
    field = ".".join(flag.path)
    if flag.is_switch and name != "--debug":
        yield [command, name, "5"], "takes no value"
    elif flag.is_switch:
        return
    else:
        yield [command, name], f"{name} needs a value"
        yield [command, f"{name}=1", name, "1"], f"{name} stands twice"
        if not flag.is_list:
            yield [command, name, "1", "2"], "takes one value"
        if typing.get_origin(flag.hint) is dict:
            yield [command, name, "1"], "takes pairs"
    if flag.path[0] not in ("json", "debug", "quiet", "config", "preset") and not flag.is_switch:
        for words in wrong_values(flag):
            yield [command, name, *words], field
    yield [command, f"{name}x" if flag.is_switch else f"{name[:-1]}", "1"], "; did you mean"


def of_configs() -> Iterator[Wrong]:
    for command in HIDDEN:
        for name in flags_of(command):
            if name not in ALIASES[command]:
                yield from of_flag(command, name, flags()[name])
        for name, flag in flags().items():
            if flag.path[0] in HIDDEN[command]:
                yield [command, name, "1"], "plays no part"


def test_every_flag_of_run_train_and_collect(here: Path) -> None:
    commands = list(of_configs())
    assert len(commands) > 1000
    assert list(faults(commands, here)) == []


# The other commands: from their parsers


class Found(Exception):
    """Carries a parser out of its command."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def found(self: argparse.ArgumentParser, *_: Any) -> typing.NoReturn:
        raise Found(self)

    with monkeypatch.context() as patched, pytest.raises(Found) as caught:
        patched.setattr(parser.OneLine, "parse_args", found)
        main.main(command.split())
    return caught.value.args[0]  # type: ignore[no-any-return]


def parsed_commands() -> list[str]:
    single = [name for name in main._MODULES if name not in (*HIDDEN, "dataset", "benchmark")]
    families = {"dataset": dataset._ABOUT, "benchmark": ABOUT}
    return [*single, *(f"{family} {name}" for family, of in families.items() for name in of)]


def of_parser(command: str, parser: argparse.ArgumentParser) -> Iterator[Wrong]:
    positionals = [action for action in parser._actions if not action.option_strings]
    required = [
        w
        for a in parser._actions
        if a.required and a.option_strings
        for w in (a.option_strings[0], "x")
    ]
    words = [*command.split(), *("made" for _ in positionals if command != "submit"), *required]
    if positionals and command != "submit":
        yield command.split(), "required"
    yield [*words, "--nonsense"], "unrecognized arguments: --nonsense"
    for action in parser._actions:
        if not action.option_strings or action.dest in ("help", "debug"):
            continue
        name = action.option_strings[-1]
        yield [*words, name[:-1], "x"], f"did you mean {name}?"
        if action.nargs == 0:
            yield [*words, f"{name}=5"], name
            continue
        yield [*words, name], "expected"
        value = str(next(iter(action.choices or "1")))
        yield [*words, name, value, name, value], f"{name} stands twice"
        if action.type in (int, float):
            yield [*words, name, "nonsense"], name
        if action.type is float:
            yield [*words, name, "nan"], "must be a number" if "columns" in name else "positive"
        if action.type is int:
            job = ["resume", "/x"] if command == "submit" else []
            yield [*words, name, "1.5"], name
            yield [*words, name, "-1", *job], name.removeprefix("--")  # none may be negative
        if action.choices is not None:
            yield [*words, name, "nonsense"], name


def test_no_command_is_left_out() -> None:
    """Each command that `--help` lists is one of the tables'."""
    families = [f"{name} {of}" for name, below in FAMILIES.items() for of in below]
    single = [name for name in main._MODULES if name not in FAMILIES]
    assert {*HIDDEN, *parsed_commands()} == {*single, *families}


@pytest.mark.parametrize("command", parsed_commands())
def test_every_option_of_the_other_commands(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    commands = list(of_parser(command, parser_of(command, monkeypatch)))
    assert list(faults(commands, here)) == []


def test_by_hand(here: Path) -> None:
    assert len(BY_HAND) >= 100
    assert list(faults(((shlex.split(words), part) for words, part in BY_HAND), here)) == []
