"""Open a dataset together with the environment it was recorded in.

What the data does not record about its environment comes from the one that the user names, or from
the config.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cqlray.config.schema import NO_ENVIRONMENT, ColumnsConfig, EnvConfig, RunConfig
from cqlray.data.formats import ColumnNames, open_source
from cqlray.data.source import Source
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.errors import UserError
from cqlray.storage.trust import names_module

_BOUNDS = ("action_low", "action_high")
_SPACES = ("observation_dim", "action_dim", *_BOUNDS, "max_episode_steps")


def open_data(data: Any, columns: ColumnsConfig, env: EnvConfig | None) -> Source:
    """The dataset with its environment completed by `env` and by the bounds in `columns`.

    Args:
        data: a name, path or URI, or a pandas DataFrame, as for load_dataset.

    Raises:
        UserError: there is no such data, it is damaged, or it contradicts the environment.
    """
    name = str(data) if isinstance(data, Path) else data
    source = open_source(
        name, _column_names(columns), _limit(name, env.max_episode_steps if env else None)
    )
    recorded = source.environment
    complete = dict(recorded)
    if (
        env is not None
        and env.id != NO_ENVIRONMENT
        and (recorded.get("id") is None or any(recorded.get(k) is None for k in _BOUNDS))
    ):
        spec = describe_env(env)
        require_same_spaces(source, spec)
        complete = {
            **recorded,
            **{key: getattr(spec, key) for key in ("id", *_SPACES)},
            "kwargs": dict(env.kwargs),
        }
    for key, given in (("action_low", columns.action_low), ("action_high", columns.action_high)):
        if given and complete.get(key) is None:
            complete[key] = list(given) * (complete["action_dim"] if len(given) == 1 else 1)
    return dataclasses.replace(source, environment=complete)


def _limit(data: Any, limit: int | None) -> dict[str, Any] | None:
    """The time limit that cuts a D4RL file without timeouts into episodes; other data has it."""
    return {"max_episode_steps": limit} if limit and str(data).endswith((".hdf5", ".h5")) else None


def open_configured(config: RunConfig) -> Source:
    """The dataset that the config names for training. Raises as open_data."""
    assert config.dataset is not None
    return open_data(config.dataset, config.columns, config.env)


def recorded_environment(
    data: str, columns: ColumnsConfig, limit: int | None = None, named: str | None = None
) -> dict[str, Any]:
    """The environment that the data records, as EnvConfig's fields, so training needs no --env.

    An id with a module (`package.module:Name-v0`) makes gymnasium import that module and pass the
    recorded arguments to its code. A file from elsewhere must not cause that, so the user must
    name the same id.

    Args:
        limit: the time limit, if it was given: a D4RL file without timeouts cannot be opened
            without it.
        named: the id that the user gave, if one was given.

    Raises:
        UserError: the data cannot be opened, or its id has a module and the user named none.
    """
    names = _column_names(columns)
    recorded = open_source(data, names, _limit(data, limit)).environment
    identifier = recorded.get("id")
    if identifier is None:
        return {"id": NO_ENVIRONMENT}
    known = {
        key: recorded[key]
        for key in ("id", "max_episode_steps", "kwargs")
        if recorded.get(key) is not None
    }
    kwargs = recorded.get("kwargs") or {}
    if named == identifier or not names_module(identifier, kwargs):
        return known
    if named is None:
        typed = shlex.quote(str(identifier)) if str(identifier).isprintable() else "ID"
        arguments = f" with {kwargs}" if ":" not in str(identifier) else ""
        raise UserError(
            f"dataset {data!r} names the environment {identifier!r}{arguments}, and no module is"
            f" imported on a file's word: --env {typed} trains with tests in it, --env"
            f" {NO_ENVIRONMENT} without tests"
        )
    return {key: value for key, value in known.items() if key != "kwargs"}


def spec_of(source: Source) -> EnvSpec:
    """The data's environment as an EnvSpec.

    Raises:
        UserError: the bounds of its actions are not known.
    """
    recorded = source.environment
    if recorded.get("action_low") is None or recorded.get("action_high") is None:
        raise UserError(
            f"dataset {source.name!r} does not say the bounds of its actions; name its environment"
            " with --env, or the bounds with --columns.action-low and --columns.action-high"
        )
    low, high = (tuple(float(value) for value in recorded[key]) for key in _BOUNDS)
    sizes = recorded["observation_dim"], recorded["action_dim"]
    identifier = recorded.get("id") or NO_ENVIRONMENT
    return EnvSpec(identifier, *sizes, low, high, recorded.get("max_episode_steps"))


def require_same_spaces(source: Source, spec: EnvSpec) -> None:
    """Check that the data and the environment match.

    Raises:
        UserError: the data has other dimensions or bounds than the environment.
    """
    recorded = source.environment
    differing = [
        f"{key} {_plain(recorded[key])} and not {_plain(getattr(spec, key))}"
        for key in ("observation_dim", "action_dim", *_BOUNDS)
        if recorded.get(key) is not None and not _close(recorded[key], getattr(spec, key))
    ]
    if differing:
        raise UserError(
            f"dataset {source.name!r} does not belong to env.id {spec.id!r}: it has"
            f" {', '.join(differing)}"
        )


def _close(one: Any, other: Any) -> bool:
    a, b = (list(value) if isinstance(value, Sequence) else [value] for value in (one, other))
    return len(a) == len(b) and all(
        abs(x - y) <= 1e-5 * max(1.0, abs(y)) for x, y in zip(a, b, strict=True)
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) else value


def _column_names(columns: ColumnsConfig) -> ColumnNames:
    names = [field.name for field in dataclasses.fields(ColumnNames)]
    return ColumnNames(**{name: getattr(columns, name) for name in names})
