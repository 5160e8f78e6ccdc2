"""Rewards by an expression over a log's columns: parsed and walked, never executed as Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from cqlray.data.episode import Array
from cqlray.errors import UserError

LONGEST, MOST_NODES, DEEPEST = 2000, 300, 40
_BACKTICKS = re.compile(r"`([^`]*)`")

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Not: lambda value: value == 0,
}
_COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
# By name: the function, the least and the most arguments.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "min": (lambda *values: _folded(np.minimum, values), 2, 20),
    "max": (lambda *values: _folded(np.maximum, values), 2, 20),
    "abs": (np.abs, 1, 1),
    "exp": (np.exp, 1, 1),
    "log": (np.log, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "clip": (lambda value, low, high: np.minimum(np.maximum(value, low), high), 3, 3),
    "where": (lambda condition, yes, no: np.where(condition != 0, yes, no), 3, 3),
}
_MAY_HOLD = (
    "it may hold column names (in backticks where they are no plain words), numbers, + - * / % **,"
    f" comparisons, and, or, not, and {', '.join(_FUNCTIONS)}"
)


def _folded(function: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


@dataclass(frozen=True)
class Expression:
    """A reward's expression, parsed and checked."""

    text: str
    tree: ast.expr
    columns: tuple[str, ...]  # in the order in which they first appear
    names: Mapping[str, str]  # the words in `tree` that stand for columns -> the columns

    def __call__(self, columns: Mapping[str, Array]) -> Array:
        """[n] float64 from the columns' values, [n] each; NaN where a value used is NaN."""
        values = {name: np.asarray(columns[name], np.float64) for name in self.columns}
        with np.errstate(all="ignore"):
            result = np.asarray(_value(self.tree, self.names, values), np.float64)
        n = len(next(iter(values.values())))
        result = np.array(np.broadcast_to(result, n))
        for used in values.values():  # comparisons with NaN are false, which would hide it
            result[np.isnan(used)] = np.nan
        return result


def parse(text: str) -> Expression:
    """An expression from its text.

    Raises:
        UserError: it is none, is too long, or holds what is not allowed.
    """
    quoted: dict[str, str] = {}

    def word(found: re.Match[str]) -> str:
        name = f"column_{len(quoted)}_"
        while name in text:
            name += "_"
        quoted[name] = found[1]
        return f" {name} "

    if len(text) > LONGEST:
        raise UserError(f"columns.reward is longer than {LONGEST} characters")
    try:
        tree = ast.parse(_BACKTICKS.sub(word, text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _mistake(text, "it cannot be read") from None
    names = dict(quoted)
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise _mistake(text, f"it has more than {MOST_NODES} parts")
    _check(tree, text, names, 0)
    columns = tuple(dict.fromkeys(names[word] for word in _words(tree)))
    if not columns:
        raise _mistake(text, "it names no column")
    return Expression(text, tree, columns, names)


def _words(node: ast.expr) -> list[str]:
    functions = {id(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    found = [n for n in ast.walk(node) if isinstance(n, ast.Name) and id(n) not in functions]
    return [name.id for name in sorted(found, key=lambda n: (n.lineno, n.col_offset))]


def _mistake(text: str, why: str) -> UserError:
    return UserError(f"columns.reward {text[:100]!r}: {why}; {_MAY_HOLD}")


def _check(node: ast.expr, text: str, names: dict[str, str], depth: int) -> None:
    """Raises UserError where a node is not on the list of what is allowed."""
    if depth > DEEPEST:
        raise _mistake(text, f"it is nested deeper than {DEEPEST} levels")
    if isinstance(node, ast.Name):
        names.setdefault(node.id, node.id)
        return
    if isinstance(node, ast.Constant):
        if type(node.value) not in (int, float) or not abs(cast(float, node.value)) < 1e300:
            raise _mistake(text, f"{str(node.value)[:30]!r} is no number")
        return
    for part in _parts(node, text):
        _check(part, text, names, depth + 1)


def _parts(node: ast.expr, text: str) -> list[ast.expr]:
    """The nodes below one that is allowed."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return [node.operand]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARED for op in node.ops):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise _mistake(text, f"there is no function {node.func.id!r}")
        _, least, most = _FUNCTIONS[node.func.id]
        if not least <= len(node.args) <= most:
            raise _mistake(text, f"{node.func.id} takes {least} arguments, not {len(node.args)}")
        return node.args
    raise _mistake(text, f"{ast.unparse(node)[:30]!r} is not allowed")


def _value(node: ast.expr, names: Mapping[str, str], columns: Mapping[str, Array]) -> Any:
    """The value of a node that was checked."""
    if isinstance(node, ast.Constant):
        return np.float64(cast(float, node.value))
    if isinstance(node, ast.Name):
        return columns[names[node.id]]
    parts = [_value(part, names, columns) for part in _parts(node, "")]
    return np.asarray(_combined(node, parts), np.float64)


def _combined(node: ast.expr, parts: list[Any]) -> Any:
    """The value of a node from those of its parts."""
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](*parts)
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](*parts)
    if isinstance(node, ast.BoolOp):
        joined = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return _folded(joined, [part != 0 for part in parts])
    if isinstance(node, ast.Compare):
        pairs = zip(node.ops, parts[:-1], parts[1:], strict=True)
        return _folded(np.logical_and, [_COMPARED[type(op)](*pair) for op, *pair in pairs])
    call = cast(ast.Name, cast(ast.Call, node).func)
    return _FUNCTIONS[call.id][0](*parts)
