"""The report of a run: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import yaml

from cqlray.evaluation.calibration import BoundCheck, check_bounds
from cqlray.evaluation.scores import Aggregate, group_scores
from cqlray.evaluation.summary import Calibration, RunRecord, calibrations, is_cql, summarize
from cqlray.filesystem import AnyPath
from cqlray.reporting import plots
from cqlray.reporting.record import load_run
from cqlray.reporting.words import (
    NOTHING,
    count,
    duration,
    interval,
    normalized_by,
    number,
    option_name,
    setting_name,
    setting_value,
)
from cqlray.storage import write_bytes

# The policy forbids every load but the figures, which are in the file: a report can be mailed and opened without worry.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636e; --line: #dfe3e8; --page: #fbfcfd; --card: #fff;
  --accent: #0072b2; --warn: #fff3d6; --warn-ink: #5c4300 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a0a8b2; --line: #363c44; --page: #15181b;
  --card: #1d2125; --accent: #56b4e9; --warn: #453712; --warn-ink: #ffe6a8 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere }
.soft, figcaption { color: var(--soft); font-size: .875rem }
.lead { font-size: 1.1rem }
.warn { background: var(--warn); color: var(--warn-ink); padding: .75rem 1rem; border-radius: .5rem; margin: 1rem 0 }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
  margin: .75rem 0; width: fit-content; max-width: 100% }
.wide { max-height: none }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .9rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--soft); font-weight: 500; position: sticky; top: 0; background: var(--card) }
th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
tr.strong td { font-weight: 600 }
@media (max-width: 34rem) { th, td { padding: .4rem .55rem } th, td:first-child { white-space: normal }
  .wide td:first-child { min-width: 10rem } }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem }
figcaption { margin: .4rem .1rem 0 }
.bar { display: block; height: .7rem; min-width: 2px; border-radius: .2rem; background: var(--accent) }
.track { width: min(16rem, 30vw) }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  font-size: .85rem; line-height: 1.45; margin: .5rem 0 }
code { font-size: .9em }
summary { cursor: pointer; color: var(--accent) }
"""


def write_report(directory: AnyPath) -> AnyPath:
    """Write DIRECTORY/report.html from what the run directory holds now, finished or not.

    Raises:
        UserError: as load_run.
    """
    path = directory / "report.html"
    write_bytes(path, render(load_run(directory)).encode())
    return path


def render(run: RunRecord) -> str:
    """The report's HTML; the same record gives the same text."""
    samples, seed = run.config["evaluation"]["bootstrap_samples"], run.config["seed"]
    result = summarize(run, samples, seed)
    environment = run.config["env"]["id"]
    parts = [
        f"<h1>{_escape(environment)}: offline reinforcement learning with CQL</h1>",
        f'<p class="soft">{_escape(run.directory)}, begun {_escape(run.manifest.get("created", "at an unknown time"))}</p>',
        _banner(run),
        f'<p class="lead">{_escape(_sentence(run, result))}</p>',
        _results(run, result),
        _three_ways(run, samples, seed),
        _figures(run, result, samples, seed),
        _video(run),
        _values(run, samples, seed),
        _dataset(run),
        _timeline(run),
        _again(run),
    ]
    return _PAGE.format(title=_escape(f"cqlray: {environment}"), style=_STYLE, body="\n".join(part for part in parts if part))


def _banner(run: RunRecord) -> str:
    """What a reader must know first: a run that is not finished, members that were frozen."""
    lines = []
    if run.running:
        lines.append("This run is under way; the report shows what there is so far.")
    elif not run.manifest.get("finished"):
        resume = f"cqlray resume {shlex.quote(str(run.directory))}"
        lines.append(f"This run was interrupted; the report shows what there is. Go on with <code>{_escape(resume)}</code>")
    for member, updates in run.manifest.get("frozen", {}).items():
        lines.append(_escape(f"Member {member} became non-finite and is frozen as it was after {updates:,} updates."))
    return "\n".join(f'<p class="warn" role="status">{line}</p>' for line in lines)


