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
    swept = {
        f.name: getattr(config.sweep, f.name)
        for f in dataclasses.fields(config.sweep)
        if getattr(config.sweep, f.name)
    }
    settings = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())
    ]
    chosen = [(dataclasses.replace(config.cql, **setting), setting) for setting in settings]
    if config.baselines:
        chosen = [(cql, {"algorithm": "cql", **setting}) for cql, setting in chosen]
    for name in dict.fromkeys(config.baselines):
        changed: dict[str, Any] = (
            {"conservative_weight": 0.0}
            if name == "sac"
            else {"bc_warmup_updates": config.cql.num_updates}
        )
        cql = dataclasses.replace(config.cql, **changed)
        chosen.append((cql, {"algorithm": name, **{key: getattr(cql, key) for key in swept}}))
    return [
        Member(index, seed, cql, setting)
        for index, ((cql, setting), seed) in enumerate(
            itertools.product(chosen, range(config.num_seeds))
        )
    ]
