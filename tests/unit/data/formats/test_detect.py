"""What a name may be, contradictions, and files that are damaged or something else: one line each,
nothing imported.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cqlray.data.convert import write_dataset
from cqlray.data.formats import open_source, write_log, write_minari
from cqlray.data.formats.files import natural_key
from cqlray.data.source import tier_of
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import (
    ENVIRONMENT,
    read,
    require_equal,
    source_of,
    write_d4rl,
)
from tests.unit.data.test_shards import random_shard

SHARD = random_shard([4, 6], 1)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(range(256)) * 8


def refused(data: Any, expected: str, environment: dict[str, Any] | None = None) -> None:
    """Opening or reading it is one line."""
    with pytest.raises(UserError, match=expected) as caught:
        list(open_source(data, environment=environment).pieces())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_native_datasets_and_run_directories(tmp_path: Path) -> None:
    write_dataset(source_of(SHARD), tmp_path / "run" / "dataset")
    for name in (tmp_path / "run", tmp_path / "run" / "dataset", f"file://{tmp_path}/run"):
        source = open_source(str(name))
        assert source.format == "cqlray"
        assert read(source).digest() == SHARD.digest()
        assert source.environment["id"] == "Pendulum-v1"
    require_equal(
        read(open_source(str(tmp_path / "run" / "dataset" / "shard-00000.parquet"))), SHARD
    )
    file = tmp_path / "run" / "dataset" / "shard-00000.parquet"
    file.write_bytes(JPEG)
    refused(str(tmp_path / "run"), r"shard-00000\.parquet: not a readable Parquet file")
    file.unlink()
    refused(
        str(tmp_path / "run"),
        "shard-00000.parquet: not a readable shard of the dataset, though dataset.json names it",
    )
    (tmp_path / "run" / "dataset" / "dataset.json").write_text("{")
    refused(str(tmp_path / "run"), r"dataset\.json: not readable JSON")
    (tmp_path / "run" / "dataset" / "dataset.json").write_text("{}")
    refused(str(tmp_path / "run"), r"dataset\.json: environment, digest, .* missing")


def test_what_is_nothing_of_these(tmp_path: Path) -> None:
    refused(
        "no/such/thing",
        r"no such file or directory; a dataset is a cqlray dataset or run directory, minari:ID",
    )
    refused(
        "minari:no-such/thing-v0", r"is not in .*; get it with: minari download no-such/thing-v0"
    )
    refused("minari:../../etc/passwd", "a Minari id looks like")
    refused("ftp://x/y", "cannot be reached")
    refused(17, "dataset is a int; it should be a path")
    refused(str(tmp_path), "is an empty directory")
    (tmp_path / "notes.txt").write_text("hello")
    refused(str(tmp_path), "is of no known format")
    refused(str(tmp_path / "notes.txt"), "is of no known format")
    (tmp_path / "a.csv").write_text("observation,action,reward,episode\n1,2,3,4\n")
    (tmp_path / "a.parquet").write_bytes(b"")
    refused(str(tmp_path), "holds Parquet and CSV files")
    write_d4rl(tmp_path / "b.hdf5", SHARD, True)
    refused(str(tmp_path), r"is a directory of HDF5 files; name one of them, such as .*b\.hdf5")


def test_formats_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    write_log([SHARD], tmp_path / "x.parquet")
    write_d4rl(tmp_path / "x.hdf5", SHARD, True)
    for suffix in ("parquet", "hdf5"):
        (tmp_path / f"x.{suffix}").rename(tmp_path / f"x-{suffix}")
        require_equal(read(open_source(str(tmp_path / f"x-{suffix}"))), SHARD)
    (tmp_path / "x-hdf5").rename(tmp_path / "walker2d_medium_replay-v2.hdf5")
    assert (
        read(open_source(f"d4rl:{tmp_path}/walker2d_medium_replay-v2.hdf5")).tier == "medium-replay"
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "hdf5", "h5", "csv.gz"])
def test_files_that_are_something_else(tmp_path: Path, suffix: str) -> None:
    for content in (
        JPEG,
        b"",
        b"\n\n\n",
        b"PAR1",
        b"\x89HDF\r\n\x1a\n" + JPEG,
        pickle.dumps({"observations": 1}),
    ):
        (tmp_path / f"x.{suffix}").write_bytes(content)
        refused(str(tmp_path / f"x.{suffix}"), rf"x\.{suffix}")


def test_truncated_files(tmp_path: Path) -> None:
    big = random_shard([500] * 4)
    write_log([big], tmp_path / "x.parquet")
    write_d4rl(tmp_path / "x.hdf5", big, True)
    write_minari(source_of(big), tmp_path / "made-v0")
    for name in ("x.parquet", "x.hdf5", "made-v0/data/main_data.hdf5"):
        data = (tmp_path / name).read_bytes()
        for share in (0.01, 0.3, 0.6, 0.99):
            (tmp_path / name).write_bytes(data[: int(len(data) * share)])
            refused(str(tmp_path / name.partition("/")[0]), f"{name}: not a readable")


def rewrite(directory: Path, **changed: Any) -> None:
    """Change keys of Minari's metadata.json; None takes one out."""
    file = directory / "data" / "metadata.json"
    metadata = {**json.loads(file.read_text()), **changed}
    file.write_text(
        json.dumps({key: value for key, value in metadata.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"observation_space": None}, "no observation_space"),
        (
            {"observation_space": "os.system('x')"},
            "observation_space: not a space as Minari writes it",
        ),
        (
            {"observation_space": json.dumps({"type": "Sequence"})},
            "Sequence spaces are not supported",
        ),
        (
            {
                "observation_space": json.dumps(
                    {"type": "Box", "shape": [64, 64, 3], "dtype": "uint8"}
                )
            },
            r"images, \(64, 64, 3\) of uint8, are not supported yet",
        ),
        (
            {"action_space": json.dumps({"type": "Discrete", "n": 3, "start": 0})},
            "actions are a Discrete; cqlray needs a one-dim",
        ),
        (
            {"action_space": json.dumps({"type": "Box", "shape": [2], "dtype": "float32"})},
            "action_space: not a readable",
        ),
        (
            {"data_format": "pickle"},
            "data_format is 'pickle'; it should be one of hdf5, arrow, parquet",
        ),
        ({"env_spec": "{"}, "env_spec: not a readable environment"),
        ({"total_episodes": 3}, "total_episodes is 3, but there are 2"),
    ],
)
def test_minari_metadata_that_is_wrong(
    tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    write_minari(source_of(SHARD), tmp_path / "made-v0")
    rewrite(tmp_path / "made-v0", **changed)
    refused(str(tmp_path / "made-v0"), expected)


def test_minari_episodes_that_are_wrong(tmp_path: Path) -> None:
    write_minari(source_of(SHARD), tmp_path / "made-v0")
    with h5py.File(tmp_path / "made-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/actions"].resize(3, axis=0)
    refused(
        str(tmp_path / "made-v0"),
        r"episode_1: 3 actions for 6 rewards; there should be one for each step",
    )
    with h5py.File(tmp_path / "made-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
    refused(str(tmp_path / "made-v0"), r"main_data\.hdf5: not a readable HDF5 file")
    refused(
        str(tmp_path / "made-v0/data/main_data.hdf5"),
        "is the data of a Minari dataset; name its directory",
    )


def test_nothing_that_data_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    write_minari(source_of(SHARD), tmp_path / "made-v0")
    spec = {
        "id": "trap:Trap-v0",
        "entry_point": "trap:Trap",
        "kwargs": {},
        "additional_wrappers": [],
    }
    rewrite(tmp_path / "made-v0", env_spec=json.dumps(spec))
    source = open_source(str(tmp_path / "made-v0"))
    assert read(source).num_episodes == 2
    assert source.environment["id"] is None
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rewards": np.zeros(9)}, r"observations: 10 rows; rewards has 9"),
        ({"terminals": np.full(10, 0.5)}, r"row 0, terminals: 0\.5; it should be true or false"),
        (
            {"observations": np.zeros((10, 8, 8, 3), np.uint8)},
            r"observations: shape \(10, 8, 8, 3\) of uint8; .*no images",
        ),
        (
            {"rewards": np.zeros((10, 2))},
            r"rewards: shape \(10, 2\) of float64; it should be one number a row",
        ),
        (
            {"next_observations": np.zeros((10, 4))},
            r"next_observations: shape \(10, 4\); observations have \(10, 3\)",
        ),
        (
            {"actions": None},
            r"no actions; a D4RL file has observations, actions, rewards, terminals",
        ),
        (
            {"actions": np.array([b"left"] * 10)},
            r"actions: shape \(10,\) of \|S4; it should be flat vectors",
        ),
    ],
)
def test_d4rl_files_that_are_wrong(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    write_d4rl(tmp_path / "x.hdf5", SHARD, True)
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        for key, values in changed.items():
            del file[key]
            if values is not None:
                file[key] = values
    refused(str(tmp_path / "x.hdf5"), expected)


def test_environment_fills_in_and_must_not_contradict(tmp_path: Path) -> None:
    write_log([SHARD], tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), environment=ENVIRONMENT)
    assert source.environment == {**ENVIRONMENT, "max_episode_steps": None, "kwargs": {}}
    refused(
        str(tmp_path / "x.parquet"),
        "its observation_dim is 3, but 4 was given",
        {"observation_dim": 4},
    )
    write_minari(source_of(SHARD), tmp_path / "made-v0")
    made = str(tmp_path / "made-v0")
    assert open_source(made, environment={"action_low": [-2, -2]}).environment["action_low"] == [
        -2.0,
        -2.0,
    ]
    refused(
        made,
        r"its action_low is \[-2\.0, -2\.0\], but \[-1, -1\] was given",
        {"action_low": [-1, -1]},
    )
    refused(made, "its id is Pendulum-v1, but Hopper-v5 was given", {"id": "Hopper-v5"})


def test_missing_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_d4rl(tmp_path / "x.hdf5", SHARD, True)
    write_minari(source_of(SHARD), tmp_path / "made-v0")
    monkeypatch.setitem(sys.modules, "h5py", None)
    for name in ("x.hdf5", "made-v0"):
        refused(str(tmp_path / name), r'pip install "cqlray\[minari\]"')


def test_names() -> None:
    assert sorted(["s_10", "s_2", "s", "s_1b"], key=natural_key) == ["s", "s_1b", "s_2", "s_10"]
    assert tier_of("hopper_medium_expert-v2.hdf5") == "medium-expert"
    assert tier_of("trips") == "logged"
