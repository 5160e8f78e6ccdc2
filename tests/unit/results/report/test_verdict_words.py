"""The verdict in words, the same in the terminal, the report and the model card."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from cqlray.api.session import result
from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, RunConfig
from cqlray.results.record import load_run
from cqlray.results.report.html import render
from cqlray.results.report.model_card_scores import score_lines
from cqlray.results.report.page import escape
from cqlray.results.report.table import results_table, title
from cqlray.results.report.verdict_words import algorithm_name, verdict_sentence, verdicts_of
from cqlray.results.statistics.summary import summarize
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import estimate, make_run, student, write_lines
from tests.unit.results.statistics.test_verdict import judged


def test_terminal_report_card_and_json_say_the_same(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    write_lines(directory / "fqe.jsonl", [judged(0, -1.0), judged(1, -1.0)])
    run = load_run(directory)
    sentence = verdict_sentence(run, verdicts_of(run))
    assert sentence.startswith(
        "Better than the log? Worse: CQL with conservative weight 5 is estimated at -3.50 ["
    )
    assert "the policy that made the log earned -2.50 [" in sentence
    assert "both discounted by 0.99, from the same first states" in sentence
    out = io.StringIO()
    summary = result(RunDirectory.open(directory), run)
    Console(file=out, width=2_000).print(results_table(summary, run))
    assert sentence in " ".join(out.getvalue().split()) and escape(sentence) in render(run)
    card = "\n".join(score_lines(run, 0, 200, "fqe"))
    assert sentence.partition(" is estimated at ")[2] in card and "Worse: its setting" in card
    assert summary["verdict"]["verdict"] == "worse" and summary["verdict"]["sentence"] == sentence
    (setting,) = summary["verdict"]["settings"]
    assert setting["verdict"] == "worse" and setting["by"] == "estimates"


def test_tests_are_never_beside_a_discounted_number(tmp_path: Path) -> None:
    rows = [student(member, 200, [-100.0, -110.0]) for member in (0, 1)]
    directory = make_run(tmp_path / "run", evaluations=rows)
    write_lines(directory / "fqe.jsonl", [judged(0, -1.0), judged(1, -1.0)])
    run = load_run(directory)
    sentence = verdict_sentence(run, verdicts_of(run))
    assert "in tests" in sentence and "undiscounted" in sentence
    assert "-105.0" in sentence and "-2.50" not in sentence
    page = render(run)
    assert "both" not in page.split("Better than the log?")[2].split("</p>")[0]
    assert "-2.50" in page  # in its own table


def test_the_best_of_several_settings_says_that_it_was_chosen(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", [{"conservative_weight": w} for w in (1.0, 5.0)], 1)
    write_lines(directory / "fqe.jsonl", [judged(0, 0.5), judged(1, 0.9)])
    run = load_run(directory)
    assert "CQL with conservative weight 5 (the best of 2 settings by this number" in (
        verdict_sentence(run, verdicts_of(run))
    )


def test_estimates_of_an_older_version_say_that_nothing_can_be_told(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    assert verdict_sentence(load_run(directory), []) == ""
    write_lines(directory / "fqe.jsonl", [estimate(0, 200, 1.0)])
    assert "Cannot be told" in verdict_sentence(load_run(directory), [])


def test_without_tests_the_terminals_table_holds_the_estimates(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    write_lines(directory / "fqe.jsonl", [judged(0, -1.0), judged(1, -2.0)])
    run = load_run(directory)
    out = io.StringIO()
    Console(file=out, width=200).print(
        results_table(result(RunDirectory.open(directory), run), run)
    )
    lines = [re.split(r" {2,}", line.strip()) for line in out.getvalue().splitlines()]
    assert ["member", "seed", "updates", "estimate (discounted)", "95% interval"] in lines
    assert ["0", "0", "200", "-3.50"] in lines and ["1", "1", "200", "-4.50"] in lines
    (mean,) = (line for line in lines if line[0] == "mean [95%]")
    (log,) = (line for line in lines if line[0] == "the log [95%]")
    assert mean[1] == "-4.00" and log[1:] == ["-2.50", "[-2.52, -2.48]"]
    assert not any(line[0] in ("teacher", "dataset", "random") for line in lines)


def test_the_terminal_and_the_report_lead_with_the_same_number(tmp_path: Path) -> None:
    rows = [student(m, 200, [value]) for m, value in enumerate((-300.0, -100.0))]
    settings = [{"conservative_weight": w} for w in (1.0, 5.0)]
    run = load_run(make_run(tmp_path / "run", settings, seeds=1, evaluations=rows))
    out = io.StringIO()
    Console(file=out, width=200).print(results_table(summarize(run, 200, 0), run))
    assert re.search(r"best IQM \[95%\] +5 +-100\.0", out.getvalue())
    assert "conservative weight 5, reaches an interquartile mean return of -100.0" in render(run)
    assert verdict_sentence(run, verdicts_of(run)).count("-100.0") >= 1


def test_algorithms_are_called_by_their_names(tmp_path: Path) -> None:
    settings = [
        {"algorithm": "cql", "conservative_weight": 0.0},
        {"algorithm": "sac", "conservative_weight": 0.0},
        {"algorithm": "bc", "conservative_weight": 5.0},
    ]
    run = load_run(make_run(tmp_path / "run", settings, seeds=1))
    assert [algorithm_name(run, entry) for entry in run.members] == [
        "CQL with conservative weight 0, which is offline SAC",
        "the baseline offline SAC",
        "the baseline behaviour cloning",
    ]


def test_the_table_of_a_log_is_not_headed_by_none(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT))
    run = load_run(make_run(tmp_path / "run", config=config))
    assert title(run) == "logged data: CQL, 100,000 updates for each member"
