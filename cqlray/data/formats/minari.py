"""Minari's datasets: HDF5, Arrow and Parquet storage, read without Minari.

metadata.json is read as data: its environment is named, never made, and nothing of it is imported.
Dict, Tuple and discrete observations are flattened (minari_spaces.py). Episodes stand in the order
of their numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cqlray.data.episode import Array, Episode, Shard
from cqlray.data.formats import minari_spaces
from cqlray.data.formats.arrow import read_arrow
from cqlray.data.formats.files import DataPath, locate, natural_key, readable
from cqlray.data.formats.hdf5 import opened_hdf5, probe_hdf5, read_part
from cqlray.data.parquet import open_parquet
from cqlray.data.source import PIECE_SIZE, Piece, Source, describe_environment, narrow, tier_of
from cqlray.errors import UserError
from cqlray.storage.outside import parse_json

PREFIX = "minari:"
DATASET_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+-v\d+")
PROVENANCE = {
    "author": "author",
    "author_email": "author_email",
    "algorithm_name": "algorithm",
    "code_permalink": "code",
    "description": "description",
    "licence": "licence",
    "dataset_id": "minari_id",
    "minari_version": "minari_version",
}
STEPS = ("actions", "rewards", "terminations", "truncations")  # a row for each step
ARRAYS = ("observations", *STEPS)
_SEED_LIMIT = 2**63
_Found = tuple[Episode, str]  # an episode and its tier


def local_root() -> Path:
    """Where Minari keeps its datasets on this machine."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def open_minari_id(name: str) -> Source:
    """`minari:ID`, a dataset that Minari has on this machine.

    Raises:
        UserError: there is none; or as open_minari.
    """
    dataset_id = name.removeprefix(PREFIX)
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"dataset {name!r}: a Minari id looks like minari:namespace/name-v0")
    data = locate(str(local_root() / dataset_id)) / "data"
    if not (data / "metadata.json").is_file:
        raise UserError(
            f"dataset {name!r} is not in {local_root()}; get it with: minari download {dataset_id}"
        )
    return open_minari(name, data)


def data_directory(directory: DataPath) -> DataPath | None:
    """The folder with Minari's metadata.json: the directory, or data/ in it; None where it is no
    Minari dataset.
    """
    for candidate in (directory / "data", directory):
        if (candidate / "metadata.json").is_file:
            return candidate
    return None


def open_minari(name: str, data: DataPath) -> Source:
    """A folder with metadata.json and main_data.hdf5, or with a folder for each episode.

    Raises:
        UserError: it is damaged, its spaces are not supported, or h5py is needed and missing.
    """
    metadata, file = _metadata(data), (data / "metadata.json").name
    observation = minari_spaces.parse(metadata["observation_space"], f"{file}, observation_space")
    action = minari_spaces.parse(metadata["action_space"], f"{file}, action_space")
    with readable(f"{file}, action_space", "space as Minari writes it"):
        known = minari_spaces.action_bounds(action, f"{file}, action_space")
    dim = minari_spaces.width(observation, file)
    environment = describe_environment(dim, **known, **_environment(metadata, file))
    tier = tier_of(str(metadata.get("dataset_id", "")))
    reader = _reader(metadata, data, file)

    def pieces() -> Iterator[Piece]:
        episodes = reader(data, observation, environment["action_dim"], tier)
        yield from _gathered(_counted(episodes, metadata, file), data.name)

    return Source(name, "minari", environment, pieces, _provenance(metadata))


def _metadata(data: DataPath) -> dict[str, Any]:
    """metadata.json, with the spaces in it."""
    file = data / "metadata.json"
    metadata = file.json()
    if not isinstance(metadata, dict):
        raise UserError(
            f"{file.name}: holds {type(metadata).__name__}; it should be as Minari wrote it"
        )
    for key in ("observation_space", "action_space"):
        if key not in metadata:
            raise UserError(
                f"{file.name}: no {key}; load and save the dataset with a newer Minari, which"
                " writes it"
            )
    return metadata


