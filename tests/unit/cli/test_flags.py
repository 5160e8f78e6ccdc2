"""Flags over YAML over a preset, one line for each mistake, and a help page that one can read."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import operator
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.cli.flag_table import Options
from cqlray.cli.flags import parse_config
from cqlray.cli.help_page import help_text
from cqlray.config import models
from cqlray.config.load import dump_yaml, merge, validate
from cqlray.config.members import members
from cqlray.config.presets import PRESETS
from cqlray.config.schema import CollectionConfig, EnvConfig, RunConfig, to_dict
from cqlray.data.dataset import dataset_digest
from cqlray.errors import UserError


def parse(line: str, command: str = "run") -> RunConfig:
    return parse_config(line.split(), command)[0]


def refused(line: str, command: str = "run") -> str:
    with pytest.raises(UserError) as caught:
        parse(line, command)
    return str(caught.value)


# What is accepted


@pytest.mark.parametrize(
    ("line", "preset"),
    [
        ("", "pendulum"),
        ("--env Pendulum-v1", "pendulum"),
        ("--env Hopper-v5", "general"),
        ("--env Hopper-v5 --preset tutorial", "tutorial"),
        ("--preset general", "general"),
    ],
)
def test_the_preset_below_everything(line: str, preset: str) -> None:
    config = parse(line)
    assert dataclasses.replace(config, env=EnvConfig()) == PRESETS[preset]
    assert config.env.id == ("Hopper-v5" if "Hopper" in line else "Pendulum-v1")


@pytest.mark.parametrize(
    "line", ["--env Hopper-v5", "--env=Hopper-v5", "--env.id Hopper-v5", "--env.id=Hopper-v5"]
)
def test_the_environment_has_a_short_name(line: str) -> None:
    assert parse(line).env.id == "Hopper-v5"


@pytest.mark.parametrize(
    "line",
    [
        "--tiers random expert --episodes 3 4",
        "--tiers random expert --collection.episodes 3 4",
        "--collection.tiers random expert --episodes 3 4",
    ],
)
def test_collect_has_short_names(line: str) -> None:
    assert parse(line, "collect").collection == CollectionConfig(
        tiers=("random", "expert"), episodes=(3, 4)
    )


def test_flags_go_over_yaml_and_yaml_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "env: {id: Hopper-v5, kwargs: {a: 1, b: 2}}\ncql: {batch_size: 32, policy_learning_rate:"
        " 3e-5}\n"
    )
    config, options = parse_config(
        ["--config", str(path), "--cql.batch-size", "64", "--env.kwargs", "b", "7"], "run"
    )
    assert options == Options(config=path)
    assert config == validate(
        merge(
            to_dict(PRESETS["general"]),
            {
                "env": {"id": "Hopper-v5", "kwargs": {"a": 1, "b": 7}},
                "cql": {"batch_size": 64, "policy_learning_rate": 3e-5},
            },
        ),
        "test",
    )


GIVEN = st.fixed_dictionaries(
    {},
    optional={
        ("seed",): st.integers(0, 9),
        ("cql", "batch_size"): st.integers(1, 9),
        ("cql", "discount"): st.sampled_from([0.5, 0.9]),
        ("cql", "lagrange"): st.booleans(),
        ("teacher", "hidden_units"): st.integers(1, 9),
        ("teacher", "target_entropy"): st.none() | st.sampled_from([-1.5, 2.0]),
        ("collection", "tiers"): st.permutations(["random", "expert", "medium"]),
        ("sweep", "conservative_weight"): st.lists(st.sampled_from([0.5, 7.0]), min_size=1),
        ("sweep", "layer_norm"): st.lists(st.booleans(), min_size=1),
    },
)


def typed(path: tuple[str, ...], value: Any) -> list[str]:
    """A value as one types it."""
    flag = "--" + ".".join(path).replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace(".", ".no-")]
    words = value if isinstance(value, list) else [value]
    return [flag, *(yaml.safe_dump(word).split()[0] for word in words)]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {first: nested(tuple(rest), value) if rest else value}


@settings(max_examples=100, deadline=None)
@given(preset=st.sampled_from([None, *PRESETS]), in_file=GIVEN, in_flags=GIVEN)
def test_a_value_is_the_flag_s_or_else_the_file_s_or_else_the_preset_s(
    preset: str | None, in_file: dict[Any, Any], in_flags: dict[Any, Any]
) -> None:
    """And all of them are checked together, once."""
    content: dict[str, Any] = {}
    for path, value in in_file.items():
        content = merge(content, nested(path, value))
    words = [word for path, value in in_flags.items() for word in typed(path, value)]
    words += ["--preset", preset] if preset else []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(models, "typed", wraps=models.typed) as checks,
    ):
        file = Path(folder, "my.yaml")
        file.write_text(yaml.safe_dump(content))
        found = to_dict(parse_config(["--config", str(file), *words], "run")[0])
    assert checks.call_count == 1
    below = to_dict(PRESETS[preset or "pendulum"])
    for path in paths(below):
        expected = in_flags.get(path, in_file.get(path, at(below, path)))
        assert at(found, path) == expected, path


def paths(values: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from ((name, *path) for path in paths(value))
        else:
            yield (name,)


def at(values: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, values)


def test_what_a_dataset_says_is_checked_apart_and_the_user_s_values_once(tmp_path: Path) -> None:
    data = recorded(tmp_path / "data", "Hopper-v5")
    with mock.patch.object(models, "typed", wraps=models.typed) as checks:
        parse(f"--dataset {data} --cql.discount 0.5", "train")
    assert [call.args[0].keys() for call in checks.call_args_list] == [
        {"dataset", "cql"},
        {"env"},
    ]


def test_a_dumped_config_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(PRESETS["tutorial"]))
    assert parse(f"--config {path}") == PRESETS["tutorial"]


def test_rules_between_fields_see_all_layers_together(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("teacher: {warmup_rounds: 100}")
    assert (
        refused(f"--config {path}")
        == f"{path}: teacher.warmup_rounds is 100; it must be less than teacher.rounds, which is 20"
    )
    assert parse(f"--config {path} --teacher.rounds 200").teacher.warmup_rounds == 100


def test_values_of_every_kind() -> None:
    config = parse(
        "--cql.lagrange --cql.no-observation-normalization --cql.target-entropy -3"
        " --cql.difference-clip-min -inf --cql.difference_clip_max=1e3 --resources.gpus 0"
        " --teacher.stop-return inf --out=-odd- --seed 7"
    )
    assert config.cql.lagrange
    assert not config.cql.observation_normalization
    assert config.cql.target_entropy == -3.0
    assert config.cql.difference_clip_min == float("-inf")
    assert config.cql.difference_clip_max == 1000.0
    assert config.resources.gpus == 0
    assert config.out == "-odd-"
    assert parse("--preset tutorial --cql.target-entropy null").cql.target_entropy is None


def test_arguments_of_the_environment_keep_their_kinds() -> None:
    kwargs = parse("--env.kwargs a 3 b 0.5 c text d true e False").env.kwargs
    assert kwargs == {"a": 3, "b": 0.5, "c": "text", "d": True, "e": False}
    assert [type(value) for value in kwargs.values()] == [int, float, str, bool, bool]
    assert parse("--env.kwargs true 1 a null").env.kwargs == {"true": 1, "a": "null"}


def test_sweeps_multiply() -> None:
    config = parse("--sweep.conservative-weight 1 5 10 --sweep.lagrange true false --num-seeds 4")
    assert config.sweep.conservative_weight == (1.0, 5.0, 10.0)
    assert config.sweep.lagrange == (True, False)
    settings = {(m.cql.conservative_weight, m.cql.lagrange, m.seed) for m in members(config)}
    assert settings == set(itertools.product((1.0, 5.0, 10.0), (True, False), range(4)))


def test_options_beside_the_config() -> None:
    _, options = parse_config(["--json", "--debug", "--quiet", "--preset", "tutorial"], "run")
    assert options == Options(json=True, debug=True, quiet=True, preset="tutorial")
    assert parse_config([], "run")[1] == Options()


def recorded(folder: Path, env: str) -> Path:
    """A dataset's description, which names its environment."""
    folder.mkdir()
    environment = {
        "id": env,
        "max_episode_steps": 70,
        "kwargs": {"g": 5.0},
        "observation_dim": 3,
        "action_dim": 1,
    }
    description = {
        "environment": environment,
        "digest": dataset_digest([]),
        "shards": [],
        "transitions": 0,
        "episodes": 0,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_train_takes_its_dataset_from_either(tmp_path: Path) -> None:
    data = recorded(tmp_path / "data", "Pendulum-v1")
    assert parse(f"--dataset {data}", "train").dataset == str(data)
    (tmp_path / "my.yaml").write_text(f"dataset: {data}\nteacher: {{rounds: 7}}")
    assert parse(f"--config {tmp_path / 'my.yaml'}", "train").dataset == str(data)


def test_the_dataset_names_the_environment_and_with_it_the_preset(tmp_path: Path) -> None:
    hopper, pendulum = (
        recorded(tmp_path / "h", "Hopper-v5"),
        recorded(tmp_path / "p", "Pendulum-v1"),
    )
    config = parse(f"--dataset {hopper}", "train")
    assert (config.env.id, config.env.max_episode_steps, config.env.kwargs) == (
        "Hopper-v5",
        70,
        {"g": 5.0},
    )
    assert config.cql == PRESETS["general"].cql
    assert parse(f"--dataset {pendulum}", "train").cql == PRESETS["pendulum"].cql
    assert parse(f"--dataset {hopper} --env Walker2d-v5", "train").env.id == "Walker2d-v5"
    assert refused(f"--dataset {tmp_path / 'none'}", "train").startswith(
        f"dataset {str(tmp_path / 'none')!r}: no such file or directory"
    )


def test_a_module_is_imported_on_the_user_s_word_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset's description comes with the dataset, perhaps from somebody else: it must not
    choose what code runs.
    """
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_mod.py").write_text("raise SystemExit('imported')")
    data = recorded(tmp_path / "data", "evil_mod:Evil-v0")
    said = (
        f"dataset {str(data)!r} names the environment 'evil_mod:Evil-v0', and no module is imported"
        " on a file's word: --env evil_mod:Evil-v0 trains with tests in it, --env none without"
        " tests"
    )
    (tmp_path / "my.yaml").write_text("env: {kwargs: {g: 4.0}}")
    assert refused(f"--dataset {data}", "train") == said
    assert (
        refused(
            f"--dataset {data} --env.max-episode-steps 9 --config {tmp_path / 'my.yaml'}", "train"
        )
        == said
    )
    # Its arguments go with it where the user names it, in a flag or in a file, and nowhere else.
    (tmp_path / "my.yaml").write_text("env: {id: 'evil_mod:Evil-v0'}")
    for words in ("--env evil_mod:Evil-v0", f"--config {tmp_path / 'my.yaml'}"):
        assert parse(f"--dataset {data} {words}", "train").env == EnvConfig(
            "evil_mod:Evil-v0", 70, {"g": 5.0}
        )
    for other in ("none", "Hopper-v5", "mine:Evil-v0"):
        assert parse(f"--dataset {data} --env {other}", "train").env == EnvConfig(other, 70, {})
    strange = recorded(tmp_path / "strange", "a:b\n\x1b[2J; rm")
    assert "\n" not in refused(f"--dataset {strange}", "train") and "--env ID trains" in refused(
        f"--dataset {strange}", "train"
    )
    assert "evil_mod" not in sys.modules


# One line for each mistake

MISTAKES = {
    "--cql.batch-size -3": "cql.batch_size is -3; it must be at least 1",
    "--cql.batch-size abc": "cql.batch_size is 'abc'; it must be a whole number",
    "--cql.batch-size 2.5": "cql.batch_size is '2.5'; it must be a whole number",
    "--cql.discount x": "cql.discount is 'x'; it must be a number",
    "--cql.discount nan": "cql.discount is nan; it must be a number",
    "--sweep.discount 0.5 x": "sweep.discount[1] is 'x'; it must be a number",
    "--sweep.discount 0.5 1.5": "sweep.discount[1] is 1.5; it must be less than 1",
    "--sweep.lagrange maybe": "sweep.lagrange[0] is 'maybe'; it must be true or false",
    "--collection.episodes 1 2": (
        "collection.episodes has 2 numbers for the 3 of collection.tiers; "
        "it must have one for all or one for each"
    ),
    "--batch-size 3": (
        "unknown option --batch-size; did you mean --cql.batch-size or --teacher.batch-size?"
    ),
    "--bach-size 3": (
        "unknown option --bach-size; did you mean --cql.batch-size or --teacher.batch-size?"
    ),
    "--cql.conservativ-weight=3": (
        "unknown option --cql.conservativ-weight; did you mean --cql.conservative-weight?"
    ),
    "--sweep.conservativ-weight 3": (
        "unknown option --sweep.conservativ-weight; did you mean --sweep.conservative-weight?"
    ),
    "--sweep.num-updates 3": "unknown option --sweep.num-updates; did you mean --cql.num-updates?",
    "--qiet": "unknown option --qiet; did you mean --quiet?",
    "--zzzzz 3": "unknown option --zzzzz; --help lists all options",
    "-x": "unknown option -x; --help lists all options",
    "--tiers random": "unknown option --tiers; did you mean --collection.tiers?",
    "word": "'word' belongs to no option",
    "--env": "--env.id needs a value: --env.id TEXT",
    "--sweep.discount": "--sweep.discount needs a value: --sweep.discount NUM ...",
    "--out --json": "--out needs a value: --out TEXT",
    "--seed 1 2": "--seed takes one value, and '2' follows it",
    "--seed 1 --seed 2": "--seed stands twice",
    "--cql.lagrange yes": (
        "--cql.lagrange takes no value, and 'yes' follows it; --cql.no-lagrange turns it off"
    ),
    "--json yes": "--json takes no value, and 'yes' follows it",
    "--env.kwargs a": "--env.kwargs takes pairs: --env.kwargs NAME VALUE ...",
    "--env.kwargs a inf": "env.kwargs.a is inf; it must be a finite number",
    "--baselines bc xx": "baselines[1] is 'xx'; it must be 'bc' or 'sac'",
    "--preset pendulm": "there is no preset 'pendulm'; did you mean pendulum?",
    "--preset zzz": "there is no preset 'zzz'; the presets are general, pendulum, tutorial",
    "--dataset x": (
        "--dataset plays no part in cqlray run; cqlray train --dataset DIRECTORY trains on one"
    ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_its_line_and_nothing_else_is_printed(
    line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(line) == f"command line: {MISTAKES[line]}"
    assert capfd.readouterr() == ("", "")


def test_every_wrong_value_gets_a_line() -> None:
    assert refused("--cql.batch-size abc --seed 1 --cql.discount x").splitlines() == [
        "command line: cql.batch_size is 'abc'; it must be a whole number",
        "command line: cql.discount is 'x'; it must be a number",
    ]


def test_mistakes_of_each_command() -> None:
    assert refused("", "train") == "train needs --dataset DIRECTORY"
    assert (
        refused("--teacher.rounds 3 --dataset x", "train")
        == "command line: --teacher.rounds plays no part in cqlray train"
    )
    assert refused("--tiers random --dataset x", "train").startswith(
        "command line: unknown option --tiers"
    )
    assert (
        refused("--num-seeds 3", "collect")
        == "command line: --num-seeds plays no part in cqlray collect"
    )
    assert (
        refused("--cql.discount 0.5", "collect")
        == "command line: --cql.discount plays no part in cqlray collect"
    )
    assert (
        refused("--dataset x", "collect")
        == "command line: --dataset plays no part in cqlray collect; cqlray train --dataset"
        " DIRECTORY trains on one"
    )


def test_mistakes_in_yaml_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    assert refused(f"--config {path}") == f"{path}: no such file"
    path.write_text("cql: {batch_size: 0}")
    assert refused(f"--config {path}") == f"{path}: cql.batch_size is 0; it must be at least 1"
    path.write_text("dataset: x")
    assert (
        refused(f"--config {path}")
        == f"{path}: dataset plays no part in cqlray run; cqlray train --dataset DIRECTORY trains"
        " on one"
    )
    path.write_text("seed: 1")
    assert (
        refused(f"--config {path} --cql.batch-size 0")
        == "command line: cql.batch_size is 0; it must be at least 1"
    )


def test_mistakes_of_both_come_together_and_each_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("sed: 1\ncql: {discount: 2, batch_size: 0}\nenv: {kwargs: {1: 2}}")
    assert refused(f"--config {path} --cql.num-updates 0 --seed x").splitlines() == [
        f"{path}: unknown key sed; did you mean seed?",
        f"{path}: cql.discount is 2; it must be less than 1",
        f"{path}: cql.batch_size is 0; it must be at least 1",
        f"{path}: env.kwargs has the name 1; it must be text",
        "command line: cql.num_updates is 0; it must be at least 1",
        "command line: seed is 'x'; it must be a whole number",
    ]


@pytest.mark.parametrize(("text", "shown"), [("", "empty"), (" [1]", "[1]"), (" 3", "3")])
def test_a_section_that_is_none_is_found_below_a_flag(
    text: str, shown: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"cql:{text}")
    said = f"{path}: cql is {shown}; it must be a mapping of names to values"
    assert refused(f"--config {path} --cql.batch-size 5") == said
    assert refused(f"--config {path}") == said


def test_a_value_that_a_flag_replaces_is_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("cql: {batch_size: 0}")
    assert parse(f"--config {path} --cql.batch-size 5").cql.batch_size == 5


def test_a_broken_rule_names_the_last_place_that_had_a_part_in_it(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("teacher: {warmup_rounds: 100}")
    rule = "teacher.warmup_rounds is 100; it must be less than teacher.rounds, which is"
    assert refused(f"--config {path} --seed 3") == f"{path}: {rule} 20"
    assert refused(f"--config {path} --teacher.rounds 50") == f"command line: {rule} 50"


# The help page


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        (
            "run",
            [
                "--teacher.rounds",
                "--collection.tiers",
                "--cql.discount",
                "--sweep.OPTION",
                "--num-seeds",
            ],
            ["--dataset"],
        ),
        (
            "train",
            ["--dataset", "--cql.discount", "--sweep.OPTION", "--evaluation.interval"],
            ["--teacher", "--collection"],
        ),
        (
            "collect",
            [
                "--teacher.rounds",
                "--teacher.discount",
                "--tiers, --collection.tiers",
                "--env, --env.id",
            ],
            ["--cql", "--sweep", "--evaluation", "--num-seeds", "--dataset"],
        ),
    ],
)
def test_the_help_page(
    command: str, shown: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"], command)
    page = capsys.readouterr().out
    assert caught.value.code == 0
    assert page.startswith(f"usage: cqlray {command} ")
    assert all(
        f"  {flag}" in page
        for flag in [*shown, "--config", "--preset", "--json", "--out", "--resources.gpus"]
    )
    assert not any(f"  {flag}" in page for flag in hidden)


@pytest.mark.parametrize("command", ["run", "train", "collect"])
@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_help_page_fits(command: str, width: int) -> None:
    page = help_text(command, width=width).splitlines()
    assert len(page) <= 170
    assert max(map(len, page)) <= width


def test_the_help_page_has_docstrings_and_the_defaults_that_hold() -> None:
    row = (
        "  --seed INT                        Seed that every random stream of the run is derived"
        " from. [0]"
    )
    assert row in help_text("run", width=120).splitlines()
    page = help_text("run", PRESETS["tutorial"], width=120)
    assert "Transitions in a batch. [64]" in page
    assert "[off; teacher on]" not in page
    assert "[off; teacher on]" in help_text("run", PRESETS["general"], width=120)


def test_help_comes_in_spite_of_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--preset", "tutorial", "-h"], "run")
    assert "[50000]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_config(["--zzz", "--help"], "train")
    assert capsys.readouterr().out.startswith("usage: cqlray train ")
