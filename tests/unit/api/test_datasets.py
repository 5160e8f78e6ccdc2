"""load_dataset and the `cqlray dataset` commands, as users call them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import cqlray
from cqlray.api import checks
from cqlray.cli import main as cli
from cqlray.cli.flags import parse_config
from cqlray.config.schema import ColumnsConfig, EnvConfig
from cqlray.data import dataset as native
from cqlray.data.dataset import absolute_name
from cqlray.envs import recorded
from cqlray.envs.make import describe_env
from cqlray.errors import UserError
from cqlray.runtime.progress import ProgressDisplay

TOY = "tests.toy_envs:Point-v0"


def frame(episodes: int = 12, steps: int = 8, seed: int = 0) -> pd.DataFrame:
    """A log of a made-up plant: two sensors, one torque, the last row of each trip its final
    observation.
    """
    rng = np.random.default_rng(seed)
    rows = episodes * (steps + 1)
    last = np.arange(rows) % (steps + 1) == steps
    log = pd.DataFrame(
        {
            "trip": np.repeat(np.arange(episodes), steps + 1),
            "sensor_1": rng.normal(size=rows).astype(np.float32),
            "sensor_10": rng.normal(size=rows).astype(np.float32),
            "torque": rng.uniform(-1, 1, rows).astype(np.float32),
            "r": rng.normal(size=rows).astype(np.float32),
            "crashed": (
                (np.arange(rows) % (steps + 1) == steps - 1)
                & (np.repeat(np.arange(episodes), steps + 1) % 2 == 0)
            ),
        }
    )
    log.loc[last, ["torque", "r"]] = np.nan
    return log


COLUMNS = {
    "observation": "sensor_*",
    "action": "torque",
    "reward": "r",
    "episode": "trip",
    "terminated": "crashed",
}
FLAGS = [
    *("--columns.observation", "sensor_*", "--columns.action", "torque", "--columns.reward", "r"),
    *("--columns.episode", "trip", "--columns.terminated", "crashed"),
]
BOUNDS = ["--columns.action-low", "-1", "--columns.action-high", "1"]


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """A command that ends with one line on stderr and exit status 2."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == "", captured
    return captured.err.removeprefix("cqlray: ").strip()


# From Python


def test_a_data_frame_is_a_dataset() -> None:
    log = frame()
    data = cqlray.load_dataset(log, COLUMNS | {"action_low": -1, "action_high": [1.0]})
    assert data.environment["action_low"] == [-1] and data.environment["observation_dim"] == 2
    first = next(data.episodes())
    np.testing.assert_array_equal(first.observations, log[["sensor_1", "sensor_10"]].to_numpy()[:9])
    np.testing.assert_array_equal(first.rewards, log["r"].to_numpy()[:8])
    assert first.terminations.tolist() == [False] * 7 + [True]
    assert data.description["episodes"] == 12 and data.description["transitions"] == 96
    assert [finding.code for finding in data.validate(32).errors] == []


def test_saved_it_is_a_native_dataset(tmp_path: Path) -> None:
    data = cqlray.load_dataset(frame(), COLUMNS)
    description = data.save(tmp_path / "data")
    again = cqlray.load_dataset(tmp_path / "data")
    assert again.description["digest"] == description["digest"] == data.description["digest"]
    data.save(tmp_path / "data", append=True)
    assert native.read_description(tmp_path / "data")["episodes"] == 24
    mended, lines = cqlray.load_dataset(tmp_path / "data").fixed()
    assert lines == ["left out 12 episodes equal to an earlier one"]
    assert mended.description["episodes"] == 12


NAMED = {
    "observation": ["sensor_10", "sensor_1"],
    "action": ["torque"],
    "reward": "r",
    "episode": "trip",
    "terminated": "crashed",
}
IN_WORDS = (
    "observation sensor_10, sensor_1; action torque; reward r; episode trip; terminated crashed"
)


