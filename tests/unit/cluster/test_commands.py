"""Every command line of README and of the cluster files is one that cqlray and Ray take today."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start

from cqlray.cli import flags as arguments
from cqlray.cli import main as cli
from cqlray.cli import submit as submit_command
from cqlray.errors import UserError
from tests.unit.cluster.commands import (
    CLUSTER,
    REPOSITORY,
    fenced,
    of_program,
    simple_commands,
    strings,
)

DOCUMENTS = [
    REPOSITORY / "README.md",
    CLUSTER / "README.md",
    REPOSITORY / "cqlray" / "data" / "README.md",
    REPOSITORY / "cqlray" / "benchmarks" / "README.md",
]
MANIFESTS = [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml")]


def script_of(path: Path) -> str:
    """All of a file that a shell will read."""
    if path.suffix == ".md":
        return fenced(path.read_text())
    return "\n".join(
        text for document in yaml.safe_load_all(path.read_text()) for text in strings(document)
    )


def cqlray_commands(script: str) -> list[list[str]]:
    """COMMAND WORD ... of each cqlray in a script, also of those behind run-or-resume.sh."""
    retried = [[words[0], "--out", *words[1:]] for words in of_program(script, "run-or-resume.sh")]
    return [*of_program(script, "cqlray"), *retried]


def check(words: list[str]) -> None:
    """Raises UserError where cqlray would not take these words."""
    cli._command(words[0])
    if words[0] == "submit":
        submit_command._checked(submit_command._parser().parse_args(words[1:]).words)
    if words[0] in ("run", "train", "collect"):
        arguments.parse_config(words[1:], words[0])


@pytest.fixture(autouse=True)
def files_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("seed: 1\n")
    # the examples' data sets are not here
    monkeypatch.setattr(arguments, "_recorded_env", lambda values: {})


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, CLUSTER / "kuberay" / "rayjob.yaml"],
    ids=lambda path: path.parent.name + path.name,
)
def test_cqlray_takes_the_commands_that_are_shown(path: Path) -> None:
    commands = cqlray_commands(script_of(path))
    assert {words[0] for words in commands} & {"run", "train"}, "none was found"
    for words in commands:
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "cqlray run --num-seed 4",
        "ray job submit --address http://a:8265 -- cqlray run --out s3://b/c --resources.workers 3",
        "run-or-resume.sh run /runs/x --resources.gpus two",
        "cqlray trian --dataset x",
        "cqlray submit --adress http://a:8265 run --out /x",
        "cqlray submit --address http://a:8265 run --out /x --num-seed 4",
    ],
)
def test_a_stale_option_is_seen(line: str) -> None:
    (words,) = cqlray_commands(line)
    with pytest.raises(UserError):
        check(words)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *MANIFESTS], ids=lambda path: path.parent.name + path.name
)
def test_ray_takes_the_commands_that_are_shown(path: Path) -> None:
    """Options are read by Ray's own commands, which are not run."""
    script = script_of(path)
    for words in of_program(script, "ray", "start"):
        start.make_context("start", words)
    for words in of_program(script, "ray", "job", "submit"):
        submit.make_context("submit", words)


def test_ray_commands_are_found_where_they_are() -> None:
    assert len(of_program(script_of(CLUSTER / "README.md"), "ray", "job", "submit")) >= 2
    for name in ("ray-local.yaml", "ray-aws.yaml", "ray-gcp.yaml"):
        assert len(of_program(script_of(CLUSTER / name), "ray", "start")) == 2


def test_an_option_that_ray_has_not_is_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        start.make_context("start", ["--head", "--number-cpus=0"])
    with pytest.raises(click.NoSuchOption):
        submit.make_context("submit", ["--runtime-environment", "x", "--", "true"])


def test_words_of_a_script() -> None:
    script = (
        "A=1 cqlray run \\\n  --seed 1 # why\nif true; then cqlray resume 'a b' || exit; fi\n#"
        " cqlray none"
    )
    assert [words for words in simple_commands(script) if "cqlray" in words] == [
        ["A=1", "cqlray", "run", "--seed", "1"],
        ["then", "cqlray", "resume", "a b"],
    ]
    assert of_program(script, "cqlray") == [["run", "--seed", "1"], ["resume", "a b"]]