def _sentence(run: RunRecord, result: dict[str, Any]) -> str:
    """The run in one sentence."""
    environment, size = run.config["env"]["id"], sum(is_cql(entry) for entry in run.members)
    data = f"{run.dataset['transitions']:,} transitions of {environment}" if run.dataset else environment
    students = f"{size} student{'s' if size != 1 else ''}"
    if result["iqm"] is not None:
        names = (("the teacher's tests average", "teacher"), ("the dataset", "dataset"), ("a random policy", "random"))
        references = [f"{name} {number(result[key])}" for name, key in names if result[key] is not None]
        return (
            f"{students}, trained with CQL for {result['members'][0]['updates']:,} updates on {data}, "
            f"reach{'es' if size == 1 else ''} an interquartile mean return of {number(result['iqm'])} "
            f"(95% interval {number(result['iqm_low'])} to {number(result['iqm_high'])})"
            f"{'; ' if references else ''}{', '.join(references)}."
        )
    if run.members and run.config["evaluation"]["episodes"] == 0:
        return f"{students}, trained with CQL on {data}; none was tested, as evaluation.episodes is 0."
    if run.members:
        return f"{students} in training with CQL on {data}; not all of them have been tested yet."
    if run.dataset:
        mean = number(run.dataset["returns"]["mean"])
        return f"A dataset of {data} in {run.dataset['episodes']:,} episodes, with mean return {mean}; no students yet."
    return f"A run on {environment} that has no dataset yet."


def _results(run: RunRecord, result: dict[str, Any]) -> str:
    """Aggregates and references, then a line for each member."""
    if not run.members:
        return ""
    lines = [_aggregate_line(f"IQM, {setting_name(group['swept'])}", group) for group in result["groups"]]
    everyone = all(is_cql(entry) for entry in run.members)
    lines.append(_aggregate_line(f"IQM of all {'' if everyone else 'CQL '}members", result))
    if scores := result["normalized"]:
        lines.append(["IQM, normalised", number(scores["iqm"]), interval(scores), ""])
    references = (("teacher", "teacher"), ("dataset mean", "dataset"), ("random policy", "random"))
    lines += [[name, number(result[key]), "", ""] for name, key in references]
    swept = list(dict.fromkeys(name for entry in run.members for name in entry["swept"]))
    head = ["member", "seed", *map(option_name, swept), "updates", "mean return", "worst episode", "best episode"]
    return "\n".join(
        [
            "<h2>Results</h2>",
            _table(
                ["", "return", "95% interval", "worst member's mean"], lines, strong=len(result["groups"]), kind="scroll wide"
            ),
            _note(run, result),
            _table(head, [_member_line(member, swept) for member in result["members"]]),
        ]
    )


def _aggregate_line(name: str, aggregate: dict[str, Any]) -> list[str]:
    return [name, number(aggregate["iqm"]), interval(aggregate), number(aggregate["worst_member"])]


def _note(run: RunRecord, result: dict[str, Any]) -> str:
    """How the numbers were made."""
    tested = result["members"][0]["returns"]
    what = f"{len(run.members)} members' {len(tested)} episodes each" if result["iqm"] is not None else "all members' episodes"
    by = f" Normalised: {_escape(normalized_by(result['normalized']))}." if result["normalized"] else ""
    one = " With one member the interval is about this one policy, not about training." if len(run.members) == 1 else ""
    return (
        f'<p class="soft">IQM: mean of the middle half of {what} at the last test that all have. Interval: bootstrap over '
        f"members, then over their episodes (Agarwal et al. 2021).{one}{by}</p>"
    )


def _member_line(member: dict[str, Any], swept: Sequence[str]) -> list[str]:
    returns = member["returns"]
    return [
        str(member["member"]),
        str(member["seed"]),
        *(setting_value(member[name]) for name in swept),
        count(member["updates"]),
        number(member["mean_return"]),
        number(np.min(returns)) if returns else NOTHING,
        number(np.max(returns)) if returns else NOTHING,
    ]


