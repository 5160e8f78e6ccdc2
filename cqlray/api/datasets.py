"""Data sets as users meet them: opened from anywhere, checked, described, written as cqlray's own.

What the data does not say of its environment is taken from the environment that was named, or from
the config.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray.config.load import build
from cqlray.config.schema import NO_ENVIRONMENT, ColumnsConfig, EnvConfig, RunConfig
from cqlray.data import convert
from cqlray.data.checks.findings import Report
from cqlray.data.checks.fixes import fix
from cqlray.data.checks.validation import validate
from cqlray.data.dataset import Description
from cqlray.data.episode import Episode, Shard
from cqlray.data.formats import ColumnNames, open_source
from cqlray.data.source import Source
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.errors import UserError
from cqlray.storage.locations import any_path

if TYPE_CHECKING:
    import pandas

_OF_THE_SPACES = ("observation_dim", "action_dim", "action_low", "action_high", "max_episode_steps")


class Dataset:
    """A data set that was opened: cqlray's own or foreign.

    Its episodes are read anew by each method, in bounded memory.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def environment(self) -> dict[str, Any]:
        """Environment id, spaces and time limit, as far as they are known; None where they are
        not.
        """
        return self.source.environment

    @cached_property
    def description(self) -> dict[str, Any]:
        """Episodes, transitions, tiers, returns and digest: what dataset.json holds, computed in
        one pass.

        Raises:
            UserError: the data cannot be read, or holds no episode.
        """
        description = Description(self.environment)
        # cqlray's own shards as they stand in their files, so that the digest is the one in
        # dataset.json.
        is_own = self.source.format == "cqlray"
        for shard in (piece.shard for piece in self.source.pieces()) if is_own else self.shards():
            description.add(shard)
        if not description.entries:
            raise UserError(f"dataset {self.source.name!r} holds no episode")
        return {**convert.of_origin(self.source), **description.finish()}

    def shards(self) -> Iterator[Shard]:
        """Whole episodes, many at a time."""
        return convert.native_shards(self.source)

    def episodes(self) -> Iterator[Episode]:
        """The episodes one by one, each with T + 1 observations."""
        for shard in self.shards():
            yield from shard.episodes()

    def validate(self, batch_size: int = 256) -> Report:
        """Everything that is wrong with the data, or worth a look; see
        cqlray.data.checks.findings.KINDS.
        """
        return validate(self.source, batch_size)

    def fixed(self) -> tuple[Dataset, list[str]]:
        """The data with what can be mended safely mended as it is read, and a line for each thing
        done.
        """
        mended, lines = fix(self.source, self.validate())
        return Dataset(mended), lines

    def save(self, directory: str | Path, append: bool = False) -> dict[str, Any]:
        """Write it as a native dataset, its description returned; with `append` behind what is
        there.

        Raises:
            UserError: the directory holds a dataset (that these episodes do not belong to), or the
                data cannot be read.
        """
        return convert.write_dataset(self.source, any_path(directory), append)


def load_dataset(
    data: str | Path | pandas.DataFrame,
    columns: ColumnsConfig | Mapping[str, Any] | None = None,
    env: str | EnvConfig | None = None,
) -> Dataset:
    """Open a data set from anywhere.

    Args:
        data: a cqlray dataset or run directory, `minari:ID` or a Minari dataset directory, a D4RL
            HDF5 file, a Parquet file or directory, a CSV file, each local or as s3:// or gs:// URI,
            or a pandas DataFrame of log rows.
        columns: what the columns of log rows are.
        env: the environment, where the data does not say it.

    Raises:
        UserError: there is no such data, it is none of these, or it contradicts the environment.
    """
    if not isinstance(columns, ColumnsConfig):
        columns = build(
            {"columns": {key: _as_list(key, value) for key, value in (columns or {}).items()}},
            "columns",
        ).columns
    config = EnvConfig(env) if isinstance(env, str) else env
    return Dataset(open_data(data, columns, config))


def open_data(data: Any, columns: ColumnsConfig, env: EnvConfig | None) -> Source:
    """The source, its environment completed by `env` and by the bounds in `columns`.

    Raises as load_dataset.
    """
    name = str(data) if isinstance(data, Path) else data
    source = open_source(
        name, _column_names(columns), _limit(name, env.max_episode_steps if env else None)
    )
    said = source.environment
    complete = dict(said)
    if (
        env is not None
        and env.id != NO_ENVIRONMENT
        and (said.get("id") is None or any(said.get(k) is None for k in _BOUNDS))
    ):
        spec = describe_env(env)
        require_same_spaces(source, spec)
        complete = {
            **said,
            **{key: getattr(spec, key) for key in ("id", *_OF_THE_SPACES)},
            "kwargs": dict(env.kwargs),
        }
    for key, given in (("action_low", columns.action_low), ("action_high", columns.action_high)):
        if given and complete.get(key) is None:
            complete[key] = list(given) * (complete["action_dim"] if len(given) == 1 else 1)
    return dataclasses.replace(source, environment=complete)