def _reader(metadata: dict[str, Any], data: DataPath, file: str) -> Callable[..., Iterator[_Found]]:
    """The reader for how the episodes are stored."""
    storage = metadata.get("data_format", "hdf5")
    if not isinstance(storage, str) or storage not in _READERS:
        raise UserError(
            f"{file}: data_format is {storage!r}; it should be one of {', '.join(_READERS)}"
        )
    if storage == "hdf5":
        with readable(file, "HDF5 file"):
            probe_hdf5(data / "main_data.hdf5")
    return _READERS[storage]


def _environment(metadata: dict[str, Any], file: str) -> dict[str, Any]:
    """id, max_episode_steps and kwargs of env_spec, where there is one."""
    text = metadata.get("env_spec")
    if text is None:
        return {}
    with readable(f"{file}, env_spec", "environment as gymnasium writes it"):
        spec = parse_json(text, f"{file}, env_spec: not a readable environment")
        known = {key: spec.get(key) for key in ("id", "max_episode_steps")}
        kwargs = spec.get("kwargs") or {}
    if not isinstance(known["max_episode_steps"], int):
        known["max_episode_steps"] = None
    # `module:Name-v0` would make gymnasium import a module that a dataset names.
    if not isinstance(known["id"], str) or ":" in known["id"]:
        known["id"] = None
    return {**known, "kwargs": kwargs if isinstance(kwargs, dict) else {}}


def _provenance(metadata: dict[str, Any]) -> dict[str, Any]:
    known = {
        ours: metadata[theirs]
        for theirs, ours in PROVENANCE.items()
        if metadata.get(theirs) not in (None, "", [])
    }
    scores = {
        ours: metadata.get(theirs)
        for theirs, ours in (("ref_min_score", "random"), ("ref_max_score", "expert"))
    }
    if all(isinstance(score, int | float) for score in scores.values()):
        known["reference_scores"] = scores
    return known


def _counted(episodes: Iterator[_Found], metadata: dict[str, Any], file: str) -> Iterator[_Found]:
    """The episodes; an error at the end where metadata.json gives another number of them."""
    count = 0
    for episode in episodes:
        yield episode
        count += 1
    said = metadata.get("total_episodes", count)
    if count != said:
        raise UserError(
            f"{file}: total_episodes is {str(said)[:60]}, but there are {count}; the dataset is not"
            " whole"
        )


def _gathered(episodes: Iterator[_Found], file: str) -> Iterator[Piece]:
    """Episodes of one tier as pieces of about PIECE_SIZE."""
    held: list[Episode] = []
    tier, steps = "", 0
    for episode, its_tier in episodes:
        if held and (its_tier != tier or steps + len(episode) > PIECE_SIZE):
            yield Piece(Shard.of(held, tier), file)
            held, steps = [], 0
        tier = its_tier
        held.append(episode)
        steps += len(episode)
    if held:
        yield Piece(Shard.of(held, tier), file)


def _hdf5(
    data: DataPath, observation: dict[str, Any], action_dim: int, tier: str
) -> Iterator[_Found]:
    file = data / "main_data.hdf5"
    dims = (minari_spaces.width(observation, file.name), action_dim)
    with opened_hdf5(file) as opened:
        for key in sorted((key for key in opened if key.startswith("episode_")), key=natural_key):
            group, place = opened[key], f"{file.name}, {key}"
            rows = len(group["rewards"])
            arrays = {name: read_part(group[name], place) for name in STEPS}
            flat = minari_spaces.flatten(
                observation, _whole(group["observations"]), rows + 1, _hdf5_part
            )
            episode = _episode(place, flat, arrays, group.attrs.get("seed"), dims)
            yield episode, _tier(group, tier)


def _tier(group: Any, default: str) -> str:
    """The tier that cqlray's writer left beside an episode, as bytes of fixed length: HDF5 hangs in
    damaged strings of other kinds.
    """
    is_ours = "tier" in group.attrs and group.attrs.get_id("tier").dtype.kind == "S"
    return bytes(group.attrs["tier"]).decode() if is_ours else default


def _hdf5_part(group: Any, key: str) -> Any:
    return _whole(group[key] if key in group else group[f"_index_{key}"])


def _whole(part: Any) -> Any:
    """A group as it is, of a data set the values."""
    return read_part(part, part.name) if hasattr(part, "shape") else part


