"""Where a config enters: layers of plain values, merged, checked once and made a RunConfig.

A layer is a YAML file, the command line, or a config made in Python; a message about a mistake
names its layer. `models` checks names, types and bounds; rules that join several fields are here.
`load_yaml` and `dump_yaml` read and write a config without changing a bit of it.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import yaml

from cqlray.config import models
from cqlray.config.mistakes import line_of, nearest, position, shown
from cqlray.config.read_yaml import NUMBER, TextFile, load_yaml
from cqlray.config.schema import TIERS, RunConfig, to_dict
from cqlray.config.secrets import IN_ADDRESS, has_key, is_secret
from cqlray.errors import UserError

_MISSING = object()


@dataclass(frozen=True)
class Layer:
    """Nested plain values, and the name of their source in messages."""

    source: str
    values: Mapping[str, Any]

    def at(self, path: Sequence[Any]) -> Any:
        """The value at this path, or _MISSING."""
        value: Any = self.values
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return _MISSING
        return value


def validate(values: Mapping[str, Any], source: str) -> RunConfig:
    """The config that nested plain values describe; what they leave out has its default.

    Raises UserError with one line for each mistake: unknown names, wrong types and values out of
    bounds, in the order of the values; or, if there are none, broken rules between fields.
    """
    config = build(values, source)
    check_rules(config, [Layer(source, values)])
    return config


def check(config: RunConfig, source: str) -> RunConfig:
    """The same for a config made in Python; lists in it come back as tuples.

    Raises UserError as validate does.
    """
    if not isinstance(config, RunConfig):
        raise UserError(f"{source}: a RunConfig is needed, not {shown(config)}")
    return validate(to_dict(config), source)


def build(values: Mapping[str, Any], source: str) -> RunConfig:
    """As validate, without the rules that join several fields: for a part of a config.

    Raises UserError with one line for each mistake.
    """
    return over(RunConfig(), check_layers([Layer(source, values)]))


def check_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """The layers merged, later ones over earlier ones, and checked: values in the config's types.

    A value that a later layer replaces is not checked.

    Raises UserError with one line for each unknown name, wrong type and value out of bounds, layer
    by layer, in the order of their values.
    """
    merged: dict[str, Any] = functools.reduce(merge, (layer.values for layer in layers), {})
    try:
        return models.typed(merged)
    except pydantic.ValidationError as error:
        found = [(_index_of(m, layers), m) for m in error.errors(include_url=False)]
    found.sort(key=lambda pair: (pair[0], position(layers[pair[0]].values, pair[1]["loc"])))
    raise UserError("\n".join(f"{layers[index].source}: {line_of(m)}" for index, m in found))


def _index_of(mistake: Any, layers: Sequence[Layer]) -> int:
    """The index of a mistake's layer: the last one that has this very value, or name, there."""
    path, wrong = [part for part in mistake["loc"] if part != "[key]"], mistake["input"]
    is_name = path[-1] == wrong
    for index in reversed(range(len(layers))):
        value = layers[index].at(path)
        if value is wrong or (is_name and value is not _MISSING):
            return index
    return len(layers) - 1


def over(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """base with values that `check_layers` returned in place of its own."""
    config: RunConfig = _made(RunConfig, merge(dataclasses.asdict(base), values))
    return config


def _made(cls: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _made(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of base with the values of over in place of its own, section by section.

    Where over has a section and base a plain value, that value stays: it is a mistake, and the
    check is to find it.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key, {})
        if not isinstance(value, Mapping):
            merged[key] = value
        elif isinstance(below, Mapping):
            merged[key] = merge(below, value)
    return merged


# Rules between fields


def check_rules(config: RunConfig, layers: Sequence[Layer]) -> None:
    """Check the rules between fields.

    Raises UserError with one line for each broken rule. It names the last layer that sets one of
    the rule's fields.
    """
    lines = []
    for line, *fields in _broken_rules(config):
        paths = [field.split(".") for field in fields]
        setting = [la for la in layers if any(la.at(path) is not _MISSING for path in paths)]
        lines.append(f"{(setting or layers)[-1].source}: {line}")
    if lines:
        raise UserError("\n".join(lines))


def _broken_rules(config: RunConfig) -> Iterator[tuple[str, ...]]:
    """For each broken rule: its line, and the fields that it joins."""
    for line in _collection_mistakes(config):
        yield line, "collection.tiers", "collection.episodes"
    for field in ("out", "dataset"):
        if has_key(getattr(config, field) or ""):
            yield f"{field}: {IN_ADDRESS}", field
        if getattr(config, field) == "":
            yield f"{field} is ''; it must be a path or an address", field
    scratch = config.resources.scratch
    if scratch is not None and not scratch.startswith("/"):
        yield (
            f"resources.scratch is {shown(scratch)}; it must be an absolute path",
            "resources.scratch",
        )
    for name, value in config.env.kwargs.items():
        # A run keeps its config for resume, and its dataset the environment's arguments.
        if isinstance(value, str) and value and is_secret(name):
            yield (
                f"env.kwargs.{name} looks like a secret, which would stand in config.yaml and"
                " dataset.json; let the environment read it from an environment variable",
                "env.kwargs",
            )
    if config.teacher.warmup_rounds >= config.teacher.rounds:
        line = (
            f"teacher.warmup_rounds is {config.teacher.warmup_rounds}; "
            f"it must be less than teacher.rounds, which is {config.teacher.rounds}"
        )
        yield line, "teacher.warmup_rounds", "teacher.rounds"
    low_name, low = max(_choices(config, "difference_clip_min"), key=lambda choice: choice[1])
    high_name, high = min(_choices(config, "difference_clip_max"), key=lambda choice: choice[1])
    if low >= high:
        line = f"{low_name} is {low}; it must be less than {high_name}, which is {high}"
        yield line, low_name, high_name


def _collection_mistakes(config: RunConfig) -> Iterator[str]:
    tiers, episodes = config.collection.tiers, config.collection.episodes
    if not tiers:
        yield f"collection.tiers is empty; it must name at least one of {', '.join(TIERS)}"
    for tier in dict.fromkeys(tiers):
        if tier not in TIERS:
            hint = nearest(tier, TIERS) or f"; the tiers are {', '.join(TIERS)}"
            yield f"collection.tiers: there is no tier {shown(tier)}{hint}"
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
    """The values that an option takes in a run: the swept ones, or else the one in cql."""
    swept = getattr(config.sweep, name)
    return [(f"sweep.{name}", value) for value in swept] or [
        (f"cql.{name}", getattr(config.cql, name))
    ]


# YAML


def load_config(path: TextFile) -> RunConfig:
    """The config in a YAML file, such as a run directory's config.yaml.

    Raises UserError as load_yaml and validate do.
    """
    return validate(load_yaml(path), str(path))


def dump_yaml(config: RunConfig) -> str:
    """The whole config as YAML, sections and fields in their order; validate(parse_yaml(text))
    gives an equal config.
    """
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )


class _Dumper(yaml.SafeDumper):
    """Lists on one line, and quotes around text that `read_yaml` would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(*NUMBER)
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)
