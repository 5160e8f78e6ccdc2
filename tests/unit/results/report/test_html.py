"""Record, figures, HTML, TensorBoard and terminal table of run directories made by hand."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from rich.console import Console

from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, EvaluationConfig, RunConfig
from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.report import plots, style
from cqlray.results.report.formatting import duration, number
from cqlray.results.report.html import write_report
from cqlray.results.report.table import results_table
from cqlray.results.statistics.summary import summarize
from cqlray.results.trackers.tensorboard import write_tensorboard
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import dataset, make_run, reference, student, sweep_of_64

HOSTILE = "<script>alert('&')</script>"
REFERENCES = [reference("teacher", [-140.0, -160.0]), reference("random", [-1200.0])]
TESTS = [
    student(m, u, [-u - m - 0.5, -u + m, -u - 7.0, -u + 3.0]) for m in range(2) for u in (100, 200)
]
SWEEP = [{"conservative_weight": 1.0}, {"conservative_weight": 5.0}]


def swept(directory: Path) -> Path:
    rows = [student(m, u, [-u * (m + 1.0)] * 4) for m in range(4) for u in (100, 200)]
    return make_run(directory, SWEEP, evaluations=[*REFERENCES, *rows])


def running(directory: Path) -> Path:
    """Nothing yet but what a run begins with."""
    make_run(directory, finished=False)
    for name in (
        "members.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "dataset/dataset.json",
        "teacher/teacher.json",
    ):
        (directory / name).unlink()
    (directory / "manifest.json").write_text("{}\n")
    return directory


def interrupted(directory: Path) -> Path:
    """Killed while it wrote a line; one member had no test yet."""
    make_run(directory, evaluations=[*REFERENCES, *TESTS[:2]], finished=False, frozen={"1": 4000})
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        with (directory / name).open("a") as file:
            file.write('{"policy": "student", "member": 1, "upda')
    return directory


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "finished": lambda path: make_run(path, evaluations=[*REFERENCES, *TESTS]),
    "swept": swept,
    "running": running,
    "interrupted": interrupted,
    "one member": lambda path: make_run(path, seeds=1, evaluations=[*REFERENCES, *TESTS[:2]]),
    "one test": lambda path: make_run(path, evaluations=[student(m, 100, [1.0]) for m in range(2)]),
    "no environment": lambda path: make_run(path, teacher=False),
    "dataset only": lambda path: _without_members(make_run(path, dataset_only=True)),
    "64 members": sweep_of_64,
    "not finite": lambda path: make_run(
        path, evaluations=[student(m, 100, [None, 1.0], value=None) for m in range(2)]
    ),
}


def _without_members(directory: Path) -> Path:
    (directory / "members.json").unlink()
    return directory


@pytest.fixture(params=SAMPLES, scope="module")
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; `before` beside it is a copy from before the report was made."""
    folder = tmp_path_factory.mktemp("sample")
    directory: Path = SAMPLES[request.param](folder / "run")
    shutil.copytree(directory, folder / "before")
    write_report(directory)
    return directory


class Page(HTMLParser):
    """A page's tags, attributes and text; an end tag that closes another element than the open one
    is an error.
    """

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def figures(self) -> list[ElementTree.Element]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        return [
            ElementTree.fromstring(base64.b64decode(source.partition("base64,")[2]))
            for source in sources
        ]


def page(directory: Path) -> Page:
    return Page(write_report(directory).read_text())


# -- record ----------------------------------------------------------------------------------------


def test_later_lines_win_and_cut_off_lines_are_passed_over(tmp_path: Path) -> None:
    rows = [*TESTS[::-1], student(0, 100, [42.0] * 4)]
    directory = make_run(tmp_path / "run", evaluations=rows)
    with (directory / "evaluations.jsonl").open("a") as file:
        file.write('{"policy": "student", "member": 0, "upd')
    record = load_run(directory)
    keys = [(row["member"], row["updates"]) for row in record.evaluations]
    assert keys == [(0, 100), (0, 200), (1, 100), (1, 200)]
    assert list(record.evaluations[0]["returns"]) == [42.0] * 4


def test_what_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    record = load_run(running(tmp_path / "run"))
    assert (record.teacher, record.dataset, record.members, record.metrics, record.evaluations) == (
        None,
        None,
        [],
        [],
        [],
    )


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_other_directories_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    directory = make_run(tmp_path / "run")
    (directory / name).unlink()
    with pytest.raises(UserError, match=r"^[^\n]*not a run directory[^\n]*$"):
        write_report(directory)
    assert not (directory / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("config.yaml", "seed: 1"),
        ("members.json", "[{"),
        ("manifest.json", "[]"),
    ],
)
def test_damaged_files_are_named_in_one_line(tmp_path: Path, name: str, content: str) -> None:
    directory = make_run(tmp_path / "run")
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{name}[^\n]*$"):
        load_run(directory)