def _folders(
    data: DataPath, observation: dict[str, Any], action_dim: int, tier: str
) -> Iterator[_Found]:
    """Arrow and Parquet storage: a folder for each episode, its arrays with one row of padding."""
    dims = (minari_spaces.width(observation, data.name), action_dim)
    folders: dict[str, list[DataPath]] = {}
    for file in data.files():
        folder, _, rest = file.path[len(data.path.rstrip("/")) + 1 :].partition("/")
        if folder.isdecimal() and file.suffix in (".arrow", ".parquet") and rest:
            folders.setdefault(folder, []).append(file)
    for folder, files in folders.items():
        place = (data / folder).name
        with readable(place, "episode of Arrow or Parquet files"):
            table = pa.concat_tables([_table(file) for file in files]).combine_chunks()
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            rows = table.num_rows - 1
            arrays = {name: _values(columns[name])[:rows] for name in STEPS}
            flat = minari_spaces.flatten(
                observation, _leaf(columns["observations"]), rows + 1, _arrow_part
            )
            details = data / folder / "metadata.json"
            seed = details.json().get("seed") if details.is_file else None
        yield _episode(place, flat, arrays, seed, dims), tier


def _table(file: DataPath) -> pa.Table:
    with file.open() as stream:
        if file.suffix == ".parquet":
            return open_parquet(stream, file.name, stream.size(), ARRAYS).read(ARRAYS)
        return read_arrow(stream, file.name)


def _arrow_part(values: Any, key: str) -> Any:
    return _leaf(values.field(key))


def _leaf(values: Any) -> Any:
    """The array as numpy, or as it is where it has parts."""
    return values if pa.types.is_struct(values.type) else _values(values)


def _values(values: Any) -> Array:
    """[rows] or [rows, width] of an Arrow array of numbers or of lists of one length."""
    if pa.types.is_fixed_size_list(values.type):
        flat: Array = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, values.type.list_size)
    plain: Array = values.to_numpy(zero_copy_only=False)
    return plain


def _episode(
    place: str, observations: Array, arrays: dict[str, Array], seed: Any, dims: tuple[int, int]
) -> Episode:
    """An episode of these arrays, checked; `dims` are those of an observation and of an action.

    Raises:
        UserError: they are of other shapes, or the flags are no flags.
    """
    rows = len(arrays["rewards"])
    _check_shapes(place, arrays, rows, dims[1])
    if observations.shape[1] != dims[0]:
        raise UserError(
            f"{place}: observations of {observations.shape[1]} numbers; metadata.json says"
            f" {dims[0]}"
        )
    _check_dtypes(place, {"observations": observations, **arrays})
    is_seed = isinstance(seed, int | np.integer) and -_SEED_LIMIT <= seed < _SEED_LIMIT
    return Episode(
        observations=narrow(observations),
        actions=narrow(arrays["actions"].reshape(rows, dims[1])),
        rewards=narrow(arrays["rewards"].reshape(rows)),
        terminations=arrays["terminations"].reshape(rows),
        truncations=arrays["truncations"].reshape(rows),
        seed=int(seed) if is_seed else 0,
    )


def _check_shapes(place: str, arrays: dict[str, Array], rows: int, action_dim: int) -> None:
    """Each array has a row for each step, of its width."""
    for name in ("actions", "rewards", "terminations", "truncations"):
        values, width = arrays[name], action_dim if name == "actions" else 1
        if len(values) != rows:
            raise UserError(
                f"{place}: {len(values)} {name} for {rows} rewards; there should be one for each"
                " step"
            )
        flat = values.reshape(rows, -1) if values.size else values
        if rows and flat.shape[1:] != (width,):
            raise UserError(
                f"{place}: {name} of shape {values.shape}; there should be {width} numbers for"
                " each step"
            )


def _check_dtypes(place: str, arrays: dict[str, Array]) -> None:
    for name, values in arrays.items():
        is_flag = name in ("terminations", "truncations")
        if values.dtype.kind not in ("b" if is_flag else "fiub"):
            right = "true or false" if is_flag else "numbers"
            raise UserError(f"{place}: {name} are {values.dtype}; they should be {right}")


_READERS = {"hdf5": _hdf5, "arrow": _folders, "parquet": _folders}
