"""The report of a run: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import shlex
from typing import Any

import yaml

from cqlray.config.schema import NO_ENVIRONMENT
from cqlray.results.record import events, fitted_q_rows, load_run
from cqlray.results.report import plots
from cqlray.results.report.actions_section import actions_section
from cqlray.results.report.dataset_section import dataset_section
from cqlray.results.report.formatting import (
    environment_name,
    interval,
    number,
    repeat_command,
    setting_name,
    versions_in_words,
)
from cqlray.results.report.groups import groups_of
from cqlray.results.report.improvement_section import improvement_section
from cqlray.results.report.page import escape, figure, figures, page, paragraph, section
from cqlray.results.report.profile_figure import profile_figure
from cqlray.results.report.results_section import (
    aggregates_section,
    results_section,
    three_ways_section,
)
from cqlray.results.report.selection_section import selection_section
from cqlray.results.report.timeline_section import timeline_section
from cqlray.results.report.training_section import training_section
from cqlray.results.report.values_section import values_section
from cqlray.results.report.verdict_section import verdict_section
from cqlray.results.statistics.reference_scores import reference_scores
from cqlray.results.statistics.summary import RunRecord, best_group, cql_groups, is_cql, summarize
from cqlray.storage.locations import AnyPath
from cqlray.storage.outside import read_file
from cqlray.storage.run_directory import REPORT, VIDEO, write_bytes

LARGEST_VIDEO = 8 * 2**20  # bytes of a GIF; with a larger one the page opens slowly


def write_report(
    directory: AnyPath, run: RunRecord | None = None, path: AnyPath | None = None
) -> AnyPath:
    """Write the report of the run directory as it is now, finished or not; returns its path.

    Args:
        directory: the run directory.
        run: its record, if it was read already.
        path: where to write, by default DIRECTORY/report.html.

    Raises:
        UserError: as load_run.
    """
    path = directory / REPORT if path is None else path
    write_bytes(path, render(run or load_run(directory)).encode())
    return path


def render(run: RunRecord) -> str:
    """The report's HTML; the same run directory gives the same text."""
    samples, seed = run.config["evaluation"]["bootstrap_samples"], run.config["seed"]
    result = summarize(run, samples, seed)
    environment = environment_name(run.config["env"]["id"])
    parts = [
        f"<h1>{escape(environment)}: offline reinforcement learning with CQL</h1>",
        paragraph(
            f"{run.directory}, begun {run.manifest.get('created', 'at an unknown time')}", "soft"
        ),
        _banner(run),
        paragraph(_sentence(run, result), "lead"),
        verdict_section(run),
        actions_section(run),
        results_section(run, result),
        _curves(run, result, samples, seed),
        aggregates_section(result),
        training_section(run),
        three_ways_section(run, samples, seed),
        improvement_section(groups_of(run), samples, seed),
        _video(run),
        values_section(run, samples, seed),
        selection_section(run, fitted_q_rows(run), samples, seed),
        dataset_section(run),
        _teacher(run),
        timeline_section(run, events(run)),
        _again(run),
    ]
    return page(f"cqlray: {environment}", parts)


def _banner(run: RunRecord) -> str:
    """What a reader must know first: that the run is not finished, or that members were frozen."""
    lines = []
    if run.running:
        lines.append("This run is under way; the report shows what there is so far.")
    elif not run.manifest.get("finished"):
        resume = f"cqlray resume {shlex.quote(str(run.directory))}"
        lines.append(
            "This run was interrupted; the report shows what there is. Go on with"
            f" <code>{escape(resume)}</code>"
        )
    for member, updates in run.manifest.get("frozen", {}).items():
        lines.append(
            escape(
                f"Member {member} became non-finite and is frozen as it was after {updates:,}"
                " updates."
            )
        )
    return "\n".join(f'<p class="warn" role="status">{line}</p>' for line in lines)


def _sentence(run: RunRecord, result: dict[str, Any]) -> str:
    """The run in one sentence."""
    environment = environment_name(run.config["env"]["id"])
    size = sum(is_cql(entry) for entry in run.members)
    data = (
        f"{run.dataset['transitions']:,} transitions of {environment}"
        if run.dataset
        else environment
    )
    students = f"{size} student{'s' if size != 1 else ''}"
    if result["iqm"] is not None:
        return (
            f"{students}, trained with CQL for {result['members'][0]['updates']:,} updates on"
            f" {data}, {_reached(result, size)}"
        )
    if run.members and run.config["env"]["id"] == NO_ENVIRONMENT:
        return f"{students}, trained with CQL on {data}; there is no environment to test them in."
    if run.members and run.config["evaluation"]["episodes"] == 0:
        return (
            f"{students}, trained with CQL on {data}; none was tested, as evaluation.episodes is 0."
        )
    if run.members:
        return f"{students} in training with CQL on {data}; not all of them have been tested yet."
    if run.dataset:
        mean = number(run.dataset["returns"]["mean"])
        return (
            f"A dataset of {data} in {run.dataset['episodes']:,} episodes, with mean return {mean};"
            " no students yet."
        )
    return f"A run on {environment} that has no dataset yet."