# -- HTML ------------------------------------------------------------------------------------------


def test_every_report_is_one_sound_page(sample: Path) -> None:
    found = Page((sample / "report.html").read_text())
    names = [tag for tag, _ in found.tags]
    assert names.count("h1") == 1
    assert not {"script", "link", "iframe", "object"} & set(names)
    assert any(attrs.get("name") == "viewport" for tag, attrs in found.tags if tag == "meta")
    for tag, attrs in found.tags:
        for name in ("src", "href", "srcset"):
            assert (attrs.get(name) or "data:").startswith("data:"), f"{tag} loads {attrs[name]}"
        if tag == "img":
            assert len(attrs["alt"] or "") > 20
    for figure in found.figures():
        assert figure.tag.endswith("svg")
    assert "nan" not in found.text.lower().split()
    assert "None" not in found.text.partition("The whole config")[0]


def test_same_run_same_bytes(sample: Path) -> None:
    first = (sample / "report.html").read_bytes()
    assert write_report(sample).read_bytes() == first
    assert [path.name for path in sample.iterdir() if "report" in path.name] == ["report.html"]


def test_results_are_in_the_report(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])
    found = page(directory)
    result = summarize(load_run(directory), 200, 0)
    for key in ("iqm", "iqm_low", "iqm_high", "worst_member", "teacher", "dataset", "random"):
        assert number(result[key]) in found.text
    assert (
        "2 students, trained with CQL for 200 updates on 1,234 transitions of Pendulum-v1"
        in found.text
    )
    assert (
        "values are below observed returns, by 1.00 on average; they were always at or below them"
        " in 4 of 4" in found.text
    )
    assert "1 h 1 min" in found.text  # the students' stage
    assert "not finished" not in found.text
    assert len(found.figures()) == 7


def test_overestimation_is_called_so_for_its_own_weight(tmp_path: Path) -> None:
    """One sentence for each weight, which does not say its opposite afterwards."""
    rows = [
        student(m, 100, [1.0] * 4, value=v, excesses=[v + 7.0 + e for e in (-1.0, 0.0, 1.0, 0.0)])
        for m, v in enumerate([50.0, 50.0, -50.0, -50.0])
    ]
    text = page(make_run(tmp_path / "run", SWEEP, evaluations=rows)).text
    assert (
        "Conservative weight 1: the lower bound did not hold (overestimates by 57); it held in 0,"
        " did not hold in 2, cannot be told in 0 of 2 members. At the last test values are above"
        " observed returns, by 57.0" in text
    )
    assert "A higher conservative weight lowers them." in text
    held = text[text.index("Conservative weight 5: the lower bound held") :]
    assert "At the last test values are below observed returns, by 43.0" in held
    assert text.count("overestimate") == 1 and "still" not in held


def test_a_bound_that_cannot_be_told_is_not_called_broken_two_lines_on(tmp_path: Path) -> None:
    rows = [student(m, 100, [1.0] * 4, value=50.0) for m in range(2)]
    text = page(make_run(tmp_path / "run", evaluations=rows)).text
    assert "whether the lower bound held cannot be told" in text
    assert "overestimate" not in text and "higher conservative weight" not in text


def test_values_that_still_move_are_not_blamed_on_the_weight(tmp_path: Path) -> None:
    spread = (-1.0, 0.0, 1.0, 0.0)
    rows = [
        student(m, count, [1.0] * 4, value=v, excesses=[v + 7.0 + e for e in spread])
        for m in range(2)
        for count, v in ((100, 10.0), (200, 30.0), (300, 50.0))
    ]
    text = page(make_run(tmp_path / "run", evaluations=rows)).text
    assert (
        "The values still rise, by 20.00 over the last third of the tests: train longer before you"
        " judge the weight." in text
    )
    assert "higher conservative weight" not in text


def test_sweep_has_a_line_for_each_setting(tmp_path: Path) -> None:
    text = page(swept(tmp_path / "run")).text
    for name, iqm in (
        ("IQM, conservative weight 1", "-300.0"),
        ("IQM, conservative weight 5", "-700.0"),
    ):
        assert f"{name}{iqm}" in text


