"""A report on several runs of one environment, side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cqlray.config.schema import NO_ENVIRONMENT
from cqlray.errors import UserError
from cqlray.results.record import load_run
from cqlray.results.report.formatting import (
    aggregate_words,
    environment_name,
    number,
    setting_name,
    setting_or_all,
)
from cqlray.results.report.groups import Group, groups_of
from cqlray.results.report.improvement_section import improvement_section
from cqlray.results.report.page import escape, figure, figures, page, paragraph, section, table
from cqlray.results.report.plots import draw_curves
from cqlray.results.report.profile_figure import profile_figure
from cqlray.results.report.results_section import BEST_FLATTERS, THREE_WAYS
from cqlray.results.report.style import as_svg, legend_below
from cqlray.results.statistics.reference_scores import ReferenceScores, reference_scores
from cqlray.results.statistics.resampling import iqm_of_members
from cqlray.results.statistics.scores import group_scores
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import write_bytes


def write_comparison(directories: Sequence[AnyPath], path: AnyPath) -> AnyPath:
    """Write one HTML file that compares runs, and return its path.

    Raises:
        UserError: as load_run; fewer than two runs, one given twice, runs of different
            environments, one without tests.
    """
    write_bytes(path, render([load_run(directory) for directory in directories]).encode())
    return path


def render(runs: Sequence[RunRecord]) -> str:
    """The page; the same records give the same text.

    Raises:
        UserError: as write_comparison.
    """
    require_comparable(runs)
    samples = max(run.config["evaluation"]["bootstrap_samples"] for run in runs)
    seed, names = runs[0].config["seed"], run_names(runs)
    groups = [
        dataclasses.replace(group, name=", ".join(filter(None, (name, setting_name(group.swept)))))
        for run, name in zip(runs, names, strict=True)
        for group in groups_of(run)
    ]
    groups = [group for group in groups if group.returns is not None]
    environment = environment_name(runs[0].config["env"]["id"])
    parts = [
        f"<h1>{escape(environment)}: {len(runs)} runs compared</h1>",
        paragraph(", ".join(str(run.directory) for run in runs), "soft"),
        "\n".join(
            f'<p class="warn" role="status">{escape(line)}</p>'
            for line in _differences(runs, names)
        ),
        paragraph(_sentence(groups), "lead"),
        _scores(runs, names, samples),
        _figures(groups, _references(runs), samples, seed),
        improvement_section(groups, samples, seed),
    ]
    return page(f"cqlray: {environment}, {len(runs)} runs", parts)


def require_environment(run: RunRecord) -> None:
    """Raises UserError, with what can be done instead, where a run has no environment, so that its
    policies can never be tested.
    """
    if run.config["env"]["id"] == NO_ENVIRONMENT:
        raise UserError(
            f"{run.directory} has no environment (env.id none), so no episode can be played with"
            f" its policies; what its data says of them: cqlray evaluate {run.directory}"
            f" --fitted-q, then cqlray report {run.directory}"
        )


def require_comparable(runs: Sequence[RunRecord]) -> None:
    """Raises UserError unless there are two runs or more, of one environment, each with a test of
    its members.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs")
    places = [str(run.directory) for run in runs]
    if len(set(places)) < len(places):
        raise UserError(
            f"{max(places, key=places.count)} is given twice; a comparison needs different runs"
        )
    for run in runs:
        require_environment(run)
    for run in runs[1:]:
        if _environment(run) != _environment(runs[0]):
            raise UserError(
                f"runs of different environments have no returns to compare: {places[0]} is of"
                f" {_environment(runs[0])}, {run.directory} is of {_environment(run)}"
            )
    for run in runs:
        if not run.members:
            raise UserError(
                f"{run.directory} holds collected data and no students; it has nothing to compare"
            )
        if all(group.returns is None for group in groups_of(run)):
            raise UserError(
                f"{run.directory} has no evaluations of its members yet; it can be compared once"
                " they were tested"
            )


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """The last parts of the directories' names where all are different, else the whole paths."""
    short = [str(run.directory).rstrip("/").rpartition("/")[2] for run in runs]
    return short if len(set(short)) == len(short) else [str(run.directory) for run in runs]


