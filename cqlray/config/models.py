"""The config's dataclasses as strict pydantic models, which check values from outside."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from cqlray.config.schema import CQLConfig, RunConfig

_BOUNDS = ("gt", "ge", "lt", "le", "min_length")


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values of a RunConfig, checked and in its types: lists become tuples, and whole
    numbers become floats where a float is wanted. Defaults are not filled in.

    Raises pydantic.ValidationError: unknown names, wrong types, values out of bounds.
    """
    return _model(RunConfig).model_validate(dict(values)).model_dump(exclude_unset=True)


@functools.cache
def _model(cls: type) -> type[pydantic.BaseModel]:
    """The model of one dataclass, without its defaults."""
    hints = typing.get_type_hints(cls)
    swept = {f.name: f.default for f in dataclasses.fields(CQLConfig)}
    definitions: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        default = swept[f.name] if "item_bounds" in f.metadata else f.default
        infinite = isinstance(default, float) and math.isinf(default)
        definitions[f.name] = (_annotation(hints[f.name], f.metadata, infinite), None)
    config = pydantic.ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    model: type[pydantic.BaseModel] = pydantic.create_model(
        cls.__name__, __config__=config, **definitions
    )
    return model


def _annotation(hint: Any, metadata: Mapping[str, Any], infinite: bool) -> Any:
    """A field's type for pydantic, with its bounds; infinite allows infinities."""
    bounds = pydantic.Field(**{name: metadata[name] for name in _BOUNDS if name in metadata})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _annotation(inner, metadata, infinite) | None
    if origin is tuple:
        item = _annotation(arguments[0], metadata.get("item_bounds", {}), infinite)
        return Annotated[
            types.GenericAlias(tuple, (item, ...)), pydantic.BeforeValidator(_listed), bounds
        ]
    if origin is dict:
        return dict[str, Annotated[Any, pydantic.AfterValidator(_scalar)]]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _model(hint)
    if hint is float:
        return Annotated[
            float,
            bounds,
            pydantic.Field(allow_inf_nan=infinite),
            pydantic.BeforeValidator(_not_nan),
        ]
    return Annotated[hint, bounds]


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _not_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a number")
    return value


def _scalar(value: Any) -> bool | int | float | str:
    """An argument for gymnasium.make, as EnvConfig.kwargs allows it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a finite number")
        return float(value)
    if not isinstance(value, bool | int | str):
        raise ValueError("a number, text, true or false")
    return value
