"""argparse for the commands that take no whole config, with mistakes in one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from cqlray.config.mistakes import nearest
from cqlray.errors import UserError
from cqlray.storage.locations import any_path


class OneLine(argparse.ArgumentParser):
    """A mistake in the arguments is a UserError like any other. Options are written out, once."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(command, description=description, allow_abbrev=False)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0]
        near = nearest(unknown.partition("=")[0], [*self._option_string_actions])
        hint = near if unknown.startswith("--") and "unrecognized" in message else ""
        raise UserError(f"{self.prog.removeprefix('cqlray ')}: {message}{hint}")


class _Once(argparse._StoreAction):
    """An option with a value, refused where it stands twice."""

    given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if self.given and option is not None:
            parser.error(f"{option} stands twice")
        self.given = True
        super().__call__(parser, namespace, values, option)


class CommandParser(OneLine):
    """The arguments of one command: its subject, if it has one, and --debug."""

    def __init__(self, command: str, about: str, subject: str = "") -> None:
        super().__init__(f"cqlray {command}", about)
        if subject:
            self.add_argument("path", type=any_path, metavar=subject)
        self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

    def with_output(self) -> CommandParser:
        """Add --json and --quiet."""
        self.add_argument(
            "--json", action="store_true", help="print one JSON object, the last line of stdout"
        )
        self.add_argument("--quiet", action="store_true", help="show no progress")
        return self

    def with_trust(self) -> CommandParser:
        """Add --env and --trust; `options.env or options.trust` is what trusted_config takes."""
        self.add_argument(
            "--env",
            metavar="ID",
            help="the run's environment, where its module is to be imported though the run was"
            " not made here",
        )
        self.add_argument(
            "--trust", action="store_true", help="the same for whatever environment the run names"
        )
        return self


def require_at_least(least: int, name: str, value: int | None) -> None:
    """Raises UserError: the value was given and is smaller."""
    if value is not None and value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}")


def one_of_family(family: str, words: list[str], about: dict[str, str]) -> str | None:
    """Which of the commands of `dataset` or `benchmark` the words begin with; None where they ask
    for --help, which is printed.

    Raises UserError: they begin with none of them.
    """
    if words[:1] in (["-h"], ["--help"]):
        print(_family_page(family, about))
        return None
    if not words or words[0] not in about:
        typed = f" {words[0]}" if words else ""
        commands = ", ".join(f"{family} {name}" for name in about)
        raise UserError(f"{family}{typed}: the commands are {commands}")
    return words[0]


def _family_page(command: str, about: dict[str, str]) -> str:
    width = max(map(len, about))
    rows = [f"  {name:<{width}}  {text}" for name, text in about.items()]
    usage = f"usage: cqlray {command} COMMAND ...   (cqlray {command} COMMAND --help: its options)"
    return "\n".join([usage, "", *rows])
