"""Messages about mistakes in a config, one line each."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cqlray.config.schema import RunConfig
from cqlray.config.secrets import masked

_REQUIREMENTS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "string_type": "text, in quotes where it looks like something else",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "value_error": "{error}",
}

_MOST_WORDS, _LONGEST_TEXT = 1000, 10_000  # more than a message shows


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean NAME?`, with the known name that is most similar; empty if none is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def line_of(mistake: Any) -> str:
    """The message about one of the mistakes that pydantic found."""
    path, kind = mistake["loc"], mistake["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key {_dotted(path)}{_suggestion(tuple(map(str, path)))}"
    if path[-1] == "[key]":
        return f"{_dotted(path[:-2])} has the name {shown(mistake['input'])}; it must be text"
    requirement = (
        _REQUIREMENTS[kind].format(**mistake.get("ctx", {}))
        if kind in _REQUIREMENTS
        else mistake["msg"]
    )
    return f"{_dotted(path)} is {shown(mistake['input'])}; it must be {requirement}"


def _suggestion(path: tuple[str, ...]) -> str:
    """`; did you mean ...?` for an unknown key: the same name in other sections, or else a similar
    name in its section, or else a similar one anywhere.
    """
    *section, name = path
    names = [known for known in _names() if known[0] != "sweep" or section == ["sweep"]]
    if "." in name and tuple(name.split(".")) in names:
        parent, _, leaf = name.rpartition(".")
        return f"; write {leaf} below {parent}, as in {parent}: {{{leaf}: ...}}"
    dotted = sorted(".".join(known) for known in names if known[-1] == name)
    if not dotted:
        here = {known[-1]: ".".join(known) for known in names if list(known[:-1]) == section}
        anywhere = {known[-1]: ".".join(known) for known in names}
        for candidates in (here, anywhere):
            dotted = dotted or [
                candidates[close] for close in difflib.get_close_matches(name, candidates, n=1)
            ]
    return f"; did you mean {' or '.join(dotted)}?" if dotted else ""


@functools.cache
def _names(cls: type = RunConfig) -> tuple[tuple[str, ...], ...]:
    """The path of every section and field."""
    hints = typing.get_type_hints(cls)
    found: list[tuple[str, ...]] = []
    for f in dataclasses.fields(cls):
        found.append((f.name,))
        if dataclasses.is_dataclass(hints[f.name]):
            found += [(f.name, *below) for below in _names(hints[f.name])]
    return tuple(found)


def _dotted(path: Sequence[Any]) -> str:
    text = "".join(
        f"[{part}]" if isinstance(part, int) and index else f".{part}"
        for index, part in enumerate(path)
    )
    text = text.removeprefix(".")
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """A value as messages show it: short, on one line."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = masked("".join(itertools.islice(_words(value), _MOST_WORDS)))
    except ValueError:
        return "a number of thousands of digits"
    return on_one_line(text if len(text) <= 60 else f"{text[:57]}...")


def _words(value: Any) -> Iterator[str]:
    """The parts of a value's repr one by one: of a nested value the whole may fill the memory."""
    if isinstance(value, Mapping) and value:
        for index, (key, below) in enumerate(value.items()):
            yield ", " if index else "{"
            yield from _words(key)
            yield ": "
            yield from _words(below)
        yield "}"
    elif isinstance(value, list | tuple) and value:
        for index, below in enumerate(value):
            yield ", " if index else "["
            yield from _words(below)
        yield "]"
    else:
        yield repr([] if value == () else value[:_LONGEST_TEXT] if _is_text(value) else value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def position(values: Any, path: Sequence[Any]) -> list[int]:
    """A key that sorts mistakes in the order of the values."""
    places = []
    for part in path:
        keys = list(values) if isinstance(values, Mapping) else []
        places.append(keys.index(part) if part in keys else part if isinstance(part, int) else 0)
        values = values[part] if part in keys else None
    return places