def _figures(run: RunRecord, result: dict[str, Any], samples: int, seed: int) -> str:
    """Every figure that the run has data for."""
    figures = []
    if any(row["policy"] == "student" for row in run.evaluations) and run.members:
        words = f"Return over updates: {len(run.members)} members (thin), IQM (bold) and 95% interval (band)."
        alt = f"Learning curves. The last IQM is {number(result['iqm'])} {interval(result)}."
        figures.append(_figure(plots.learning_curves(run, samples, seed), alt, words))
    if plots.comparable_tests(run):
        words = "Value of the first state against the discounted return of the same episodes, in rewards as trained on."
        alt = f"Scatter plot of values against observed returns. {' '.join(map(_verdict, calibrations(run)))}"
        figures.append(_figure(plots.value_calibration(run), alt, words))
    if run.dataset:
        quantiles = run.dataset["returns"]["quantiles"]
        alt = f"Histogram of {run.dataset['episodes']:,} returns, {number(quantiles['0'])} to {number(quantiles['1'])}."
        figures.append(_figure(plots.dataset_returns(run), alt, "Returns of the dataset's episodes."))
    if run.teacher and run.teacher["tests"]:
        alt = f"Learning curve of the teacher. Its best test has mean return {number(run.teacher['best_return'])}."
        words = "The teacher's tests while it learned online with SAC. The results above test its best snapshot afresh."
        figures.append(_figure(plots.teacher_curve(run), alt, words))
    return f'<h2>Figures</h2>\n<div class="figures">\n{"".join(figures)}</div>' if figures else ""


def _figure(svg: str, alt: str, caption: str) -> str:
    """A figure as an image of its own, so that its ids and styles stay its own."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{_escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{_escape(caption)}</figcaption></figure>\n"


def _three_ways(run: RunRecord, samples: int, seed: int) -> str:
    """Last, best and mean-over-last-third scores side by side: papers report one or the other."""
    groups = [group for group in group_scores(run, samples, seed) if len(group.updates) > 1]
    if not groups:
        return ""
    rows = [
        [setting_name(group.swept) or "all members", *(_aggregate(a) for a in (group.last, group.last_third, group.best))]
        for group in groups
    ]
    head = ["setting", "last test", "mean over last third", "each member's best test"]
    note = "IQM and its 95% interval. The best test is chosen by the returns that it is then measured by, so it flatters."
    return f'<h2>Last, mean over last third, best</h2>\n{_table(head, rows)}\n<p class="soft">{_escape(note)}</p>'


def _aggregate(score: Aggregate) -> str:
    return f"{number(score.iqm)} [{number(score.interval.low)}, {number(score.interval.high)}]"


def _bound(check: BoundCheck) -> str:
    """Whether the lower bound held for a conservative weight, in a sentence."""
    weight, size = f"Conservative weight {check.conservative_weight:g}", len(check.members)
    if check.overall.held is None:
        return f"{weight}: whether the lower bound held {check.overall.verdict}."
    counts = f"it held in {check.count(True)}, did not hold in {check.count(False)}, cannot be told in {check.count(None)}"
    return f"{weight}: the lower bound {check.overall.verdict}; {counts} of {size} member{'s' * (size != 1)}."


def _values(run: RunRecord, samples: int, seed: int) -> str:
    """Whether values stayed below observed returns: what CQL is for."""
    found = calibrations(run)
    if not found:
        return ""
    lines = [_bound(check) for check in check_bounds(run, samples, seed)] + [_verdict(calibration) for calibration in found]
    if run.config["cql"]["entropy_backup"]:
        lines.append("Here values hold the entropy bonus (cql.entropy_backup), which returns do not.")
    paragraphs = "\n".join(f"<p>{_escape(line)}</p>" for line in lines)
    note = (
        "Observed: the discounted sum of rewards as trained on, plus the critics' own discounted value where the time limit "
        "cut an episode off."
    )
    return f'<h2>Do values stay below returns?</h2>\n{paragraphs}\n<p class="soft">{_escape(note)}</p>'


def _verdict(calibration: Calibration) -> str:
    """A conservative weight's verdict in a sentence."""
    excess = calibration.last_excess
    ended = "below" if excess <= 0 else "above"
    advice = "" if excess <= 0 else " They overestimate; a higher conservative weight lowers them."
    always = "always " if calibration.below == calibration.tests else ""
    return (
        f"Conservative weight {calibration.conservative_weight:g}: at the last test values are {ended} observed returns, by "
        f"{number(abs(excess))} on average; they were {always}at or below them in {calibration.below} of "
        f"{calibration.tests} tests.{advice}"
    )


