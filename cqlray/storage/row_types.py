"""Check values from JSON files against the types that rows.py declares for them."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any, NotRequired

from cqlray.errors import UserError
from cqlray.storage.rows import Numbers

Check = Callable[[Any], str | None]
"""Where in a value something is not of its type, such as `returns[2]`; None where all is."""

_PLAIN: dict[Any, tuple[type, ...]] = {
    float: (float, int, types.NoneType),  # null where a number was not finite
    int: (int,),
    str: (str,),
    bool: (bool,),
    types.NoneType: (types.NoneType,),
}


def require(value: Any, hint: Any, file: str) -> Any:
    """The value, if it is of a type: a TypedDict, or what its values may be.

    Raises:
        UserError: it is not; the message names the file and the place in the value.
    """
    wrong = check_of(hint)(value)
    if wrong is not None:
        raise UserError(f"{file}: {wrong or 'its value'} is missing or not as cqlray writes it")
    return value


@functools.cache
def check_of(hint: Any) -> Check:
    """The check of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint in _PLAIN:
        kinds = _PLAIN.get(hint)  # the very types: True is no number
        return lambda value: None if kinds is None or type(value) in kinds else ""
    if hint == Numbers:  # as a file has them
        return check_of(list[float])
    if origin is typing.Literal:
        return lambda value: None if value in arguments else ""
    if origin in (typing.Union, types.UnionType):
        return functools.partial(_of_any, tuple(map(check_of, arguments)))
    if origin in (list, dict):
        return functools.partial(_of_list if origin is list else _of_dict, check_of(arguments[-1]))
    return _of_typed_dict(hint)


def _of_typed_dict(hint: Any) -> Check:
    hints = typing.get_type_hints(hint, include_extras=True)
    optional = {key for key in hints if typing.get_origin(hints[key]) is NotRequired}
    checks = {key: check_of(kind) for key, kind in typing.get_type_hints(hint).items()}
    return functools.partial(_of_keys, checks, optional | hint.__optional_keys__)


def _of_any(checks: tuple[Check, ...], value: Any) -> str | None:
    found = [check(value) for check in checks]
    return None if None in found else found[-1]


def _of_list(check: Check, value: Any) -> str | None:
    if not isinstance(value, list):
        return ""
    for index, item in enumerate(value):
        if (wrong := check(item)) is not None:
            return f"[{index}]{wrong}"
    return None


def _of_dict(check: Check, value: Any) -> str | None:
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if (wrong := check(item)) is not None:
            return f".{key[:40]}{wrong}"
    return None


def _of_keys(checks: dict[str, Check], optional: frozenset[str], value: Any) -> str | None:
    if not isinstance(value, dict):
        return ""
    for key, check in checks.items():
        if key not in value:
            if key not in optional:
                return key
        elif (wrong := check(value[key])) is not None:
            return f"{key}{wrong}"
    return None