def test_unfinished_runs_say_so_and_how_to_go_on(tmp_path: Path) -> None:
    directory = interrupted(tmp_path / "a run")
    found = page(directory)
    assert "This run was interrupted" in found.text
    assert f"cqlray resume '{directory}'" in found.text
    assert "Member 1 became non-finite and is frozen as it was after 4,000 updates" in found.text
    assert "not all of them have been tested yet" in found.text
    assert "0021002" not in found.text


def test_users_strings_are_text_and_never_markup(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig(HOSTILE, kwargs={HOSTILE: HOSTILE}))
    directory = make_run(
        tmp_path / "run",
        [{HOSTILE: HOSTILE}],
        evaluations=[*REFERENCES, *TESTS],
        config=config,
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        created=HOSTILE,
        stages={HOSTILE: 1.0},
        finished=False,
    )
    text = write_report(directory).read_text()
    found = Page(text)
    assert "<script" not in text
    assert found.text.count(HOSTILE) > 8
    legend = "".join(node.text or "" for figure in found.figures() for node in figure.iter())
    assert HOSTILE in legend
    assert "script" not in {
        node.tag.rpartition("}")[2] for figure in found.figures() for node in figure.iter()
    }


def test_command_to_make_it_again_fits_the_run(tmp_path: Path) -> None:
    train = make_run(
        tmp_path / "train",
        config=RunConfig(dataset="/data", evaluation=EvaluationConfig(episodes=0)),
    )
    assert f"cqlray train --config {train}/config.yaml --out" in page(train).text
    assert "evaluation.episodes is 0" in page(train).text
    collect = _without_members(make_run(tmp_path / "collect", dataset_only=True))
    assert f"cqlray collect --config {collect}/config.yaml --out" in page(collect).text
    assert "no students yet" in page(collect).text


def test_64_members_stay_readable(tmp_path: Path) -> None:
    found = page(sweep_of_64(tmp_path / "run"))
    assert "64 students" in found.text
    summaries = [tag for tag, _ in found.tags if tag == "details"]
    assert len(summaries) == 4  # verdicts, members' table, training curves, config
    for figure in found.figures()[:3]:  # curves, profile, values
        words = [node.text for node in figure.iter() if node.text and "weight" in node.text]
        assert len(words) == 6 and "the other 10" in [node.text for node in figure.iter()]
    # the best is among the named
    assert "conservative weight 10, policy learning rate 0.0003" in words


def test_of_many_weights_an_overview_is_told(tmp_path: Path) -> None:
    sweep = [{"conservative_weight": float(weight)} for weight in range(6)]
    rows = [
        student(m, 100, [1.0] * 4, excesses=[-1.0] * 4 if m < 4 else [1.0] * 4) for m in range(6)
    ]
    text = page(make_run(tmp_path / "run", sweep, 1, evaluations=rows)).text
    assert (
        "it held for 4, did not hold for 2, cannot be told for 0 of 6 conservative weights" in text
    )


def test_untested_members_have_no_empty_tables(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT), evaluation=EvaluationConfig(episodes=0))
    text = page(make_run(tmp_path / "run", teacher=False, config=config)).text
    assert "logged data: offline reinforcement learning" in text
    assert (
        "2 students, trained with CQL on 1,234 transitions of logged data; there is no environment"
        in text
    )
    assert "Results" not in text and "Learning curves" not in text


def test_profiles_are_of_normalised_scores_where_there_are_references(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])
    alts = [attrs["alt"] or "" for tag, attrs in page(run).tags if tag == "img"]
    assert any(
        alt.startswith("Performance profiles of returns. Half of the episodes lie above -200.2")
        for alt in alts
    )
    description = {**dataset(), "reference_returns": {"random": [-1200.0], "teacher": [-200.0]}}
    (run / "dataset" / "dataset.json").write_text(json.dumps(description))
    alts = [attrs["alt"] or "" for tag, attrs in page(run).tags if tag == "img"]
    assert any(
        alt.startswith(
            "Performance profiles of normalised scores. Half of the episodes lie above 99.97"
        )
        for alt in alts
    )


def test_dollars_are_no_mathematics(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [{"cost": "$x^{$ and $"}, {"cost": "1$ 2$"}], 1, evaluations=TESTS
    )
    svg = plots.learning_curves(load_run(run), 200, 0)
    assert "cost 1$ 2$" in svg


# -- figures ---------------------------------------------------------------------------------------


