"""`cqlray evaluate`, `report`, `video` and `export`: what one does with a run on disk."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

from cqlray.cli.parser import CommandParser, require_at_least
from cqlray.config.secrets import printable
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, any_path

if TYPE_CHECKING:
    from cqlray.results.statistics.summary import RunRecord

TEST_EPISODES = 100  # for each member, in `cqlray evaluate`


def evaluate(words: list[str]) -> int:
    """`cqlray evaluate`: fresh tests of the policies, or fitted Q evaluation of them."""
    parser = CommandParser(
        "evaluate",
        "Test a run's last policies, its own teacher and the random policy on the same fresh"
        " episodes.",
        "RUN",
    ).with_output()
    parser.with_trust()
    parser.add_argument(
        "--episodes",
        type=int,
        metavar="INT",
        help=f"episodes for each member [{TEST_EPISODES}]",
    )
    parser.add_argument(
        "--fitted-q",
        action="store_true",
        help="judge all snapshots by the data alone instead, and keep that",
    )
    options = parser.parse_args(words)
    require_at_least(1, "episodes", options.episodes)
    if options.fitted_q and options.episodes is not None:
        raise UserError("--fitted-q plays no episodes; leave out --episodes")
    from cqlray.api import session
    from cqlray.runtime.progress import ProgressDisplay
    from cqlray.storage.run_directory import RunDirectory

    trust = options.env or options.trust
    if options.fitted_q:
        with ProgressDisplay(options.quiet) as progress:
            rows = session.fit_q(options.path, progress, trust)
        write_report(options.path)
        _print_estimates(options.path, rows, options.json)
        return 0
    with ProgressDisplay(options.quiet) as progress:
        record = session.evaluate(options.path, options.episodes or TEST_EPISODES, progress, trust)
    print_results(session.result(RunDirectory.open(options.path), record), record, options.json)
    return 0


def _print_estimates(path: AnyPath, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print fitted Q evaluation's estimate for each member's newest snapshot."""
    if as_json:
        print(json.dumps({"run_dir": str(path), "members": rows}))
        return
    print("member    updates  estimated discounted return")
    for row in rows:
        estimate = "not finite" if row["fqe_return"] is None else f"{row['fqe_return']:.2f}"
        print(f"{row['member']:>6}  {row['updates']:>9,}  {estimate:>27}")
    from cqlray.results.record import load_run
    from cqlray.results.report.verdict_words import verdict_sentence, verdicts_of

    record = load_run(path)
    print(printable(verdict_sentence(record, verdicts_of(record))))
    print(
        f"best by the data alone: cqlray export {path} --by fqe (how far to trust it:"
        f" {path}/report.html)"
    )


def report(words: list[str]) -> int:
    """`cqlray report`: the page of a run, or one that compares several."""
    about = (
        "Write report.html and TensorBoard files of a run, or --out alone; of several runs, one"
        " page that compares them."
    )
    parser = CommandParser("report", about).with_output()
    add = parser.add_argument
    add("runs", type=any_path, nargs="+", metavar="RUN")
    add("--out", type=any_path, metavar="FILE", help="the page [RUN/report.html; comparison.html]")
    add(
        "--to",
        nargs="+",
        default=[],
        metavar="NAME",
        help="show it there too: tensorboard, wandb, mlflow",
    )
    options = parser.parse_args(words)
    if len(options.runs) > 1 and options.to:
        raise UserError("--to takes one run at a time")
    if options.out is not None and "tensorboard" in options.to:
        raise UserError(
            "--to tensorboard writes into the run directory, which --out leaves alone; give one of"
            " them"
        )
    from cqlray.api import results

    written = results.report(*map(str, options.runs), out=options.out, to=options.to)
    if options.json:
        print(json.dumps({"report": str(written.path), **written.sent}))
    else:
        sent = (f"{name}: {where}" for name, where in written.sent.items())
        print(written.path, *sent, sep="\n")
    return 0


def video(words: list[str]) -> int:
    """`cqlray video`: an episode of each policy, side by side."""
    parser = CommandParser(
        "video", "Write a GIF or MP4 of one episode of each policy, side by side.", "RUN"
    ).with_trust()
    add = parser.add_argument
    add(
        "--policy",
        nargs="+",
        default=["student"],
        metavar="NAME",
        help="student, teacher, random [student]",
    )
    _add_member(parser)
    add("--seed", type=int, default=0, metavar="INT", help="seed of the episodes' first state [0]")
    add("--out", default="", metavar="FILE", help="the file, .gif or .mp4 [RUN/video.gif]")
    options = parser.parse_args(words)
    require_at_least(0, "seed", options.seed)
    from cqlray.api import session
    from cqlray.results.video import CannotRender, record

    session.require_environment(options.path)
    trust = options.env or options.trust
    try:
        print(
            record(options.path, options.policy, options.member, options.seed, options.out, trust)
        )
    except CannotRender as error:
        if options.debug:
            traceback.print_exc()
        print(f"no video: {error}")
    return 0


def _add_member(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--member",
        type=lambda word: int(word) if word.isdecimal() else word,
        default="best",
        metavar="INDEX",
        help="the student: its index, or best [best]",
    )


def export(words: list[str]) -> int:
    """`cqlray export`: a policy as a file that needs no cqlray."""
    parser = CommandParser(
        "export",
        "Write a student's policy as a file that needs no cqlray, with a model card beside it.",
        "RUN",
    )
    _add_member(parser)
    add = parser.add_argument
    add("--format", default="onnx", metavar="NAME", help="torchscript, onnx or safetensors [onnx]")
    add("--by", choices=("return", "fqe"), help="what best is chosen by [return, else fqe]")
    add(
        "--updates",
        type=int,
        metavar="N",
        help="its snapshot after N updates [the newest; of best the one chosen for]",
    )
    add("--out", default="", metavar="FILE", help="the file [RUN/export/member-INDEX.onnx]")
    add("--json", action="store_true", help="print one JSON object, the last line of stdout")
    options = parser.parse_args(words)
    require_at_least(0, "updates", options.updates)
    if options.by and options.member != "best":
        raise UserError(f"--by says what best is chosen by, and --member is {options.member}")
    from cqlray.results.export import export

    exported = export(
        options.path, options.member, options.format, options.out, options.by, options.updates
    )
    chosen = f", the best by {exported.chosen_by}" if exported.chosen_by else ""
    print(
        printable(
            f"member {exported.member}{chosen}: {exported.algorithm}, after"
            f" {exported.updates:,} updates"
        ),
        file=sys.stderr,
    )
    print(json.dumps(vars(exported), default=str) if options.json else exported.path)
    return 0


def print_results(result: dict[str, Any], record: RunRecord, as_json: bool) -> None:
    """Print a run's summary as one JSON object, or as a table."""
    from rich.console import Console

    from cqlray.results.report.table import results_table

    if as_json:
        from cqlray.storage.run_directory import finite

        print(json.dumps(finite(result)))
    else:
        Console().print(results_table(result, record))


def write_report(run: AnyPath) -> AnyPath:
    """Write the run's page and TensorBoard files; returns the page's path."""
    from cqlray.api.results import report

    return report(str(run)).path
