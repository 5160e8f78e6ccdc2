"""The command line as a person meets it: mistakes, help, output for programs."""

from __future__ import annotations

import json
import os
import signal
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from cqlray.api import session
from cqlray.cli import main as cli
from cqlray.cli.main import main
from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, EvaluationConfig, RunConfig
from cqlray.results.report.html import write_report
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import any_path
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import make_run

ROOT = Path(__file__).parents[3]


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a mistake; exit status 2, nothing on stdout, no traceback."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("cqlray: ")
    return printed.err.removeprefix("cqlray: ").strip()


def test_mistakes_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert mistake(capsys, "runn") == "there is no command 'runn'; did you mean run?"
    said = mistake(capsys, "run", "--env", "Pendulm-v1", "--out", out)
    assert "did you mean Pendulum-v1?" in said
    said = mistake(capsys, "run", "--env", "CartPole-v1", "--out", out)
    assert (
        said == "env.id 'CartPole-v1': actions are Discrete(2); cqlray needs a one-dimensional Box"
        " (continuous actions)"
    )
    assert "--cql.batch-size" in mistake(capsys, "run", "--cql.batch-sise", "3")
    assert (
        mistake(capsys, "run", "--cql.batch-size", "-3")
        == "command line: cql.batch_size is -3; it must be at least 1"
    )
    assert mistake(capsys, "train") == "train needs --dataset DIRECTORY"
    assert mistake(capsys, "train", "--dataset", out).startswith(
        f"dataset {out!r}: no such file or directory; a dataset"
    )
    assert (
        mistake(capsys, "resume", out)
        == f"{out} is not a run directory: there is no such directory"
    )
    assert mistake(capsys, "report", str(tmp_path)).startswith(f"{tmp_path} is not a run directory")
    assert mistake(capsys, "evaluate", str(tmp_path)).startswith(
        f"{tmp_path} is not a run directory"
    )
    assert (
        mistake(capsys, "evaluate", out, "--episodes", "0")
        == "episodes is 0; it must be at least 1"
    )
    assert (
        mistake(capsys, "benchmark")
        == "benchmark: the commands are benchmark learner, benchmark members, benchmark rollout,"
        " benchmark data, benchmark actor, benchmark peers"
    )
    assert "must be positive" in mistake(capsys, "benchmark", "learner", "--members", "0")
    assert "invalid choice: 'X'" in mistake(capsys, "benchmark", "learner", "--workload", "X")
    assert "required: RUN" in mistake(capsys, "resume")
    assert mistake(capsys, "dataset", "list").startswith(
        "dataset list: the commands are dataset info, dataset validate"
    )
    assert not Path(out).exists()


def test_an_empty_dataset_and_one_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "is an empty directory" in mistake(capsys, "train", "--dataset", str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    assert "is of no known format; a dataset is a cqlray" in mistake(
        capsys, "dataset", "info", str(tmp_path)
    )


def test_an_output_directory_that_exists_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "exists already" in mistake(capsys, "run", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_without_an_environment_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no tests, and never will: nothing may tell its user to wait for them, or to name an
    environment.
    """
    evaluation = EvaluationConfig(episodes=0, video=True)
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT), dataset="log.csv", evaluation=evaluation)
    logged, other = (str(make_run(tmp_path / name, config=config)) for name in ("logged", "other"))
    words = (
        f"{logged} has no environment (env.id none), so no episode can be played with its policies;"
        f" what its data says of them: cqlray evaluate {logged} --fitted-q, then cqlray report"
        f" {logged}"
    )
    assert mistake(capsys, "video", logged) == words
    assert mistake(capsys, "video", logged, "--policy", "random") == words
    assert mistake(capsys, "evaluate", logged) == words
    assert mistake(capsys, "report", logged, other) == words
    said: list[str] = []
    directory = RunDirectory.open(any_path(logged))
    monkeypatch.setattr(ProgressDisplay, "say", lambda _, line: said.append(line))
    session._with_video(directory, config, ProgressDisplay(quiet=True))
    assert said == [f"no video: {words}"]


def test_the_report_of_one_run_somewhere_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The run directory may be one that one can only read."""
    run = make_run(tmp_path / "run")
    before = sorted(path for path in run.rglob("*"))
    page = tmp_path / "new" / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert main(["report", str(run), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert "--to tensorboard writes into the run" in mistake(
        capsys, "report", str(run), "--out", "x", "--to", "tensorboard"
    )
    assert sorted(run.rglob("*")) == before
    assert write_report(run).read_text() == page.read_text()


FAMILIES = {
    "dataset": ("info", "validate", "convert"),
    "benchmark": ("learner", "members", "rollout", "data", "actor", "peers"),
}


@pytest.mark.parametrize(
    "command",
    [*cli._MODULES, *(f"{family} {name}" for family, names in FAMILIES.items() for name in names)],
)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*command.split(), "--help"])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    assert printed.out.startswith(f"usage: cqlray {command} ")
    assert all(f"  {name} " in printed.out for name in FAMILIES.get(command, ()))


def test_help_and_no_words_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage: cqlray COMMAND") == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cqlray {version('cqlray')}\n"


def test_sigterm_stops_a_command_with_a_line_also_if_it_comes_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`timeout` sends it to its child, then to the group."""

    def signalled(_: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr("cqlray.cli.run.resume", signalled)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["resume", "X"]) == 130
    assert capsys.readouterr().err == "cqlray: stopped before anything was written\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_within_a_destructor_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python drops what a destructor raises: the command would go on, deaf."""

    class Signals:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def signalled(_: list[str]) -> int:
        Signals()
        time.sleep(0.8)
        return 0

    monkeypatch.setattr("cqlray.cli.run.resume", signalled)
    assert main(["resume", "X"]) == 130
    assert capsys.readouterr().err == "cqlray: stopped before anything was written\n"
