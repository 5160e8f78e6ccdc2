"""Small sound data in every format that is read, written by the formats' own libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas

from cqlray.data.episode import Shard
from tests.unit.data.test_dataset import write_dataset
from tests.unit.data.test_shards import random_shard

SHARDS = (random_shard([5, 9], 0), random_shard([12], 1))
LOG_COLUMNS = {
    "observation": ["sensor_*"],
    "action": ["torque_*"],
    "reward": "r",
    "episode": "trip",
    "terminated": "stopped",
    "truncated": "timeout",
}


def native(folder: Path) -> None:
    """A cqlray dataset: two shards and their description."""
    write_dataset(folder, list(SHARDS))


def log_frame() -> pandas.DataFrame:
    """Plain log rows, one for each step, columns as LOG_COLUMNS names them."""
    episodes = [episode for shard in SHARDS for episode in shard.episodes()]
    frames = []
    for number, episode in enumerate(episodes):
        frame = pandas.DataFrame({f"sensor_{i}": episode.observations[:-1, i] for i in range(3)})
        frame[["torque_0", "torque_1"]] = episode.actions
        frames.append(
            frame.assign(
                r=episode.rewards,
                trip=number,
                stopped=episode.terminations,
                timeout=episode.truncations,
            )
        )
    return pandas.concat(frames, ignore_index=True)


def log_parquet(folder: Path) -> None:
    """Log rows in two Parquet files, whole episodes in each."""
    frame = log_frame()
    frame[frame.trip < 2].to_parquet(folder / "day-1.parquet", index=False)
    frame[frame.trip >= 2].to_parquet(folder / "day-2.parquet", index=False)


def log_csv(folder: Path) -> None:
    """Log rows in one CSV file."""
    log_frame().to_csv(folder / "log.csv", index=False)


def d4rl(folder: Path) -> None:
    """A D4RL file with next observations, infos and metadata."""
    import h5py

    shard = Shard.of([episode for shard in SHARDS for episode in shard.episodes()], "x")
    following = np.concatenate([episode.observations[1:] for episode in shard.episodes()])
    before = np.concatenate([episode.observations[:-1] for episode in shard.episodes()])
    columns = {
        "observations": before,
        "next_observations": following,
        "actions": shard.actions,
        "rewards": shard.rewards,
        "terminals": shard.terminations,
        "timeouts": shard.truncations,
        "infos/action_log_probs": np.zeros(len(before), np.float32),
    }
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, compression="gzip")
        file["metadata/algorithm"] = b"SAC"


# In a process of its own, as Minari takes its place for data from the environment when it is
# imported.
_MINARI = """
import json, sys
import gymnasium, minari, numpy as np
from minari.data_collector import EpisodeBuffer
from tests.unit.data.sound_files import SHARDS
episodes = [episode for shard in SHARDS for episode in shard.episodes()]
buffers = [
    EpisodeBuffer(id=i, seed=i, observations=e.observations, actions=e.actions,
                  rewards=e.rewards.tolist(), terminations=e.terminations.tolist(),
                  truncations=e.truncations.tolist(), infos={})
    for i, e in enumerate(episodes)
]
box = gymnasium.spaces.Box
minari.create_dataset_from_buffers(
    "sound-v0", buffers, observation_space=box(-np.inf, np.inf, (3,)),
    action_space=box(-2, 2, (2,)),
    author="nobody", author_email="nobody@example.org", algorithm_name="none",
    code_permalink="https://example.org",
    description="made for tests", data_format=sys.argv[1],
)
"""


def minari(folder: Path, data_format: str) -> None:
    """A Minari dataset directory, `data_format` hdf5 or arrow, written by Minari."""
    environment = {
        "MINARI_DATASETS_PATH": str(folder),
        "PYTHONPATH": ".",
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
    }
    command = [sys.executable, "-W", "ignore", "-c", _MINARI, data_format]
    subprocess.run(
        command, check=True, env=environment, cwd=Path(__file__).parents[3], capture_output=True
    )
    (folder / "sound-v0" / "data").rename(folder / "data")
    shutil.rmtree(folder / "sound-v0")
    for extra in folder.glob("*.json"):
        extra.unlink()
    json.loads((folder / "data" / "metadata.json").read_text())
