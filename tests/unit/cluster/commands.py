"""The commands that stand in documents and manifests, as words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
CLUSTER = REPOSITORY / "cluster"
SEPARATORS = {";", "&&", "||", "|", "&", "(", ")"}


def fenced(markdown: str) -> str:
    """The lines of all bash blocks of a document."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL))


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script, without comments.

    Raises:
        ValueError: a quotation that does not end.
    """
    pending = ""
    lines = re.sub(r"\\\n\s*", " ", script).splitlines()
    for number, line in enumerate(lines):
        pending += line
        try:
            tokens = _words(pending)
        except ValueError:  # a quotation that goes on in the next line
            if number == len(lines) - 1:
                raise
            pending += "\n"
            continue
        pending = ""
        words: list[str] = []
        for token in [*tokens, ";"]:
            if token not in SEPARATORS:
                words.append(token)
            elif words:
                yield words
                words = []


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    return list(lexer)


def of_program(script: str, *program: str) -> list[list[str]]:
    """What follows the program's name (`cqlray`, or `ray job submit`) wherever it stands in a
    script's simple commands.
    """
    found = []
    for words in simple_commands(script):
        for start in range(len(words)):
            if (
                Path(words[start]).name == program[0]
                and tuple(words[start + 1 : start + len(program)]) == program[1:]
            ):
                found.append(words[start + len(program) :])
                break
    return found


def strings(value: Any) -> Iterator[str]:
    """Every text in a parsed YAML document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