def test_figures_are_deterministic_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    record = load_run(swept(tmp_path / "run"))
    drawn = [
        (
            plots.learning_curves(record, 200, 0),
            plots.value_calibration(record),
            plots.dataset_returns(record.dataset),
        )
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert all(mpl.rcParams[name] == mpl.rcParamsDefault[name] for name in style.SETTINGS)
    for svg in drawn[0]:
        ElementTree.fromstring(svg)
        assert "dc:date" not in svg


def test_figures_say_what_they_show(tmp_path: Path) -> None:
    record = load_run(swept(tmp_path / "run"))
    curves = plots.learning_curves(record, 200, 0)
    for words in (
        "conservative weight 1",
        "conservative weight 5",
        "teacher -150.0",
        "dataset mean -700.0",
        "random -1,200",
    ):
        assert words in curves
    for colour in style.COLOURS[:2]:
        assert colour.lower() in curves.lower()
    values = plots.value_calibration(record)
    assert "overestimation" in values
    assert "underestimation" in values
    assert "best -150.0" in plots.teacher_curve(record)
    assert re.search(r">episodes<", plots.dataset_returns(record.dataset))


def test_other_data_draws_another_figure(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "run", evaluations=TESTS))
    changed = dataclasses.replace(record, evaluations=record.evaluations[:-1])
    assert plots.learning_curves(record, 200, 0) != plots.learning_curves(changed, 200, 0)


# -- TensorBoard and terminal ----------------------------------------------------------------------


def test_tensorboard_holds_every_member_and_writes_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])
    (directory / "tensorboard" / "stale").mkdir(parents=True)
    assert write_tensorboard(directory)
    assert write_tensorboard(directory)
    folders = sorted(path.name for path in (directory / "tensorboard").iterdir())
    assert folders == ["member-0", "member-1", "teacher"]
    assert not list(directory.glob(".tensorboard*"))
    events = EventAccumulator(str(directory / "tensorboard" / "member-1")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/td_loss")]
    assert losses == [(100, 0.5), (200, 0.5)]
    assert [event.step for event in events.Scalars("eval/return_mean")] == [100, 200]
    assert events.Scalars("eval/value")[0].value == -8.0
    assert "train/conservative_gap" not in events.Tags()["scalars"]  # it was null
    teacher = EventAccumulator(str(directory / "tensorboard" / "teacher")).Reload()
    assert [event.value for event in teacher.Scalars("eval/return_mean")] == [-900.0, -150.0]


def test_table_holds_every_line(sample: Path) -> None:
    record = load_run(sample)
    console = Console(file=io.StringIO(), width=200)
    table = results_table(summarize(record, 200, 0), record)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert table.row_count == len(record.members) + len(summarize(record, 200, 0)["groups"]) + 4
    assert "nan" not in text
    text.encode("ascii", errors="ignore")


def test_table_by_hand(tmp_path: Path) -> None:
    record = load_run(swept(tmp_path / "run"))
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(summarize(record, 200, 0), record))
    lines = [re.split(r" {2,}", line.strip()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["3", "1", "5", "200", "-800.0", "-800.0 to -800.0"] in lines
    assert ["best IQM [95%]", "1", "-300.0", "[-400.0, -200.0]"] in lines
    assert ["teacher", "-150.0"] in lines


@pytest.mark.parametrize(
    ("of_data", "names"),
    [((), ""), (("teacher",), "teacher"), (("teacher", "random"), "teacher and random policy")],
)
def test_references_that_this_run_did_not_test_are_told(
    tmp_path: Path, of_data: tuple[str, ...], names: str
) -> None:
    told = [{key: row[key] for key in row if key != "lengths"} for row in REFERENCES]
    rows = [
        theirs if row["policy"] in of_data else row
        for row, theirs in zip(REFERENCES, told, strict=True)
    ]
    run = make_run(tmp_path / "run", evaluations=[*rows, *TESTS])
    record = load_run(run)
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(summarize(record, 200, 0), record))
    words = ": as tested when the data was collected, on episodes that need not be the students'"
    for said in (console.file.getvalue(), page(run).text):  # type: ignore[attr-defined]
        text = " ".join(said.split())
        assert (words in text) == bool(of_data)
        assert f"{names}{words}" in text or f"{names.capitalize()}{words}." in text or not of_data


def test_square_brackets_are_no_markup(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "run", [{"[red]": "[/]"}], evaluations=TESTS))
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(summarize(record, 200, 0), record))
    assert "[red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_tensorboard_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    directory = running(tmp_path / "run")
    assert write_tensorboard(directory)
    assert list((directory / "tensorboard").iterdir()) == []