def _video(run: RunRecord) -> str:
    """The episodes that `cqlray video` recorded, if it did."""
    path = run.directory / "video.gif"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    alt = "One episode of each policy, side by side; above each stand its name and return."
    return f'<h2>An episode</h2>\n<figure><img alt="{alt}" src="data:image/gif;base64,{data}"></figure>'


def _dataset(run: RunRecord) -> str:
    """The dataset, tier by tier."""
    if run.dataset is None:
        return ""
    keys = ("episodes", "transitions")
    lines = [[name, *(f"{t[k]:,}" for k in keys), number(t["mean_return"])] for name, t in run.dataset["tiers"].items()]
    lines.append(["all", *(f"{run.dataset[k]:,}" for k in keys), number(run.dataset["returns"]["mean"])])
    coverage = ", ".join(f"{share:.0%}" for share in run.dataset.get("action_coverage", []))
    covered = f"Actions cover {coverage} of their bounds, dimension by dimension. " if coverage else ""
    return "\n".join(
        [
            "<h2>Dataset</h2>",
            _table(["tier", "episodes", "transitions", "mean return"], lines, strong=len(lines) - 1),
            f'<p class="soft">{_escape(covered)}Digest <code>{_escape(run.dataset["digest"])}</code></p>',
        ]
    )


def _timeline(run: RunRecord) -> str:
    """What each stage took."""
    stages = run.manifest.get("stages", {})
    if not stages:
        return ""
    longest = max(stages.values()) or 1.0
    rows = "\n".join(
        f"<tr><td>{_escape(name)}</td><td>{_escape(duration(seconds))}</td>"
        f'<td class="track"><span class="bar" style="width:{100 * seconds / longest:.1f}%"></span></td></tr>'
        for name, seconds in stages.items()
    )
    whole = run.manifest.get("seconds")
    note = f'\n<p class="soft">The whole run took {_escape(duration(whole))}, tests included.</p>' if whole else ""
    return f'<h2>Stages</h2>\n<div class="scroll"><table><tbody>\n{rows}\n</tbody></table></div>{note}'


def _again(run: RunRecord) -> str:
    """How to make the run again, with what, and its config."""
    command = "collect" if run.manifest.get("dataset_only") else "train" if run.config.get("dataset") else "run"
    again = f"cqlray {command} --config {shlex.quote(str(run.directory / 'config.yaml'))} --out NEW_DIRECTORY"
    versions = ", ".join(f"{name} {version}" for name, version in run.manifest.get("versions", {}).items())
    began = run.manifest.get("command")
    config = yaml.safe_dump(run.config, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return "\n".join(
        [
            "<h2>Make it again</h2>",
            f"<pre>{_escape(again)}</pre>",
            f'<p class="soft">It was begun as <code>{_escape(began)}</code></p>' if began else "",
            f'<p class="soft">Versions: {_escape(versions)}</p>' if versions else "",
            f"<details><summary>The whole config</summary><pre>{_escape(config)}</pre></details>",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], strong: int | None = None, kind: str = "scroll") -> str:
    """A table in a box that scrolls by itself; the row at `strong` is bold."""
    first = "".join(f'<th scope="col">{_escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f"<tr{' class=strong' if index == strong else ''}>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="{kind}" tabindex="0"><table><thead><tr>{first}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _escape(text: object) -> str:
    return html.escape(str(text))
