"""Where a config enters: pydantic over the dataclasses of config.py, one line for each mistake.

`validate` takes plain values (from YAML, from the command line), `check` a config made in Python;
`load_yaml` and `dump_yaml` carry a config to a file and back without a changed bit. Bounds stand in
the dataclasses' metadata; the rules that join several fields stand in `conflicts`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic
import yaml

from cqlray.config.schema import TIERS, CQLConfig, RunConfig, to_dict
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath

_BOUNDS = ("gt", "ge", "lt", "le", "min_length")
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


def validate(values: Mapping[str, Any], source: str) -> RunConfig:
    """The config that nested plain values describe; what they leave out keeps its default.

    Raises UserError with one line for each mistake: first the unknown names, types and bounds, in
    the order of the values; where there is none of these, the rules that join several fields.
    """
    return _without_conflicts(build(values, source), source)


def check(config: RunConfig, source: str) -> RunConfig:
    """The same for a config made in Python; lists in it come back as tuples.

    Raises UserError as validate does.
    """
    if not isinstance(config, RunConfig):
        raise UserError(f"{source}: a RunConfig is needed, not {_shown(config)}")
    return validate(to_dict(config), source)


def build(values: Mapping[str, Any], source: str) -> RunConfig:
    """As validate, without the rules that join several fields: for one layer of several that are
    merged later.

    Raises UserError with one line for each mistake.
    """
    try:
        model = _model(RunConfig).model_validate(dict(values))
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        found.sort(key=lambda mistake: _position(values, mistake["loc"]))
        raise UserError("\n".join(f"{source}: {_line(mistake)}" for mistake in found)) from None
    config: RunConfig = _as_dataclass(RunConfig, model)
    return config


def conflicts(config: RunConfig) -> Iterator[str]:
    """One line for each rule between several fields that the config breaks."""
    yield from _collection_conflicts(config)
    if config.teacher.warmup_rounds >= config.teacher.rounds:
        yield (
            f"teacher.warmup_rounds is {config.teacher.warmup_rounds}; "
            f"it must be less than teacher.rounds, which is {config.teacher.rounds}"
        )
    low_name, low = max(_choices(config, "difference_clip_min"), key=lambda choice: choice[1])
    high_name, high = min(_choices(config, "difference_clip_max"), key=lambda choice: choice[1])
    if low >= high:
        yield f"{low_name} is {low}; it must be less than {high_name}, which is {high}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """base with the values of over in place of its own, section by section; neither argument
    changes.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def load_yaml(path: AnyPath) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises UserError with one line: no such file, not readable, not YAML (line and column), not a
    mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; an empty text is an empty mapping.

    Raises UserError with one line: not YAML (line and column), not a mapping.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(
            f"{source}: {where}not YAML: {_flat(error.problem or error.context or '')}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not YAML: {_flat(str(error))}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: it must be a mapping of names to values, not {_shown(values)}")
    return values


def dump_yaml(config: RunConfig) -> str:
    """The whole config as YAML, sections and fields in their order; validate(parse_yaml(text))
    gives an equal config.
    """
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name most like this one, as `; did you mean NAME?`, or nothing where none is like
    it.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


# Rules between fields


def _without_conflicts(config: RunConfig, source: str) -> RunConfig:
    if found := list(conflicts(config)):
        raise UserError("\n".join(f"{source}: {line}" for line in found))
    return config


def _collection_conflicts(config: RunConfig) -> Iterator[str]:
    tiers, episodes = config.collection.tiers, config.collection.episodes
    if not tiers:
        yield f"collection.tiers is empty; it must name at least one of {', '.join(TIERS)}"
    for tier in dict.fromkeys(tiers):
        if tier not in TIERS:
            hint = nearest(tier, TIERS) or f"; the tiers are {', '.join(TIERS)}"
            yield f"collection.tiers: there is no tier {_shown(tier)}{hint}"
        elif tiers.count(tier) > 1:
            yield f"collection.tiers names {tier} {tiers.count(tier)} times; once is enough"
    for index, count in enumerate(episodes):
        if count < 1:
            yield f"collection.episodes[{index}] is {count}; it must be at least 1"
    if tiers and len(episodes) not in (1, len(tiers)):
        yield (
            f"collection.episodes has {len(episodes)} numbers for the {len(tiers)} of"
            " collection.tiers; it must have one for all or one for each"
        )


def _choices(config: RunConfig, name: str) -> list[tuple[str, float]]:
    """What a student's option will be: the values swept, or else the one that stands in cql."""
    swept = getattr(config.sweep, name)
    return [(f"sweep.{name}", value) for value in swept] or [
        (f"cql.{name}", getattr(config.cql, name))
    ]


# Dataclasses as pydantic models


@functools.cache
def _model(cls: type) -> type[pydantic.BaseModel]:
    """A strict pydantic model of a config's dataclass.

    Defaults stay with the dataclass: see _as_dataclass.
    """
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


def _as_dataclass(cls: type, model: pydantic.BaseModel) -> Any:
    given = {name: getattr(model, name) for name in model.model_fields_set}
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            k: _as_dataclass(hints[k], v) if isinstance(v, pydantic.BaseModel) else v
            for k, v in given.items()
        }
    )


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _not_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a number")
    return value


def _scalar(value: Any) -> bool | int | float | str:
    """An argument for gymnasium.make, as config.py's EnvConfig.kwargs allows it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a finite number")
        return float(value)
    if not isinstance(value, bool | int | str):
        raise ValueError("a number, text, true or false")
    return value


# One line for each mistake


def _line(mistake: Any) -> str:
    """What pydantic found, as one line."""
    path, kind = mistake["loc"], mistake["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key {_dotted(path)}{_suggestion(tuple(map(str, path)))}"
    if path[-1] == "[key]":
        return f"{_dotted(path[:-2])} has the name {_shown(mistake['input'])}; it must be text"
    requirement = (
        _REQUIREMENTS[kind].format(**mistake.get("ctx", {}))
        if kind in _REQUIREMENTS
        else mistake["msg"]
    )
    return f"{_dotted(path)} is {_shown(mistake['input'])}; it must be {requirement}"


def _suggestion(path: tuple[str, ...]) -> str:
    """`; did you mean ...?` for an unknown key: the name elsewhere, then one like it here, then one
    like it anywhere.
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


def _shown(value: Any) -> str:
    """A value in a message: short, on one line."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:
        return "a number of thousands of digits"
    return _flat(text if len(text) <= 60 else f"{text[:57]}...")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _position(values: Any, path: Sequence[Any]) -> list[int]:
    """Where a path stands among the values, so that mistakes come in their order."""
    places = []
    for part in path:
        keys = list(values) if isinstance(values, Mapping) else []
        places.append(keys.index(part) if part in keys else part if isinstance(part, int) else 0)
        values = values[part] if part in keys else None
    return places


# YAML


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number, 2024-01-01 is text, a key that stands twice is a
    mistake.
    """

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


class _Dumper(yaml.SafeDumper):
    """Lists on one line; text that _Loader would read as a number in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TIMESTAMP, _FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)