def swapped(**changes: int) -> pd.DataFrame:
    """The same log from a recorder that has the sensors in another order."""
    log = frame(**changes)
    return log[
        ["sensor_10", "trip", "sensor_1", *(name for name in log if name[0] not in "st")]
    ].assign(torque=log["torque"])


def test_dataset_json_names_the_columns_in_their_order(tmp_path: Path) -> None:
    log = swapped()
    cqlray.load_dataset(log, COLUMNS).save(tmp_path / "data")
    written = native.read_description(tmp_path / "data")
    assert written["columns"] == written["provenance"][0]["columns"] == NAMED
    again = cqlray.load_dataset(tmp_path / "data")
    np.testing.assert_array_equal(
        next(again.episodes()).observations, log[["sensor_10", "sensor_1"]].to_numpy()[:9]
    )
    again.save(tmp_path / "copy")
    assert (
        native.read_description(tmp_path / "copy")["columns"]
        == again.description["columns"]
        == NAMED
    )
    # What was written before columns were named stays readable; what is no name is not.
    file = tmp_path / "data" / "dataset.json"
    file.write_text(json.dumps({key: value for key, value in written.items() if key != "columns"}))
    assert cqlray.load_dataset(tmp_path / "data").source.columns == {}
    for wrong in ("sensor_1", {"observation": [1]}, {"reward": None}):
        file.write_text(json.dumps(written | {"columns": wrong}))
        with pytest.raises(UserError, match=r"dataset.json: columns missing or of the wrong type"):
            cqlray.load_dataset(tmp_path / "data")


def test_what_is_appended_has_its_columns_in_the_order_of_what_is_there(tmp_path: Path) -> None:
    cqlray.load_dataset(frame(), COLUMNS).save(tmp_path / "data")
    other = cqlray.load_dataset(swapped(seed=1), COLUMNS)
    with pytest.raises(
        UserError,
        match="has the observation columns in the order sensor_1, sensor_10; dataset 'DataFrame'",
    ):
        other.save(tmp_path / "data", append=True)
    named = COLUMNS | {"observation": ["sensor_1", "sensor_10"]}
    cqlray.load_dataset(swapped(seed=1), named).save(tmp_path / "data", append=True)
    assert native.read_description(tmp_path / "data")["columns"]["observation"] == [
        "sensor_1",
        "sensor_10",
    ]


def test_the_plan_names_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ProgressDisplay, "say", lambda _, line: said.append(line))
    swapped(episodes=40).to_csv(tmp_path / "trips.csv", index=False)
    config, _ = parse_config(["--dataset", str(tmp_path / "trips.csv"), *FLAGS, *BOUNDS], "train")
    checks.environment_of(checks.without_tests(config), ProgressDisplay(quiet=True))
    assert said[0] == f"columns      {IN_WORDS}"