def _environment(run: RunRecord) -> str:
    """Everything that determines an environment, in words."""
    env, made = run.config["env"], run.manifest.get("environment") or {}
    # The environment that was made may have a limit that the config does not set.
    steps = made.get("max_episode_steps") or env.get("max_episode_steps")
    limit = f", at most {steps} steps" if steps else ""
    options = f", {json.dumps(env['kwargs'], sort_keys=True)}" if env.get("kwargs") else ""
    return f"{environment_name(env['id'])}{limit}{options}"


def _differences(runs: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """What a reader must know before comparing numbers."""
    lines = []
    digests = [None if run.dataset is None else run.dataset["digest"] for run in runs]
    if len(set(digests)) > 1:
        listed = ", ".join(
            f"{name} {(digest or 'none')[:12]}" for name, digest in zip(names, digests, strict=True)
        )
        lines.append(
            f"The runs' datasets differ, so more than the training is compared. Digests: {listed}."
        )
    tests = [(run.config["seed"], run.config["evaluation"]["episodes"]) for run in runs]
    if len(set(tests)) > 1:
        listed = ", ".join(
            f"{name} {e} episodes of seed {s}" for name, (s, e) in zip(names, tests, strict=True)
        )
        lines.append(
            f"The runs were tested on different episodes, which may differ in difficulty: {listed}."
        )
    for run, name in zip(runs, names, strict=True):
        if not run.manifest.get("finished"):
            lines.append(f"{name} is not finished: its numbers are those of its tests so far.")
    return lines


def _sentence(groups: Sequence[Group]) -> str:
    scores = [
        iqm_of_members(group.returns) if group.returns is not None else float("nan")
        for group in groups
    ]
    if not np.isfinite(scores).any():
        return "None of the groups has a finite score."
    best = int(np.nanargmax(scores))
    return (
        f"The highest interquartile mean return at the last test is {number(scores[best])}, of"
        f" {groups[best].name}."
    )


def _scores(runs: Sequence[RunRecord], names: Sequence[str], samples: int) -> str:
    """A row for each run and setting."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        for group in group_scores(run, samples, run.config["seed"]):
            size = [str(len(group.members)), str(len(group.updates))]
            scores = map(aggregate_words, group.three_ways)
            rows.append([name, setting_or_all(group.swept), *size, *scores])
    head = ["run", "setting", "members", "tests", *THREE_WAYS]
    note = (
        "IQM over members' mean returns and its 95% interval, by the bootstrap over members and the"
        f" episodes that they share (after Agarwal et al. 2021). {BEST_FLATTERS}"
    )
    return section("Results", table(head, rows, text=2), paragraph(note, "soft"))


def _references(runs: Sequence[RunRecord]) -> ReferenceScores | None:
    """The ends of the normalised scale, where they are the same for all runs."""
    found = {None if run.dataset is None else reference_scores(run.dataset) for run in runs}
    return found.pop() if len(found) == 1 else None


def _figures(
    groups: Sequence[Group], scores: ReferenceScores | None, samples: int, seed: int
) -> str:
    alt = f"Learning curves of {len(groups)} groups. {_sentence(groups)}"
    words = "Return over updates: IQM of each group's members and its 95% interval."
    return section(
        "Curves",
        figures(
            figure(_curves(groups, samples, seed), alt, words),
            profile_figure(groups, scores, samples, seed),
        ),
    )


@as_svg
def _curves(drawn: Any, groups: Sequence[Group], samples: int, seed: int) -> None:
    axes = drawn.add_subplot()
    draw_curves(axes, groups, samples, seed)
    legend_below(drawn, axes)