def _reached(result: dict[str, Any], size: int) -> str:
    """What return the students reach (those of the best setting, where there are several), beside
    the references' mean returns.
    """
    best = best_group(result)
    shown, reach = best or result, "reaches" if size == 1 else "reach"
    how = "" if best is None else "; chosen by these returns, so it flatters"
    if best is not None:
        reach = (
            f"in {len(cql_groups(result))} settings, of which the best,"
            f" {setting_name(best['swept'])}, reaches"
        )
    names = (
        ("the teacher's tests average", "teacher"),
        ("the dataset", "dataset"),
        ("a random policy", "random"),
    )
    references = [f"{name} {number(result[key])}" for name, key in names if result[key] is not None]
    kind = "an interquartile mean" if size > 1 else "a mean"
    return (
        f"{reach} {kind} return of {number(shown['iqm'])} (95% interval"
        f" {number(shown['iqm_low'])} to {number(shown['iqm_high'])}{how})"
        f"{'; ' if references else ''}{', '.join(references)}."
    )


def _curves(run: RunRecord, result: dict[str, Any], samples: int, seed: int) -> str:
    """Learning curves and performance profiles."""
    if not run.members or all(row["policy"] != "student" for row in run.evaluations):
        return ""
    words = f"Return over updates: {_thin_lines(run)} (thin), IQM (bold) and 95% interval (band)."
    if len(run.members) == 1:
        words = "Return over updates: the member's mean and its 95% interval (band)."
    last = best_group(result) or result
    alt = f"Learning curves. The last IQM is {number(last['iqm'])} {interval(last)}."
    if result["iqm"] is None:
        words = (
            f"Return over updates of the run's {len(run.members)} members; not all of them have"
            " been tested yet."
        )
        alt = "Learning curves of the members that have been tested."
    scores = reference_scores(run.dataset) if run.dataset else None
    return section(
        "Learning curves",
        figures(
            figure(plots.learning_curves(run, samples, seed), alt, words),
            profile_figure(groups_of(run), scores, samples, seed),
        ),
    )


def _thin_lines(run: RunRecord) -> str:
    """How many members' curves are drawn."""
    if len(run.members) <= plots.MOST_LINES:
        return f"{len(run.members)} members"
    return f"{plots.MOST_LINES} of {len(run.members):,} members"


def _teacher(run: RunRecord) -> str:
    """The teacher's learning curve."""
    if not run.teacher or not run.teacher["tests"]:
        return ""
    alt = (
        "Learning curve of the teacher. Its best test has mean return"
        f" {number(run.teacher['best_return'])}."
    )
    words = (
        "The teacher's tests while it learned online with SAC. The results above test its best"
        " snapshot afresh."
    )
    return section("Teacher", figures(figure(plots.teacher_curve(run), alt, words)))


def _video(run: RunRecord) -> str:
    """The video that `cqlray video` recorded, if there is one."""
    path = run.directory / VIDEO
    if not path.is_file():
        return ""
    content = read_file(path)
    if len(content) > LARGEST_VIDEO:
        size = f"{len(content) / 2**20:.1f} MiB"
        return section(
            "An episode",
            paragraph(
                f"The video of the episode is too large for this page ({size}); it is {path}."
            ),
        )
    data = base64.b64encode(content).decode()
    alt = "One episode of each policy, side by side; above each stand its name and return."
    image = f'<img alt="{alt}" src="data:image/gif;base64,{data}">'
    return section("An episode", f'<div class="figures"><figure>{image}</figure></div>')


def _baselines(run: RunRecord) -> str:
    """A hint at baselines, for a run that has none to compare CQL with."""
    if run.config.get("baselines") or not run.members:
        return ""
    return paragraph(
        "With --baselines bc sac behaviour cloning and offline SAC stand beside CQL: what CQL"
        " brings.",
        "soft",
    )


def _again(run: RunRecord) -> str:
    """How to repeat the run: the command, the versions and the config."""
    versions = versions_in_words(run.manifest.get("versions", {}))
    began = run.manifest.get("command")
    config = yaml.safe_dump(
        run.config, sort_keys=False, default_flow_style=None, allow_unicode=True
    )
    return "\n".join(
        [
            "<h2>Make it again</h2>",
            f"<pre>{escape(repeat_command(run))}</pre>",
            f'<p class="soft">It was begun as <code>{escape(began)}</code></p>' if began else "",
            _baselines(run),
            f'<p class="soft">Versions: {escape(versions)}</p>' if versions else "",
            f"<details><summary>The whole config</summary><pre>{escape(config)}</pre></details>",
        ]
    )
