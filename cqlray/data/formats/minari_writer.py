"""Write any source as a Minari dataset with HDF5 storage, without Minari: it opens with
minari.load_dataset.

Each episode keeps its seed and its tier as attributes of its group, beside what Minari writes
itself. The directory appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cqlray.data.convert import native_shards
from cqlray.data.episode import Episode
from cqlray.data.formats.hdf5 import load_h5py
from cqlray.data.formats.minari import DATASET_ID, PREFIX, PROVENANCE, local_root
from cqlray.data.formats.minari_spaces import box
from cqlray.data.source import Source
from cqlray.errors import UserError
from cqlray.storage.disk import move
from cqlray.storage.locks import reserved

# The oldest version with this layout, which newer ones accept too.
_MINARI_VERSION = "0.5.0"


def write_minari(source: Source, target: str | Path, environment_spec: str | None = None) -> str:
    """Write all episodes; float32, in their order. Returns the dataset's id.

    Args:
        target: `minari:namespace/name-v0` to put it among Minari's datasets on this machine, or a
            directory to make.
        environment_spec: gymnasium's EnvSpec as its to_json gives it, so that Minari's
            recover_environment can make the environment. Without it the environment's id, time
            limit and arguments are written.

    Raises:
        UserError: the target exists, its name is no Minari id, h5py is missing, or the source
            cannot be read.
    """
    directory, dataset_id = _place(str(target))
    load_h5py()
    with reserved(directory):
        _write_whole(source, directory, dataset_id, environment_spec)
    return dataset_id


def _write_whole(
    source: Source, directory: Path, dataset_id: str, environment_spec: str | None
) -> None:
    temporary = directory.with_name(f".{directory.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "data").mkdir(parents=True)
        episodes, steps = _write_episodes(source, temporary / "data" / "main_data.hdf5")
        if not episodes:
            raise UserError(f"dataset {source.name!r} holds no episode")
        size = round((temporary / "data" / "main_data.hdf5").stat().st_size / 1e6, 1)
        counts = {"total_episodes": episodes, "total_steps": steps, "dataset_size": size}
        metadata = {**_metadata(source, dataset_id, environment_spec), **counts}
        (temporary / "data" / "metadata.json").write_text(json.dumps(metadata))
        move(temporary, directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(target: str) -> tuple[Path, str]:
    """The directory to make and the dataset's id."""
    if target.startswith(PREFIX):
        dataset_id = target.removeprefix(PREFIX)
        if not DATASET_ID.fullmatch(dataset_id):
            raise UserError(f"{target}: a Minari id looks like minari:namespace/name-v0")
        return local_root() / dataset_id, dataset_id
    if "://" in target:
        raise UserError(
            f"{target}: Minari datasets are written to local disk; write there and copy"
        )
    directory = Path(target)
    has_version = directory.name[-1:].isdigit() and "-v" in directory.name
    dataset_id = directory.name if has_version else f"{directory.name}-v0"
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(
            f"{target}: {directory.name!r} is no name for a Minari dataset; letters, digits, - and"
            " _ are"
        )
    return directory, dataset_id


def _write_episodes(source: Source, path: Path) -> tuple[int, int]:
    """Write the file; returns the numbers of episodes and steps."""
    h5py = load_h5py()
    episodes = steps = 0
    with h5py.File(path, "w", track_order=True) as file:
        for shard in native_shards(source):
            for episode in shard.episodes():
                _write_episode(
                    file.create_group(f"episode_{episodes}"), episode, episodes, shard.tier
                )
                episodes += 1
                steps += len(episode)
    return episodes, steps


def _write_episode(group: Any, episode: Episode, number: int, tier: str) -> None:
    group.attrs.update(
        {
            "id": number,
            "seed": episode.seed,
            "total_steps": len(episode),
            "tier": np.bytes_(tier.encode()),
        }
    )
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        values = getattr(episode, name)
        # Minari continues an episode by making these longer, so they must be able to grow.
        group.create_dataset(
            name, data=values, chunks=values.shape, maxshape=(None, *values.shape[1:])
        )


def _metadata(source: Source, dataset_id: str, environment_spec: str | None) -> dict[str, Any]:
    environment = source.environment
    provenance = source.provenance
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": _MINARI_VERSION,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": box(environment["observation_dim"]),
        "action_space": box(
            environment["action_dim"], environment.get("action_low"), environment.get("action_high")
        ),
    }
    spec = environment_spec or _environment_spec(environment)
    if spec is not None:
        metadata["env_spec"] = spec
    not_ours = ("dataset_id", "minari_version")
    for theirs, ours in PROVENANCE.items():
        if theirs not in not_ours and ours in provenance:
            metadata[theirs] = provenance[ours]
    for key in ("author", "author_email"):  # Minari makes sets of them
        if isinstance(metadata.get(key), str):
            metadata[key] = [metadata[key]]
    scores = provenance.get("reference_scores") or provenance.get("reference_returns") or {}
    ends = {
        "ref_min_score": scores.get("random"),
        "ref_max_score": scores.get("expert", scores.get("teacher")),
    }
    if all(isinstance(score, int | float) for score in ends.values()):
        metadata.update(ends)
    return metadata


def _environment_spec(environment: dict[str, Any]) -> str | None:
    """The environment as gymnasium's EnvSpec in JSON, without an entry point."""
    name = (environment.get("id") or "none").rpartition(":")[2]
    if name == "none":
        return None
    known: dict[str, Any] = {"id": name, "entry_point": None, "additional_wrappers": []}
    return json.dumps(
        {
            **known,
            "max_episode_steps": environment.get("max_episode_steps"),
            "kwargs": environment.get("kwargs") or {},
        }
    )
