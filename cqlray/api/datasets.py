"""Datasets as users meet them in Python: opened from anywhere, checked, described, saved as
cqlray's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray.config.load import build
from cqlray.config.schema import ColumnsConfig, EnvConfig
from cqlray.data import convert
from cqlray.data.checks.findings import Report
from cqlray.data.checks.fixes import fix
from cqlray.data.checks.validation import validate
from cqlray.data.dataset import Description
from cqlray.data.episode import Episode, Shard
from cqlray.data.source import Source
from cqlray.envs.recorded import open_data
from cqlray.errors import UserError
from cqlray.storage.locations import any_path
from cqlray.storage.locks import exclusive
from cqlray.storage.run_directory import DATASET, MANIFEST

if TYPE_CHECKING:
    import pandas


class Dataset:
    """An opened dataset, in cqlray's format or another.

    Each method reads the episodes anew, in bounded memory.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def environment(self) -> dict[str, Any]:
        """Environment id, spaces and time limit; None where they are not known."""
        return self.source.environment

    @cached_property
    def description(self) -> dict[str, Any]:
        """Episodes, transitions, tiers, returns and digest: what dataset.json holds, computed in
        one pass.

        Raises:
            UserError: the data cannot be read, or holds no episode.
        """
        description = Description(self.environment)
        # Native shards as they are in their files, so that the digest is the one in dataset.json.
        if self.source.format == "cqlray":
            shards: Iterator[Shard] = (piece.shard for piece in self.source.pieces())
        else:
            shards = self.shards()
        for shard in shards:
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
        """The same data with what can be fixed safely fixed as it is read, and a line for each
        thing done.
        """
        mended, lines = fix(self.source, self.validate())
        return Dataset(mended), lines

    def save(self, directory: str | Path, append: bool = False) -> dict[str, Any]:
        """Write it as a native dataset, and return its description; with `append`, after the
        episodes that are there.

        Raises:
            UserError: the directory holds a dataset (that these episodes do not belong to), another
                process writes there, or the data cannot be read.
        """
        place = any_path(directory)
        convert.require_room(place, append)
        of_run = place.name == DATASET and (place.parent / MANIFEST).is_file()
        say = partial(print, file=sys.stderr)
        with exclusive(place.parent if of_run else place, say):
            return convert.write_dataset(self.source, place, append, say)


def load_dataset(
    data: str | Path | pandas.DataFrame,
    columns: ColumnsConfig | Mapping[str, Any] | None = None,
    env: str | EnvConfig | None = None,
) -> Dataset:
    """Open a dataset from anywhere.

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


def _as_list(key: str, value: Any) -> Any:
    """Where ColumnsConfig has a list, a single name or number becomes a list of one."""
    is_single = isinstance(value, str | float | int)
    return (
        [value] if is_single and isinstance(getattr(ColumnsConfig(), key, None), tuple) else value
    )
