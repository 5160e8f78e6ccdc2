"""From cqlray to another format and back, equal to the bit, over random episode structures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.checks.validation import validate
from cqlray.data.convert import native_shards, write_dataset
from cqlray.data.episode import Episode, Shard
from cqlray.data.formats import ColumnNames, open_source, write_log, write_minari
from cqlray.data.formats.log_writer import log_table
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError
from tests.unit.data.test_shards import random_shard

ENVIRONMENT = {
    "id": "Pendulum-v1",
    "observation_dim": 3,
    "action_dim": 2,
    "action_low": [-2.0, -2.0],
    "action_high": [2.0, 2.0],
}
SETTINGS = {"max_examples": 25, "deadline": None}
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def source_of(*shards: Shard) -> Source:
    return Source("made", "cqlray", ENVIRONMENT, lambda: (Piece(shard, "made") for shard in shards))


def read(source: Source) -> Shard:
    """All pieces as one shard."""
    pieces = [piece.shard for piece in source.pieces()]
    assert all(piece.tier == pieces[0].tier for piece in pieces)
    return Shard.joined(pieces)


def require_equal(back: Shard, shard: Shard) -> None:
    """Observations, actions, rewards, flags and lengths to the bit."""
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "lengths"):
        one, other = getattr(back, name), getattr(shard, name)
        assert one.dtype == other.dtype, name
        assert one.shape == other.shape, name
        assert one.tobytes() == other.tobytes(), name


def any_floats(shard: Shard, seed: int) -> Shard:
    """The same structure with every kind of finite float32 in it: tiny, huge, -0.0."""
    rng = np.random.default_rng(seed)

    def bits(size: int) -> np.ndarray:
        values = rng.integers(0, 2**32, size, np.uint32).view(np.float32)
        return np.where(np.isfinite(values), values, np.float32(-0.0)).astype(np.float32)

    arrays = {
        name: bits(getattr(shard, name).size).reshape(getattr(shard, name).shape)
        for name in ("observations", "actions")
    }
    return Shard(**{**vars(shard), **arrays, "rewards": bits(shard.num_transitions)})


@settings(**SETTINGS)
@given(LENGTHS, st.integers(0, 1000), st.sampled_from([".parquet", ".csv"]), st.integers(1, 3))
def test_log_round_trip(lengths: list[int], seed: int, suffix: str, copies: int) -> None:
    shards = [any_floats(random_shard(lengths, seed), seed + i) for i in range(copies)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log{suffix}"
        assert write_log(shards, path) == copies * (sum(lengths) + len(lengths))
        require_equal(read(open_source(str(path))), Shard.joined(shards))
        assert [file.name for file in Path(folder).iterdir()] == [path.name]


def test_a_frame_of_log_rows_is_the_log() -> None:
    shard = random_shard([3, 1, 7])
    require_equal(read(open_source(log_table(shard).to_pandas())), shard)


@settings(**{**SETTINGS, "max_examples": 10})
@given(LENGTHS, st.integers(0, 1000))
def test_minari_round_trip_keeps_seeds_and_tiers(lengths: list[int], seed: int) -> None:
    shard = any_floats(random_shard(lengths, seed), seed)
    with tempfile.TemporaryDirectory() as folder:
        assert write_minari(source_of(shard), f"{folder}/made") == "made-v0"
        back = open_source(f"{folder}/made")
        assert read(back).digest() == shard.digest()
        assert back.environment == {**ENVIRONMENT, "max_episode_steps": None, "kwargs": {}}


@settings(**{**SETTINGS, "max_examples": 10})
@given(LENGTHS, st.integers(0, 1000), st.booleans())
def test_d4rl_to_cqlray_to_minari(lengths: list[int], seed: int, has_next: bool) -> None:
    shard = random_shard(lengths, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_d4rl(folder / "made.hdf5", shard, has_next)
        first = open_source(str(folder / "made.hdf5"))
        if not any(True for _ in first.pieces()):
            return
        write_dataset(first, folder / "native")
        native = open_source(str(folder / "native"))
        write_minari(native, folder / "made-v3")
        back = read(open_source(str(folder / "made-v3")))
        require_equal(back, Shard.joined(list(native_shards(first))))
        if has_next:
            require_equal(back, shard)


def write_d4rl(
    path: Path, shard: Shard, has_next: bool, leave_out: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The shard as d4rl's recorders write one: a row for each step. Returns the arrays."""
    arrays = {
        "observations": np.concatenate([episode.observations[:-1] for episode in shard.episodes()]),
        "next_observations": np.concatenate(
            [episode.observations[1:] for episode in shard.episodes()]
        ),
        "actions": shard.actions,
        "rewards": shard.rewards,
        "terminals": shard.terminations,
        "timeouts": shard.truncations,
    }
    for key in (*leave_out, *(() if has_next else ("next_observations",))):
        del arrays[key]
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
        file["infos/qpos"] = np.zeros((len(shard.rewards), 2))
    return arrays