def test_reading_harms_nothing(sample: Path) -> None:
    before = sample.parent / "before"
    assert any(before.iterdir())
    for path in before.rglob("*"):
        if path.is_file():
            assert (sample / path.relative_to(before)).read_bytes() == path.read_bytes()


def test_numbers_for_people() -> None:
    words = [
        number(v)
        for v in (None, float("nan"), -0.0, -0.0001, 0.5, -3.14159, 145.67, -1226.4, 123456.7, 2e9)
    ]
    assert words == [
        "-",
        "-",
        "0.000",
        "0.000",
        "0.500",
        "-3.14",
        "145.7",
        "-1,226",
        "123,457",
        "2e+09",
    ]
    assert [duration(s) for s in (0.31, 48.2, 59.7, 723, 19200)] == [
        "0.3 s",
        "48 s",
        "1 min 0 s",
        "12 min 3 s",
        "5 h 20 min",
    ]


def test_settings_are_set_against_each_other(tmp_path: Path) -> None:
    text = page(swept(tmp_path / "run")).text.replace("\n", "")
    assert "conservative weight 1conservative weight 5100%-" in text, (
        "two members a side have no interval"
    )
    five = [student(m, 100, [float(m % 5 - 2 * (m // 5))] * 2) for m in range(10)]
    text = page(make_run(tmp_path / "five", SWEEP, seeds=5, evaluations=five)).text.replace(
        "\n", ""
    )
    assert "conservative weight 1conservative weight 582%" in text and "82%-" not in text
    one_each = [student(m, 100, [-m - 1.0] * 4) for m in range(2)]
    single = page(make_run(tmp_path / "single", SWEEP, seeds=1, evaluations=one_each)).text
    assert "IQM, conservative weight 5" in single and "Probability of improvement" not in single


def test_the_headline_of_a_sweep_is_its_best_setting_and_no_mixture(tmp_path: Path) -> None:
    found = page(swept(tmp_path / "run"))
    assert (
        "4 students, trained with CQL for 200 updates on 1,234 transitions of Pendulum-v1, in 2"
        " settings, of which the best, conservative weight 1, reaches an interquartile mean return"
        " of -300.0 (95% interval -400.0 to -200.0; chosen by these returns, so it flatters); the"
        " teacher's tests average -150.0, the dataset -700.0, a random policy -1,200." in found.text
    )
    rows = found.text.replace("\n", "")
    assert "IQM, conservative weight 1 (best of 2 settings)-300.0[-400.0, -200.0]-400.0" in rows
    assert "IQM of all members, whatever their setting-500.0" in rows


def test_aggregates_side_by_side(tmp_path: Path) -> None:
    returns = [-1000.0, -170.0, -160.0, -150.0, -20.0]
    run = make_run(
        tmp_path / "run", seeds=5, evaluations=[student(m, 100, [r]) for m, r in enumerate(returns)]
    )
    (run / "dataset" / "dataset.json").write_text(
        json.dumps({**dataset(), "reference_scores": {"random": -1000.0, "expert": 0.0}})
    )
    text = page(run).text.replace("\n", "")
    told = re.search(
        r"all members(-160.0 \[.*?\])(-160.0 \[.*?\])(-300.0 \[.*?\])(30.00 \[.*?\])", text
    )
    assert told, "IQM, median, mean, optimality gap"
    assert "IQM, normalised84.00" in text
    assert "Of so few members the interval is somewhat too narrow" in text


def test_baselines_are_not_counted_among_the_members_of_the_iqm(tmp_path: Path) -> None:
    settings = [{"algorithm": name} for name in ("cql", "bc", "sac")]
    rows = [student(m, 100, [-1.0 * m, -2.0]) for m in range(3)]
    text = page(make_run(tmp_path / "run", settings, seeds=1, evaluations=rows)).text
    assert "mean of the CQL member" in text
    assert "With one member the interval is about this one policy" in text


def test_a_recorded_video_is_in_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "An episode" not in write_report(run).read_text()
    (run / "video.gif").write_bytes(b"GIF89a...")
    assert "data:image/gif;base64,R0lGODlhLi4u" in write_report(run).read_text()


def test_a_run_under_way_is_told_from_an_interrupted_one(tmp_path: Path) -> None:
    run = RunDirectory(make_run(tmp_path / "run"))
    run.update_manifest(finished=False)
    assert "This run was interrupted" in write_report(run.path).read_text()
    with run.locked():
        assert run.in_use()
        assert "This run is under way" in write_report(run.path).read_text()
    assert not run.in_use()
