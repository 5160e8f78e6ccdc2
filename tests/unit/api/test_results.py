"""cqlray.report, video and export, as users call them: the commands' words, files and mistakes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import cqlray
from cqlray.cli import main as cli
from cqlray.config.schema import EnvConfig, RunConfig
from tests.unit.results.run_directories import make_run, student


def two_runs(tmp_path: Path) -> list[Path]:
    rows = [student(member, 100, [-3.0, -1.0]) for member in (0, 1)]
    return [make_run(tmp_path / name, evaluations=rows) for name in "ab"]


def test_report_writes_what_the_command_writes(tmp_path: Path) -> None:
    run, _ = two_runs(tmp_path)
    assert cli.main(["report", str(run)]) == 0
    by_command = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    written = cqlray.report(run)
    assert written == cqlray.Report(run / "report.html")
    assert (run / "report.html").read_bytes() == by_command


def test_report_sends_to_trackers_and_says_where(tmp_path: Path) -> None:
    run, _ = two_runs(tmp_path)
    assert str(run) in cqlray.report(run, to=["tensorboard"]).sent["tensorboard"]


def test_report_of_out_alone_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    run, _ = two_runs(tmp_path)
    before = sorted(run.rglob("*"))
    assert cqlray.report(run, out=tmp_path / "page.html").path == tmp_path / "page.html"
    assert sorted(run.rglob("*")) == before and (tmp_path / "page.html").stat().st_size


def test_report_of_several_runs_compares_them(tmp_path: Path) -> None:
    page = cqlray.report(*two_runs(tmp_path), out=tmp_path / "ab.html").path
    assert "<html" in Path(str(page)).read_text()


def test_mistakes_are_user_errors_before_anything_is_written(tmp_path: Path) -> None:
    run, other = two_runs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    mistakes: list[tuple[str, tuple[Path, ...], dict[str, Any]]] = [
        ("needs a run", (), {}),
        ("should be a list", (run,), {"to": "wandb"}),
        ("there is no tracker 'paper'", (run,), {"to": ["paper"]}),
        ("one run at a time", (run, other), {"to": ["tensorboard"]}),
        ("give one of them", (run,), {"to": ["tensorboard"], "out": tmp_path / "x.html"}),
    ]
    for message, runs, words in mistakes:
        with pytest.raises(cqlray.UserError, match=message):
            cqlray.report(*runs, **words)
    assert sorted(tmp_path.rglob("*")) == before


def test_video_writes_a_film(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig("tests.toy_envs:Drawn-v0"))
    run = make_run(tmp_path / "run", config=config, environment={"action_dim": 1})
    assert cqlray.video(run, policy=["random"], out=tmp_path / "a.gif") == tmp_path / "a.gif"
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF8")
    with pytest.raises(cqlray.UserError, match="should be a list"):
        cqlray.video(run, policy="random")
    with pytest.raises(cqlray.UserError, match="at least 0"):
        cqlray.video(run, seed=-1)


def test_video_of_an_environment_without_pictures_is_one_line(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig("tests.toy_envs:Point-v0"))
    run = make_run(tmp_path / "run", config=config, environment={"action_dim": 1})
    with pytest.raises(cqlray.UserError, match=r"^no video: [^\n]+$"):
        cqlray.video(run, policy=["random"])


def test_export_has_the_words_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    words = list(inspect.signature(cqlray.export).parameters)[1:]
    page = capsys.readouterr().out
    assert words and all(f"--{word}" in page for word in words)