def qlearning_transitions(arrays: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rule of d4rl.qlearning_dataset, row by row."""
    found = []
    for i in range(len(arrays["rewards"]) - 1):
        if not arrays["timeouts"][i]:
            o, a, r = arrays["observations"], arrays["actions"], arrays["rewards"]
            found.append(
                (
                    o[i].tobytes(),
                    a[i].tobytes(),
                    float(r[i]),
                    o[i + 1].tobytes(),
                    bool(arrays["terminals"][i]),
                )
            )
    return found


@settings(**SETTINGS)
@given(LENGTHS, st.integers(0, 1000), st.booleans())
def test_d4rl_transitions_are_those_of_its_own_rule(
    lengths: list[int], seed: int, stopped: bool
) -> None:
    shard = random_shard(lengths, seed)
    if stopped:  # the recording was stopped within the last episode
        flags = {name: getattr(shard, name).copy() for name in ("terminations", "truncations")}
        for values in flags.values():
            values[-1] = False
        shard = Shard(**{**vars(shard), **flags})
    with tempfile.TemporaryDirectory() as folder:
        arrays = write_d4rl(Path(folder) / "x.hdf5", shard, False)
        found = []
        for piece in open_source(f"{folder}/x.hdf5").pieces():
            for e in piece.shard.episodes():
                assert len(e) > 0
                assert not (e.terminations | e.truncations)[:-1].any()
                o = e.observations
                for i in range(len(e)):
                    step = (
                        o[i].tobytes(),
                        e.actions[i].tobytes(),
                        float(e.rewards[i]),
                        o[i + 1].tobytes(),
                    )
                    found.append((*step, bool(e.terminations[i])))
            assert piece.rows is not None
            np.testing.assert_array_equal(arrays["rewards"][piece.rows], piece.shard.rewards)
        assert found == qlearning_transitions(arrays)


def test_d4rl_files_without_timeouts(tmp_path: Path) -> None:
    shard = random_shard([5, 5, 5, 3], 3)
    chain = {"terminations": np.zeros(18, bool), "truncations": np.arange(1, 19) % 5 == 0}
    shard = Shard(**{**vars(shard), **chain})
    write_d4rl(tmp_path / "next.hdf5", shard, True, ("timeouts",))
    require_equal(read(open_source(str(tmp_path / "next.hdf5"))), shard)
    write_d4rl(tmp_path / "none.hdf5", shard, False, ("timeouts",))
    with pytest.raises(UserError, match="neither timeouts nor next_observations"):
        open_source(str(tmp_path / "none.hdf5"))
    limited = read(open_source(str(tmp_path / "none.hdf5"), environment={"max_episode_steps": 5}))
    assert limited.lengths.tolist() == [4, 4, 4, 2]


def test_pieces_hold_about_65536_transitions_and_whole_episodes(tmp_path: Path) -> None:
    lengths = [1000] * 150
    shard = random_shard(lengths)
    write_log([shard], tmp_path / "log.parquet")
    write_d4rl(tmp_path / "d4rl.hdf5", shard, True)
    for name in ("log.parquet", "d4rl.hdf5"):
        source = open_source(str(tmp_path / name))
        sizes = [piece.shard.num_transitions for piece in source.pieces()]
        assert len(sizes) == 3
        assert max(sizes) < 68_000
        require_equal(read(source), shard)


def test_minari_opens_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari

    shard = random_shard([4, 9, 1], 5)
    spec = gymnasium.spec("Pendulum-v1").to_json()
    said = {
        "author": "a",
        "algorithm": "SAC",
        "reference_returns": {"random": -1200.0, "teacher": -150.0},
    }
    made = Source("made", "cqlray", ENVIRONMENT, lambda: iter([Piece(shard, "x")]), said)
    assert write_minari(made, "minari:cqlray/made-v2", spec) == "cqlray/made-v2"
    dataset = minari.load_dataset("cqlray/made-v2")
    assert dataset.total_episodes == 3
    assert dataset.total_steps == 14
    assert dataset.recover_environment().spec.id == "Pendulum-v1"
    assert minari.get_normalized_score(dataset, np.array([-150.0])) == pytest.approx(1.0)
    assert "cqlray/made-v2" in minari.list_local_datasets()
    for theirs, ours in zip(dataset.iterate_episodes(), shard.episodes(), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert getattr(theirs, name).tobytes() == getattr(ours, name).tobytes(), name
            assert getattr(theirs, name).dtype == getattr(ours, name).dtype
    assert [
        row["seed"] for row in dataset.storage.get_episode_metadata(range(3))
    ] == shard.seeds.tolist()
    back = open_source("minari:cqlray/made-v2")
    assert read(back).digest() == shard.digest()
    assert back.environment["id"] == "Pendulum-v1"
    assert back.environment["max_episode_steps"] == 200
    assert back.provenance["reference_scores"] == {"random": -1200.0, "expert": -150.0}
    assert validate(back, 8).num_errors == 0


def test_minari_opens_what_was_written_without_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari

    environment = {
        **ENVIRONMENT,
        "id": "nowhere.to_be_found:Thing-v0",
        "action_low": None,
        "action_high": None,
    }
    write_minari(
        Source("x", "cqlray", environment, lambda: iter([Piece(random_shard([3]), "x")])),
        tmp_path / "thing-v0",
    )
    dataset = minari.load_dataset("thing-v0")
    assert dataset.env_spec.id == "Thing-v0"
    assert dataset.action_space == gymnasium.spaces.Box(-np.inf, np.inf, (2,))


def test_log_columns_by_pandas(tmp_path: Path) -> None:
    """The log is a table that pandas understands: closing rows drop out by their empty reward."""
    shard = random_shard([2, 3])
    write_log([shard], tmp_path / "log.csv")
    frame = pandas.read_csv(tmp_path / "log.csv")
    columns = [*(f"observation_{i}" for i in range(3)), "action_0", "action_1"]
    assert list(frame) == [*columns, "reward", "episode", "step", "terminated", "truncated"]
    assert frame.step.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert len(frame.dropna(subset="reward")) == 5
    np.testing.assert_array_equal(frame.groupby("episode").tail(1).action_0.isna(), True)


def test_writers_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    shard = random_shard([2])
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "there-v0").mkdir()
    empty = Source("none", "cqlray", ENVIRONMENT, lambda: iter([]))
    cases: list[tuple[Any, str]] = [
        (lambda: write_log([shard], tmp_path / "x.json"), r"ends in \.parquet or \.csv"),
        (lambda: write_log([shard], tmp_path / "there.csv"), "exists already"),
        (lambda: write_log([shard], "s3://bucket/x.csv"), "local disk"),
        (lambda: write_log([], tmp_path / "x.csv"), "no episode"),
        (lambda: write_log([shard], "/proc/none/x.csv"), "cannot be written"),
        (lambda: write_minari(source_of(shard), tmp_path / "there-v0"), "exists already"),
        (lambda: write_minari(source_of(shard), "minari:not an id"), "minari:namespace/name-v0"),
        (lambda: write_minari(source_of(shard), tmp_path / "a b"), "no name for a Minari dataset"),
        (lambda: write_minari(source_of(shard), "gs://x/y-v0"), "local disk"),
        (lambda: write_minari(empty, tmp_path / "x-v0"), "holds no episode"),
        (lambda: write_minari(source_of(shard), "/proc/none/x-v0"), "cannot be written"),
    ]
    for call, expected in cases:
        with pytest.raises(UserError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there-v0", "there.csv"]


def test_names_can_be_written_as_they_are_read() -> None:
    shard = Shard.of(
        [
            Episode(
                *(np.zeros(s, np.float32) for s in ((3, 1), (2, 1), (2,))),
                *np.eye(2, dtype=bool)[:, ::-1],
            )
        ],
        "x",
    )
    frame = log_table(shard).to_pandas().rename(columns={"action_0": "torque"})
    assert read(open_source(frame, ColumnNames(action=("torque",)))).num_transitions == 2
