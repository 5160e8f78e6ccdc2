"""Several runs in one report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, RunConfig
from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.report.comparison_page import run_names, write_comparison
from cqlray.results.report.formatting import number
from cqlray.results.report.html import write_report
from tests.object_store import s3_bucket
from tests.unit.results.report.test_html import HOSTILE, SWEEP, Page
from tests.unit.results.run_directories import Row, events, make_run, student, write_lines


def evaluated(level: float, members: int = 2) -> list[Row]:
    """Two tests of each member, whose last returns are all `level` plus the member's index."""
    return [student(m, u, [level + m - 300.0 + u] * 4) for m in range(members) for u in (200, 300)]


def two_runs(directory: Path) -> tuple[Path, Path]:
    low = make_run(directory / "low", evaluations=evaluated(-50.0))
    high = make_run(directory / "high", SWEEP, evaluations=evaluated(-10.0, 4))
    return low, high


def compared(directory: Path, *runs: Path) -> Page:
    return Page(write_comparison(runs, directory / "comparison.html").read_text())


def test_a_row_for_each_run_and_setting_by_hand(tmp_path: Path) -> None:
    found = compared(tmp_path, *two_runs(tmp_path))
    assert "Pendulum-v1: 2 runs compared" in found.text
    assert (
        "highest interquartile mean return at the last test is -7.50, of high, conservative"
        " weight 5" in found.text
    )
    for run, setting, members, level in (
        ("low", "all members", 2, -49.5),
        ("high", "conservative weight 5", 2, -7.5),
    ):
        last = f"{number(level)} [{number(level - 0.5)}, {number(level + 0.5)}]"
        # the last third of two tests is one test
        assert f"{run}{setting}{members}2{last}{last}{last}" in found.text
    assert "high, conservative weight 5low100%-" in found.text.replace("\n", "")
    assert len(found.figures()) == 2
    assert "None" not in found.text and "nan" not in found.text.split()


def test_curves_of_all_groups_are_named(tmp_path: Path) -> None:
    compared(tmp_path, *two_runs(tmp_path))
    svg = compared(tmp_path, tmp_path / "low", tmp_path / "high").figures()[0]
    words = "".join(node.text or "" for node in svg.iter())
    for name in ("low", "high, conservative weight 1", "high, conservative weight 5"):
        assert name in words


def test_equal_runs_are_even_and_nothing_is_noted(tmp_path: Path) -> None:
    low, _ = two_runs(tmp_path)
    shutil.copytree(low, tmp_path / "copy")
    found = compared(tmp_path, low, tmp_path / "copy")
    assert "lowcopy50%" in found.text
    assert not any(attrs.get("class") == "warn" for _, attrs in found.tags)


def test_other_data_other_episodes_and_unfinished_runs_are_noted(tmp_path: Path) -> None:
    low, _ = two_runs(tmp_path)
    other = make_run(
        tmp_path / "other", evaluations=evaluated(0.0), finished=False, config=RunConfig(seed=7)
    )
    description = json.loads((other / "dataset" / "dataset.json").read_text())
    (other / "dataset" / "dataset.json").write_text(json.dumps({**description, "digest": "f" * 64}))
    text = compared(tmp_path, low, other).text
    assert "datasets differ" in text and "low abc123, other ffffffffffff" in text
    assert "tested on different episodes" in text and "of seed 7" in text
    assert "other is not finished" in text


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (EnvConfig("Hopper-v5"), "is of Hopper-v5"),
        (EnvConfig(max_episode_steps=7), "is of Pendulum-v1, at most 7 steps"),
        (EnvConfig(kwargs={"g": 9.0}), 'is of Pendulum-v1, {"g": 9.0}'),
    ],
)
def test_other_environments_are_refused_in_one_line(
    tmp_path: Path, env: EnvConfig, words: str
) -> None:
    low, _ = two_runs(tmp_path)
    other = make_run(tmp_path / "other", evaluations=evaluated(0.0), config=RunConfig(env=env))
    with pytest.raises(UserError) as caught:
        compared(tmp_path, low, other)
    assert (
        f"{low} is of Pendulum-v1" in str(caught.value)
        and words in str(caught.value)
        and "\n" not in str(caught.value)
    )
    assert not (tmp_path / "comparison.html").exists()