def test_columns_in_the_order_of_the_alphabet_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ProgressDisplay, "say", lambda _, line: said.append(line))
    rng, rows = np.random.default_rng(0), np.arange(400)
    angle = rng.uniform(-3, 3, 400)
    numbers = {"s/omega": rng.uniform(-8, 8, 400), "s/x": np.cos(angle), "s/y": np.sin(angle)}
    flags = {"episode": rows // 40, "stop": False, "cut": rows % 40 == 39}
    values = {"torque": rng.uniform(-2, 2, 400), "gain": rng.normal(size=400)}
    pd.DataFrame({**numbers, **flags, **values}).to_csv(tmp_path / "log.csv", index=False)
    words = "--dataset {} --env Pendulum-v1 --columns.episode episode --columns.action torque"
    words += " --columns.reward gain --columns.terminated stop --columns.truncated cut"
    for columns, expected in (("s/omega s/x s/y", 1), ("s/x s/y s/omega", 0)):
        flags_given = f"{words.format(tmp_path / 'log.csv')} --columns.observation {columns}"
        config, _ = parse_config(flags_given.split(), "train")
        said.clear()
        checks.environment_of(checks.without_tests(config), ProgressDisplay(quiet=True))
        lines = [line for line in said if "dimension 2 fits" in line]
        assert len(lines) == expected, said
        assert all(line.startswith("warning: observation 0 (s/omega) spans") for line in lines)


def test_what_the_data_does_not_say_comes_from_the_environment(tmp_path: Path) -> None:
    spec = describe_env(EnvConfig(TOY))
    rng = np.random.default_rng(0)
    width = spec.observation_dim
    log = pd.DataFrame(
        rng.normal(size=(30, width)).astype(np.float32),
        columns=[f"observation_{i}" for i in range(width)],
    )
    for index in range(spec.action_dim):
        log[f"action_{index}"] = np.float32(0.5)
    log["reward"], log["episode"] = np.float32(1), np.repeat([0, 1, 2], 10)
    data = cqlray.load_dataset(log, env=TOY)
    assert data.environment["id"] == TOY and list(data.environment["action_high"]) == list(
        spec.action_high
    )
    with pytest.raises(
        UserError,
        match=r"does not belong to env.id 'Pendulum-v1': it has observation_dim \d and not 3",
    ):
        cqlray.load_dataset(log.drop(columns="observation_1"), env="Pendulum-v1")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"observaton": "sensor_*"},
            r"unknown key columns.observaton; did you mean columns.observation\?",
        ),
        ({"observation": "sensors_*"}, "no column matches 'sensors_[*]'"),
        ({"action": 3}, r"columns.action\[0\] is 3; it must be text"),
    ],
)
def test_wrong_columns_are_one_line(columns: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cqlray.load_dataset(frame(), COLUMNS | columns).description  # noqa: B018


def test_a_dataset_must_say_its_bounds_to_be_trained_on() -> None:
    source = recorded.open_data(
        frame(), ColumnsConfig(("sensor_*",), ("torque",), "r", "trip"), None
    )
    with pytest.raises(
        UserError, match="does not say the bounds of its actions; name its environment with --env"
    ):
        recorded.spec_of(source)


@pytest.mark.parametrize(
    ("name", "full"),
    [("s3://b/x", True), ("minari:a/b-v0", True), ("data/x", False), ("odd:name/x", True)],
)
def test_absolute_names(name: str, full: bool) -> None:
    assert (absolute_name(name) == name) is full
    assert full or absolute_name(name) == str(Path(name).resolve())


@pytest.fixture
def of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset whose description names an environment in a module that must not be imported."""
    place = tmp_path / "foreign"
    cqlray.load_dataset(frame(episodes=40), COLUMNS | {"action_low": -1, "action_high": 1}).save(
        place
    )
    written = native.read_description(place)
    environment = written["environment"] | {"id": "evil_mod:Evil-v0", "kwargs": {"command": "ls"}}
    (place / "dataset.json").write_text(json.dumps(written | {"environment": environment}))
    (tmp_path / "evil_mod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return str(place)


def test_no_command_imports_the_module_that_a_dataset_names(
    capsys: pytest.CaptureFixture[str], of_a_module: str, tmp_path: Path
) -> None:
    assert "--env evil_mod:Evil-v0 trains with tests in it" in mistake(
        capsys, "train", "--dataset", of_a_module
    )
    out = {
        name: str(tmp_path / name) for name in ("card.html", "own", "minari", "log.csv", "mended")
    }
    commands = [
        *(["info"], ["info", "--json"], ["info", "--html", out["card.html"]]),
        *(["validate"], ["validate", "--json"]),
        *(["convert", "--out", out["own"]], ["convert", "--fix", "--out", out["mended"]]),
        *(
            ["convert", "--to", name, "--out", out[file]]
            for name, file in (("minari", "minari"), ("log", "log.csv"))
        ),
    ]
    for name, *words in commands:
        assert cli.main(["dataset", name, of_a_module, *words]) == 0, words
    assert "evil_mod" not in sys.modules
    # What was converted names it still, and no module is imported on that word either.
    assert native.read_description(tmp_path / "own")["environment"]["id"] == "evil_mod:Evil-v0"
    capsys.readouterr()
    assert "names the environment 'evil_mod:Evil-v0'" in mistake(
        capsys, "train", "--dataset", out["own"]
    )


def test_python_does_not_import_it_either(of_a_module: str) -> None:
    data = cqlray.load_dataset(of_a_module)
    assert data.environment["id"] == "evil_mod:Evil-v0" and data.description["episodes"] == 40
    assert data.fixed()[0].validate().errors == []
    config, _ = parse_config(["--dataset", of_a_module, "--env", "none"], "train")
    spec = checks.environment_of(checks.without_tests(config), ProgressDisplay(quiet=True))
    assert (config.env.kwargs, spec.observation_dim) == ({}, 2)
    assert "evil_mod" not in sys.modules


# From the command line


@pytest.fixture
def log(tmp_path: Path) -> str:
    frame().to_csv(tmp_path / "trips.csv", index=False)
    return str(tmp_path / "trips.csv")


def test_validate_says_what_is_wrong_and_where(
    capsys: pytest.CaptureFixture[str], log: str
) -> None:
    assert cli.main(["dataset", "validate", log, *FLAGS, *BOUNDS, "--batch-size", "32"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "12 episodes, 96 transitions: 0 errors, 1 warning"
    )
    broken = pd.read_csv(log)
    broken.loc[13, "torque"] = 7.5
    broken.to_csv(log, index=False)
    assert cli.main(["dataset", "validate", log, *FLAGS, *BOUNDS]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("error: ") and "96 transitions; a batch has 256" in out[0]
    assert f"error: {log}, row 13, torque: actions outside [-1, 1] by up to 6.5; " in out[1]
    assert cli.main(["dataset", "validate", log, *FLAGS, *BOUNDS, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["errors"] == 2 and said["findings"][1]["place"]["row"] == 13


def test_columns_may_stand_in_a_file(
    capsys: pytest.CaptureFixture[str], log: str, tmp_path: Path
) -> None:
    yaml = (
        "columns: {observation: ['sensor_*'], action: [torque], reward: r, episode: wrong,"
        " terminated: crashed}\n"
    )
    (tmp_path / "c.yaml").write_text(yaml)
    words = [
        "dataset",
        "info",
        log,
        "--config",
        str(tmp_path / "c.yaml"),
        "--columns.episode",
        "trip",
        "--json",
    ]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["transitions"] == 96


def test_convert_there_and_back(
    capsys: pytest.CaptureFixture[str], log: str, tmp_path: Path
) -> None:
    own, back, minari = (
        str(tmp_path / "own"),
        str(tmp_path / "back.parquet"),
        str(tmp_path / "minari"),
    )
    assert cli.main(["dataset", "convert", log, *FLAGS, *BOUNDS, "--out", own]) == 0
    assert capsys.readouterr().out == f"{own}: 12 episodes, 96 transitions\n"
    assert cli.main(["dataset", "convert", own, "--to", "log", "--out", back]) == 0
    assert cli.main(["dataset", "convert", own, "--to", "minari", "--out", minari]) == 0
    digests = {cqlray.load_dataset(place).description["digest"] for place in (own, back, minari)}
    assert len(digests) == 1
    capsys.readouterr()
    assert "holds a dataset already" in mistake(
        capsys, "dataset", "convert", log, *FLAGS, *BOUNDS, "--out", own
    )
    assert cli.main(["dataset", "convert", back, "--append", "--out", own]) == 0
    assert "24 episodes" in capsys.readouterr().out
    said = mistake(
        capsys,
        "dataset",
        "convert",
        own,
        "--append",
        "--to",
        "log",
        "--out",
        str(tmp_path / "x.csv"),
    )
    assert said == "--append adds to cqlray's own datasets alone, not with --to log"
    assert "the same episode, to the bit" in mistake(
        capsys, "dataset", "convert", own, "--out", str(tmp_path / "twice")
    )


def test_the_commands_name_the_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log, own = str(tmp_path / "trips.csv"), str(tmp_path / "own")
    swapped().to_csv(log, index=False)
    assert cli.main(["dataset", "validate", log, *FLAGS, *BOUNDS, "--batch-size", "32"]) == 0
    assert f"columns: {IN_WORDS}" in capsys.readouterr().out.splitlines()
    assert (
        cli.main(["dataset", "validate", log, *FLAGS, *BOUNDS, "--batch-size", "32", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["columns"] == NAMED
    assert cli.main(["dataset", "convert", log, *FLAGS, *BOUNDS, "--out", own]) == 0
    assert f"columns: {IN_WORDS}" in capsys.readouterr().err.splitlines()
    for data in ([log, *FLAGS], [own]):
        assert cli.main(["dataset", "info", *data]) == 0
        assert f"columns      {IN_WORDS}" in capsys.readouterr().out.replace("\n" + " " * 13, " ")


def test_fix_mends_and_says_so(
    capsys: pytest.CaptureFixture[str], log: str, tmp_path: Path
) -> None:
    broken = pd.read_csv(log)
    broken.loc[3, "sensor_1"] = np.nan
    broken.to_csv(log, index=False)
    out = str(tmp_path / "clean")
    assert "the value is nan" in mistake(
        capsys, "dataset", "convert", log, *FLAGS, *BOUNDS, "--out", out
    )
    assert (
        cli.main(["dataset", "convert", log, *FLAGS, *BOUNDS, "--fix", "--out", out, "--json"]) == 0
    )
    captured = capsys.readouterr()
    assert "fixed: left out 1 episode with a value that is not finite" in captured.err
    assert json.loads(captured.out)["episodes"] == 11
    assert "left out 1 episode" in json.dumps(native.read_description(Path(out))["provenance"])


def test_mistakes(capsys: pytest.CaptureFixture[str], log: str, tmp_path: Path) -> None:
    assert (
        mistake(capsys, "dataset")
        == "dataset: the commands are dataset info, dataset validate, dataset convert"
    )
    assert "required: --out" in mistake(capsys, "dataset", "convert", log)
    assert "no such file or directory" in mistake(capsys, "dataset", "info", str(tmp_path / "none"))
    assert "no column matches 'observation*'" in mistake(capsys, "dataset", "info", log)
    assert "batch-size is 0" in mistake(
        capsys, "dataset", "validate", log, *FLAGS, "--batch-size", "0"
    )
    assert "invalid choice: 'tfds'" in mistake(
        capsys, "dataset", "convert", log, "--to", "tfds", "--out", "x"
    )


def test_a_d4rl_file_without_timeouts_needs_the_time_limit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng, file = np.random.default_rng(0), str(tmp_path / "old_medium.hdf5")
    with h5py.File(file, "w") as arrays:
        arrays["observations"] = rng.normal(size=(300, 3)).astype(np.float32)
        arrays["actions"] = rng.uniform(-1, 1, (300, 1)).astype(np.float32)
        arrays["rewards"] = rng.normal(size=300).astype(np.float32)
        arrays["terminals"] = np.zeros(300, bool)
    assert "name the limit with --max-episode-steps" in mistake(capsys, "dataset", "info", file)
    assert cli.main(["dataset", "info", file, "--max-episode-steps", "30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 10
    words = ["--dataset", file, "--env.max-episode-steps", "30", *BOUNDS]
    config, _ = parse_config(words, "train")
    assert (config.env.id, config.env.max_episode_steps) == ("none", 30)
    assert recorded.open_configured(config).environment["max_episode_steps"] == 30
