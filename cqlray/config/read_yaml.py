"""Read YAML files without trust: one that was downloaded neither hangs nor fills the memory."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Protocol

import yaml

from cqlray.config.mistakes import on_one_line, shown
from cqlray.errors import UserError

LARGEST_YAML = 1_000_000  # bytes; PyYAML reads some hundred thousand in a second
MOST_NODES = 100_000
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
# The arguments of add_implicit_resolver: 3e-4, 1E5.
NUMBER = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class TextFile(Protocol):
    """A path in the file system or in an object store."""

    def read_bytes(self) -> bytes: ...


def load_yaml(path: TextFile) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises UserError with one line: no such file, not readable, too large, not YAML (line and
    column), not a mapping.
    """
    try:
        text = _bytes(path).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    return parse_yaml(text, str(path))


def _bytes(path: TextFile) -> bytes:
    """A file's bytes; somewhat more than LARGEST_YAML where there are more."""
    if not isinstance(path, Path):
        return path.read_bytes()
    # A shell makes /dev/fd/63 of <(COMMAND); to open any other pipe may hang.
    if path.is_fifo() and not str(path).startswith("/dev/"):
        raise OSError("it is a pipe")
    with path.open("rb") as file:
        return file.read(LARGEST_YAML + 1)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; an empty text is an empty mapping.

    Raises UserError with one line: not YAML (line and column), not a mapping.
    """
    if len(text) > LARGEST_YAML:
        raise UserError(f"{source}: more than {LARGEST_YAML:,} bytes, which no config has")
    try:
        values = yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(
            f"{source}: {where}not YAML: {on_one_line(error.problem or error.context or '')}"
        ) from None
    except (yaml.YAMLError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: not YAML: {on_one_line(str(error))}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: it must be a mapping of names to values, not {shown(values)}")
    return values


class Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number, 2024-01-01 is text, a key may not be repeated,
    and what aliases stand for, written out, is no more than MOST_NODES values.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _nodes(node, {}) > MOST_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"more than {MOST_NODES:,} values, aliases written out", node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _nodes(node: yaml.Node, counted: dict[int, float]) -> float:
    """How many nodes there are from this one on, aliases written out: infinitely many in one that
    holds itself.
    """
    if id(node) not in counted:
        counted[id(node)] = math.inf  # while it is being counted
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = (pair if isinstance(pair, tuple) else (pair,) for pair in below)
        counted[id(node)] = 1 + sum(_nodes(part, counted) for pair in pairs for part in pair)
    return counted[id(node)]


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(*NUMBER)
