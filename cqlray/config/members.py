"""The members of a run: its seeds times the product of the sweep, then the baselines."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from cqlray.config.schema import CQLConfig, RunConfig


@dataclass(frozen=True)
class Member:
    """One student: its index in the run, its seed, its complete CQL options, and those of them that
    the sweep chose.
    """

    index: int
    seed: int
    cql: CQLConfig
    swept: dict[str, Any]

    @property
    def structure(self) -> tuple[Any, ...]:
        """What members of one population have in common: each option that changes the tensors'
        shapes or the order of computation.
        """
        return tuple(
            getattr(self.cql, f.name)
            for f in dataclasses.fields(CQLConfig)
            if "per_member" not in f.metadata
        )


def members(config: RunConfig) -> list[Member]:
    """The members in order: those with the same options, which differ in their seed, follow each
    other.
    """
    swept = _swept(config)
    chosen = _of_sweep(config, swept)
    if config.baselines:
        chosen = [(cql, {"algorithm": "cql", **setting}) for cql, setting in chosen]
    for name in dict.fromkeys(config.baselines):
        cql = _of_baseline(config, name)
        chosen.append((cql, {"algorithm": name, **{key: getattr(cql, key) for key in swept}}))
    return [
        Member(index, seed, cql, setting)
        for index, ((cql, setting), seed) in enumerate(
            itertools.product(chosen, range(config.num_seeds))
        )
    ]


def without_repeats(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The config without the baselines whose options are those of one of CQL's settings, and a line
    on each: what is the same is trained once.
    """
    kept, lines = [], []
    settings = _of_sweep(config, _swept(config))
    for name in config.baselines:
        same = [setting for cql, setting in settings if cql == _of_baseline(config, name)]
        if not same:
            kept.append(name)
            continue
        which = ", ".join(f"{key} {value}" for key, value in same[0].items()) or "the config's own"
        lines.append(f"baseline {name}: the same as CQL's setting ({which}); trained once, as that")
    return dataclasses.replace(config, baselines=tuple(kept)), lines


def _swept(config: RunConfig) -> dict[str, Any]:
    """The options that the sweep varies, with their values."""
    return {
        f.name: getattr(config.sweep, f.name)
        for f in dataclasses.fields(config.sweep)
        if getattr(config.sweep, f.name)
    }


def _of_sweep(config: RunConfig, swept: dict[str, Any]) -> list[tuple[CQLConfig, dict[str, Any]]]:
    settings = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())
    ]
    return [(dataclasses.replace(config.cql, **setting), setting) for setting in settings]


def _of_baseline(config: RunConfig, name: str) -> CQLConfig:
    changed: dict[str, Any] = (
        {"conservative_weight": 0.0}
        if name == "sac"
        else {"bc_warmup_updates": config.cql.num_updates}
    )
    return dataclasses.replace(config.cql, **changed)
