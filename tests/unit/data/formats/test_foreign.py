"""Data made by somebody else's code: Minari's DataCollector, stable-baselines3's replay buffer,
pandas, RLlib's layout; S3.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import gymnasium
import h5py
import msgpack
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from moto.server import ThreadedMotoServer
from stable_baselines3.common.buffers import ReplayBuffer

from cqlray.data.checks.validation import validate
from cqlray.data.convert import write_dataset
from cqlray.data.formats import ColumnNames, open_source, write_log, write_minari
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import read, require_equal, source_of, write_d4rl
from tests.unit.data.test_shards import random_shard


class Nested(gymnasium.Env[Any, Any]):
    """Observations of every kind that is flattened."""

    observation_space = spaces.Dict(
        {
            "z": spaces.Box(-1, 1, (2, 2)),
            "a": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiBinary(2))),
            "m": spaces.MultiDiscrete([2, 3]),
        }
    )
    action_space = spaces.Box(-2, 2, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(action[0]), self.steps == 4, False, {}


def collected(
    env: gymnasium.Env[Any, Any], data_format: str, episodes: int
) -> tuple[Any, list[tuple[Any, ...]]]:
    """A Minari dataset made by its DataCollector, and what the environment really returned."""
    import minari

    collector = minari.DataCollector(env, data_format=data_format)
    collector.action_space.seed(1)
    seen = []
    for episode in range(episodes):
        observations, done = [collector.reset(seed=40 + episode)[0]], False
        actions, rewards = [], []
        while not done:
            actions.append(collector.action_space.sample())
            observation, reward, terminated, truncated, _ = collector.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            done = terminated or truncated
        seen.append(
            (observations, np.array(actions), np.array(rewards, np.float32), terminated, truncated)
        )
    made = collector.create_dataset(
        f"made/by-{data_format}-random-v0",
        algorithm_name="random",
        author="nobody",
        author_email="nobody@example.org",
        code_permalink="https://example.org",
        description="made for tests",
    )
    collector.close()
    return made, seen


def tree_map(change: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """What Minari's DataCollector asks jax for, a package of 100 MB that is not needed else."""
    if isinstance(tree, dict):
        return {key: tree_map(change, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(tree_map(change, *parts) for parts in zip(tree, *others, strict=True))
    return change(tree, *others)


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    tree_util = types.SimpleNamespace(tree_map=tree_map)
    monkeypatch.setitem(sys.modules, "jax", cast(Any, types.SimpleNamespace(tree_util=tree_util)))
    monkeypatch.setitem(sys.modules, "jax.tree_util", cast(Any, tree_util))
    return tmp_path


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("nested", [False, True])
def test_minari_data_collector(minari_root: Path, data_format: str, nested: bool) -> None:
    env = Nested() if nested else gymnasium.make("Pendulum-v1", max_episode_steps=30)
    if nested:
        env.spec = gymnasium.envs.registration.EnvSpec(
            "Nested-v0", entry_point="no_such_module:Nested"
        )
    made, seen = collected(env, data_format, 12)
    source = open_source(f"minari:{made.spec.dataset_id}")
    shard = read(source)
    for episode, (observations, actions, rewards, terminated, truncated) in zip(
        shard.episodes(), seen, strict=True
    ):
        flat = np.array(
            [spaces.flatten(env.observation_space, o) for o in observations], np.float32
        )
        np.testing.assert_array_equal(episode.observations, flat)
        np.testing.assert_array_equal(episode.actions, actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        assert (episode.terminations[-1], episode.truncations[-1]) == (terminated, truncated)
    assert shard.seeds.tolist() == list(range(40, 52))
    assert shard.tier == "random"
    expected = {
        "id": "Nested-v0" if nested else "Pendulum-v1",
        "action_low": [-2.0],
        "action_high": [2.0],
    }
    expected |= {
        "max_episode_steps": None if nested else 30,
        "observation_dim": 14 if nested else 3,
        "action_dim": 1,
    }
    assert {key: source.environment[key] for key in expected} == expected
    assert source.provenance["algorithm"] == "random"
    assert validate(source, 8).errors == []
    directory = minari_root / made.spec.dataset_id
    require_equal(read(open_source(str(directory))), shard)
    require_equal(read(open_source(f"file://{directory}")), shard)


def replay_buffer(steps: int) -> tuple[ReplayBuffer, int]:
    """Pendulum's transitions in stable-baselines3's buffer, and how many episodes they are."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=25)
    buffer = ReplayBuffer(
        steps,
        env.observation_space,
        env.action_space,
        device="cpu",
        handle_timeout_termination=True,
    )
    observation, episodes = env.reset(seed=3)[0], 0
    env.action_space.seed(3)
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        infos = [{"TimeLimit.truncated": truncated}]
        buffer.add(
            observation,
            following,
            action,
            np.array(reward),
            np.array(terminated or truncated),
            infos,
        )
        observation = following
        if terminated or truncated:
            observation, episodes = env.reset()[0], episodes + 1
    return buffer, episodes


def replay_buffer_file(path: Path) -> tuple[ReplayBuffer, int]:
    """The buffer as an HDF5 file.

    Its arrays have an axis for environments, and flags are float32: [steps, 1, dim].
    """
    buffer, episodes = replay_buffer(200)
    arrays = {
        "observations": buffer.observations[:, 0],
        "next_observations": buffer.next_observations[:, 0],
        "actions": buffer.actions[:, 0],
        "rewards": buffer.rewards,
        "terminals": buffer.dones * (1 - buffer.timeouts),
        "timeouts": buffer.timeouts,
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
    return buffer, episodes


def test_replay_buffer_of_stable_baselines3_as_hdf5(tmp_path: Path) -> None:
    buffer, episodes = replay_buffer_file(tmp_path / "buffer.h5")
    source = open_source(
        str(tmp_path / "buffer.h5"), environment={"action_low": [-2], "action_high": [2]}
    )
    shard = read(source)
    assert (shard.num_episodes, shard.num_transitions) == (episodes, 200)
    assert shard.truncations.sum() == episodes
    np.testing.assert_array_equal(shard.observations[25], buffer.next_observations[24, 0])
    assert validate(source, 32).num_errors == 0


def test_replay_buffer_of_stable_baselines3_as_parquet(tmp_path: Path) -> None:
    """Vectors in list columns, as pandas writes them; the next observations stand beside."""
    buffer, episodes = replay_buffer(200)
    ends = buffer.dones[:, 0].astype(bool)
    frame = pandas.DataFrame(
        {
            "obs": list(buffer.observations[:, 0].astype(np.float64)),
            "next_obs": list(buffer.next_observations[:, 0]),
            "act": buffer.actions[:, 0, 0],
            "rew": buffer.rewards[:, 0],
            "timeout": buffer.timeouts[:, 0],
            "episode": [f"run-{n}" for n in np.cumsum(ends) - ends],
        }
    )
    frame.to_parquet(tmp_path / "buffer.parquet")
    names = ColumnNames(
        ("obs",), ("act",), "rew", truncated="timeout", next_observation=("next_obs",)
    )
    for data in (str(tmp_path / "buffer.parquet"), frame):
        source = open_source(data, names, {"action_low": [-2], "action_high": [2]})
        shard = read(source)
        assert (shard.num_episodes, shard.num_transitions) == (episodes, 200)
        assert shard.truncations.sum() == episodes
        np.testing.assert_array_equal(shard.actions, buffer.actions[:, 0])
        np.testing.assert_array_equal(shard.observations[-1], buffer.next_observations[-1, 0])
        assert validate(source, 32).num_errors == 0


# S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Any, str]]:
    """A client of a bucket, and what its URIs end with."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    port = server._server.port
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    client.create_bucket(Bucket="data")
    yield client, f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_every_format_is_read_from_s3(
    tmp_path: Path, bucket: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, options = bucket
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    shard = random_shard([5, 9, 2], 8)
    write_log([shard], tmp_path / "log.parquet")
    write_log([shard], tmp_path / "log.csv")
    write_d4rl(tmp_path / "d4rl.hdf5", shard, True)
    write_minari(source_of(shard), tmp_path / "made-v0")
    write_dataset(source_of(shard), tmp_path / "native")
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        client.upload_file(str(file), "data", f"below/{file.relative_to(tmp_path)}")
    for name in ("log.parquet", "log.csv", "d4rl.hdf5", "made-v0", "native"):
        source = open_source(f"s3://data/below/{name}{options}")
        require_equal(read(source), shard)
        assert next(source.pieces()).file.startswith(f"s3://data/below/{name}")
    for missing in ("below/none.csv", "none"):
        with pytest.raises(UserError, match="no such file or directory"):
            open_source(f"s3://data/{missing}{options}")


# RLlib, whose own code needs packages that are not here: its layout by hand


def packed_array(array: np.ndarray) -> dict[bytes, Any]:
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def packed_state(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ends: tuple[bool, bool]
) -> bytes:
    """SingleAgentEpisode.get_state() by msgpack_numpy; one step is looked back on."""

    def buffer(values: list[Any]) -> dict[str, Any]:
        return {"data": values, "lookback": 1, "finalized": False, "space": None}

    number = {b"nd": False, b"type": "<f8", b"data": np.float64(9).tobytes()}
    state = {
        "id_": "abc",
        "observations": buffer([packed_array(row) for row in (observations[0], *observations)]),
        "actions": buffer([packed_array(row) for row in (actions[0], *actions)]),
        "rewards": buffer([number, *rewards.tolist()]),
        "infos": buffer([{}, {"anything": b"at all"}]),
        "is_terminated": ends[0],
        "is_truncated": ends[1],
        "t_started": 1,
    }
    return bytes(msgpack.packb(state))


def test_rllib_episodes(tmp_path: Path) -> None:
    shard = random_shard([4, 1, 6], 2)
    for number, e in enumerate(shard.episodes()):
        ends = (bool(e.terminations[-1]), bool(e.truncations[-1]))
        folder = tmp_path / "pendulum-v1" / f"run-000001-{number}"
        folder.mkdir(parents=True)
        table = pa.table({"item": [packed_state(e.observations, e.actions, e.rewards, ends)]})
        pq.write_table(table, folder / "0_000000_000000.parquet")
    source = open_source(str(tmp_path))
    assert source.format == "rllib"
    require_equal(read(source), shard)
    pq.write_table(
        pa.table({"item": [b"\x80\x04no msgpack"]}), tmp_path / "pendulum-v1" / "a.parquet"
    )
    with pytest.raises(UserError, match=r"row 0: not a readable RLlib episode"):
        open_source(str(tmp_path))


def rllib_rows(shard: Any) -> dict[str, Any]:
    episodes = list(shard.episodes())
    return {
        "eps_id": np.repeat([f"e{i}" for i in range(len(episodes))], shard.lengths),
        "obs": list(np.concatenate([e.observations[:-1] for e in episodes])),
        "actions": list(shard.actions),
        "rewards": shard.rewards,
        "new_obs": list(np.concatenate([e.observations[1:] for e in episodes])),
        "terminateds": shard.terminations,
        "truncateds": shard.truncations,
    }


def test_rllib_rows(tmp_path: Path) -> None:
    shard = random_shard([4, 1, 6], 2)
    rows = rllib_rows(shard)
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = open_source(str(tmp_path))
    assert source.format == "rllib"
    require_equal(read(source), shard)
    assert validate(source, 8).codes.isdisjoint({"next_observation", "shape"})
    pq.write_table(pa.table({**rows, "obs": ["BCJNGGhAp"] * 11}), tmp_path / "rows.parquet")
    with pytest.raises(
        UserError, match=r"RLlib pickled the columns obs, .*output_compress_columns=\[\]"
    ):
        open_source(str(tmp_path))
