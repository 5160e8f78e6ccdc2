"""Find out which format a dataset has, and open it with the reader for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cqlray.config.secrets import masked_values
from cqlray.data.dataset import DESCRIPTION
from cqlray.data.formats.d4rl import SUFFIXES as HDF5
from cqlray.data.formats.d4rl import open_d4rl
from cqlray.data.formats.files import DataPath, locate, readable
from cqlray.data.formats.log import open_frame, open_log
from cqlray.data.formats.log_columns import ColumnNames
from cqlray.data.formats.log_files import CSV, PARQUET
from cqlray.data.formats.minari import PREFIX, data_directory, open_minari, open_minari_id
from cqlray.data.formats.native import open_native
from cqlray.data.formats.rllib import open_if_rllib
from cqlray.data.source import Source
from cqlray.errors import UserError

if TYPE_CHECKING:
    import pandas

_MAY_BE = (
    "a dataset is a cqlray dataset or run directory, minari:ID or a Minari directory, a D4RL file"
    " (.hdf5), Parquet or CSV log rows (a file or a directory of them), or an RLlib recording;"
    " local or s3://, gs://"
)
_MAGIC = {b"PAR1": PARQUET[0], b"\x89HDF": HDF5[0]}


def open_source(
    name: str | pandas.DataFrame,
    columns: ColumnNames | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Source:
    """Open a dataset from anywhere; only what shows its format and dimensions is read.

    Args:
        name: a path or URI (s3://bucket/key?region=... too), `minari:ID`, or a pandas DataFrame of
            log rows.
        columns: what the columns of log rows are.
        environment: id, action_low, action_high, max_episode_steps ..., where the data does not say
            them.

    Raises:
        UserError: there is no such data, it is damaged, of no known format, or contradicts
            `environment`.
    """
    names = columns or ColumnNames()
    source = (
        _open_name(name, names, environment) if isinstance(name, str) else _open_object(name, names)
    )
    recorded = {**source.environment, "kwargs": masked_values(source.environment.get("kwargs", {}))}
    return dataclasses.replace(
        source,
        environment=_complete_environment(source.name, recorded, environment),
        provenance=masked_values(source.provenance),
    )


def _open_object(value: Any, names: ColumnNames) -> Source:
    if type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] == "pandas":
        return open_frame(value, names)
    raise UserError(
        f"dataset is a {type(value).__name__}; it should be a path, a URI, minari:ID or a pandas"
        " DataFrame"
    )


def _open_name(name: str, names: ColumnNames, environment: Mapping[str, Any] | None) -> Source:
    if name.startswith(PREFIX):
        return open_minari_id(name)
    place = locate(name.removeprefix("d4rl:"))
    if place.is_directory:
        return _open_directory(name, place, names)
    if not place.is_file:
        raise UserError(f"dataset {name!r}: no such file or directory; {_MAY_BE}")
    suffix = place.suffix if place.suffix in (*HDF5, *PARQUET, *CSV) else _sniffed(place)
    if suffix in HDF5:
        return open_d4rl(name, place, environment)
    if suffix in PARQUET:
        return open_if_rllib(name, [place]) or open_log(name, "parquet", [place], names)
    if suffix in CSV:
        return open_log(name, "csv", [place], names)
    raise UserError(f"dataset {name!r} is of no known format; {_MAY_BE}")


def _sniffed(file: DataPath) -> str:
    """The suffix for a file's first bytes; nothing where they are not known."""
    with readable(file.name, "file"), file.open() as stream:
        return _MAGIC.get(stream.read(4), "")


def _open_directory(name: str, directory: DataPath, names: ColumnNames) -> Source:
    for candidate in (directory, directory / "dataset"):
        if (candidate / DESCRIPTION).is_file:
            return open_native(name, candidate)
    if (data := data_directory(directory)) is not None:
        return open_minari(name, data)
    files = directory.files()
    found = {kind: [file for file in files if file.suffix in kind] for kind in (PARQUET, CSV, HDF5)}
    if found[HDF5]:
        raise UserError(
            f"dataset {name!r} is a directory of HDF5 files; name one of them, such as"
            f" {found[HDF5][0].name}"
        )
    if found[PARQUET] and found[CSV]:
        raise UserError(
            f"dataset {name!r} holds Parquet and CSV files; keep one kind in a directory, or name a"
            " file"
        )
    if found[PARQUET]:
        return open_if_rllib(name, found[PARQUET]) or open_log(
            name, "parquet", found[PARQUET], names
        )
    if found[CSV]:
        return open_log(name, "csv", found[CSV], names)
    if not files:
        raise UserError(f"dataset {name!r} is an empty directory; {_MAY_BE}")
    raise UserError(f"dataset {name!r} is of no known format; {_MAY_BE}")


def _complete_environment(
    name: str, recorded: Mapping[str, Any], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The recorded environment, completed by what was given.

    Raises:
        UserError: the two contradict each other.
    """
    complete = dict(recorded)
    for key, value in (given or {}).items():
        if complete.get(key) in (None, {}):
            complete[key] = value
        elif value is not None and not _same(complete[key], value):
            raise UserError(
                f"dataset {name!r}: its {key} is {complete[key]}, but {value} was given; they must"
                " agree"
            )
    return complete


def _same(one: Any, other: Any) -> bool:
    try:
        a, b = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    except (ValueError, TypeError):
        return bool(one == other)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-5, atol=1e-7))