_BOUNDS = ("action_low", "action_high")


def _limit(data: Any, limit: int | None) -> dict[str, Any] | None:
    """A D4RL file without timeouts is cut into episodes by the environment's time limit; other data
    says its own.
    """
    return {"max_episode_steps": limit} if limit and str(data).endswith((".hdf5", ".h5")) else None


def open_configured(config: RunConfig) -> Source:
    """The data that `train` is to use. Raises as load_dataset."""
    assert config.dataset is not None
    return open_data(config.dataset, config.columns, config.env)


def recorded_environment(
    data: str, columns: Mapping[str, Any], limit: int | None = None, named: str | None = None
) -> dict[str, Any]:
    """What the data says of its environment, in EnvConfig's words: so that training on it needs no
    --env.

    An id with a module (`package.module:Name-v0`) makes gymnasium import that module, and the
    recorded arguments go to its code. Files from elsewhere must not bring that about: it takes the
    user's word, who names the same id.

    Args:
        limit: the time limit, if it was given: a D4RL file without timeouts cannot be opened
            without it.
        named: the id that the user gave, if one was given.

    Raises:
        UserError: the data cannot be opened, or its id has a module and the user named none.
    """
    names = _column_names(build({"columns": columns}, "columns").columns)
    said = open_source(data, names, _limit(data, limit)).environment
    identifier = said.get("id")
    if identifier is None:
        return {"id": NO_ENVIRONMENT}
    known = {
        key: said[key] for key in ("id", "max_episode_steps", "kwargs") if said.get(key) is not None
    }
    if ":" not in str(identifier) or named == identifier:
        return known
    if named is None:
        typed = shlex.quote(str(identifier)) if str(identifier).isprintable() else "ID"
        raise UserError(
            f"dataset {data!r} names the environment {identifier!r}, and no module is imported on a"
            f" file's word: --env {typed} trains with tests in it, --env {NO_ENVIRONMENT} without"
            " tests"
        )
    return {key: value for key, value in known.items() if key != "kwargs"}


def spec_of(source: Source) -> EnvSpec:
    """The data's environment as the rest of cqlray needs it.

    Raises:
        UserError: the data does not say the bounds of its actions.
    """
    said = source.environment
    if said.get("action_low") is None or said.get("action_high") is None:
        raise UserError(
            f"dataset {source.name!r} does not say the bounds of its actions; name its environment"
            " with --env, or the bounds with --columns.action-low and --columns.action-high"
        )
    low, high = (tuple(float(value) for value in said[key]) for key in _BOUNDS)
    identifier = said.get("id") or NO_ENVIRONMENT
    return EnvSpec(
        identifier,
        said["observation_dim"],
        said["action_dim"],
        low,
        high,
        said.get("max_episode_steps"),
    )


def require_same_spaces(source: Source, spec: EnvSpec) -> None:
    """Let data and environment that belong together pass.

    Raises:
        UserError: the data has other dimensions or bounds than the environment.
    """
    said = source.environment
    differing = [
        f"{key} {_plain(said[key])} and not {_plain(getattr(spec, key))}"
        for key in ("observation_dim", "action_dim", *_BOUNDS)
        if said.get(key) is not None and not _close(said[key], getattr(spec, key))
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
    return ColumnNames(
        observation=columns.observation,
        action=columns.action,
        reward=columns.reward,
        episode=columns.episode,
        step=columns.step,
        terminated=columns.terminated,
        truncated=columns.truncated,
        next_observation=columns.next_observation,
    )


def _as_list(key: str, value: Any) -> Any:
    """A single name or number where ColumnsConfig has a list is a list of one."""
    is_single = isinstance(value, str | float | int)
    return (
        [value] if is_single and isinstance(getattr(ColumnsConfig(), key, None), tuple) else value
    )


def is_native(data: str) -> bool:
    """Whether it is a dataset or run directory of cqlray's own."""
    path = any_path(data)
    return any((folder / "dataset.json").is_file() for folder in (path, path / "dataset"))


def absolute(data: str) -> str:
    """The name that means the same in any working directory: local paths in full, URIs and
    minari:ID as they are.
    """
    return data if ":" in data.partition("/")[0] else str(Path(data).resolve())