def test_a_limit_that_is_said_is_no_other_than_the_environments_own(tmp_path: Path) -> None:
    own = {"max_episode_steps": 200}
    plain = make_run(tmp_path / "plain", evaluations=evaluated(0.0), environment=own)
    config = RunConfig(env=EnvConfig(max_episode_steps=200))
    said = make_run(tmp_path / "said", evaluations=evaluated(0.0), environment=own, config=config)
    assert "2 runs compared" in compared(tmp_path, plain, said).text


def test_wrong_use_gets_one_line(tmp_path: Path) -> None:
    low, _ = two_runs(tmp_path)
    untested, collected = (
        make_run(tmp_path / "untested"),
        make_run(tmp_path / "collected", settings=(), dataset_only=True),
    )
    for runs, words in (
        ([low, untested], "untested has no evaluations"),
        ([low, collected], "collected holds collected data and no students"),
        ([low, low], "is given twice"),
        ([low], "at least two"),
        ([low, tmp_path / "nowhere"], "not a run directory"),
    ):
        with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
            compared(tmp_path, *runs)


def test_a_run_without_an_environment_can_never_be_compared(tmp_path: Path) -> None:
    low, _ = two_runs(tmp_path)
    logged = make_run(
        tmp_path / "logged", config=RunConfig(env=EnvConfig(NO_ENVIRONMENT), dataset="log.csv")
    )
    shutil.copytree(logged, tmp_path / "other")
    for runs in ([logged, tmp_path / "other"], [low, logged]):
        with pytest.raises(
            UserError,
            match=rf"^{logged} has no environment \(.*: cqlray evaluate {logged} --fitted-q, then ",
        ):
            compared(tmp_path, *runs)
    assert not (tmp_path / "comparison.html").exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    places = [
        make_run(tmp_path / parent / "run", evaluations=evaluated(0.0)) for parent in ("a", "b")
    ]
    assert run_names([load_run(place) for place in places]) == [str(place) for place in places]
    assert run_names([load_run(place) for place in two_runs(tmp_path)]) == ["low", "high"]


def test_many_groups_stay_readable(tmp_path: Path) -> None:
    sweep = [{"conservative_weight": float(w)} for w in range(12)]
    first, second = (
        make_run(tmp_path / n, sweep, 2, evaluations=evaluated(level, 24))
        for n, level in (("a", 0.0), ("b", 40.0))
    )
    found = compared(tmp_path, first, second)
    assert "The 8 groups with the highest means" in found.text
    words = [node.text for node in found.figures()[0].iter() if node.text]
    assert "the other 18" in words and sum("conservative weight" in word for word in words) == 6


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    low, _ = two_runs(tmp_path)
    other = make_run(
        tmp_path / HOSTILE.replace("/", ""), [{HOSTILE: HOSTILE}], evaluations=evaluated(0.0)
    )
    assert "<script" not in write_comparison([low, other], tmp_path / "page.html").read_text()


def test_reports_of_runs_in_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_bucket(monkeypatch, "reports") as store:
        for run in two_runs(tmp_path):
            write_lines(run / "events.jsonl", events())
            for path in run.rglob("*"):
                place = store / str(path.relative_to(tmp_path))
                if path.suffix == ".jsonl":  # which an object store keeps in parts
                    place.append(path.read_text())
                elif path.is_file():
                    place.write(path.read_bytes())
        text = Page(write_report(store / "low").read_text()).text
        assert "s3://reports/low, begun" in text and "node-b" in text
        assert (
            "2 runs compared"
            in Page(
                write_comparison([store / "low", store / "high"], store / "both.html").read_text()
            ).text
        )
