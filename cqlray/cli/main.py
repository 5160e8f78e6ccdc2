"""The commands of DESIGN section 1: parse, call, print.

Mistakes are one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

from cqlray.errors import ActorLost, EnvironmentFailure, Interrupted, UserError
from cqlray.storage.locations import AnyPath, any_path

if TYPE_CHECKING:
    from cqlray.storage.run_directory import RunDirectory

MISTAKE, INTERRUPTED, FAILURE, NO_RUN = 2, 130, 1, 3

_USAGE = """\
usage: cqlray COMMAND [OPTIONS]       (cqlray COMMAND --help: the options of one; cqlray --version)

  run                  teacher, dataset, students, evaluation and report; by default on Pendulum-v1
  resume RUN           go on with a run exactly where it stopped
  submit COMMAND ...   run, train, collect or resume as a job on a Ray cluster
  collect              teacher and dataset alone
  train                students alone, from a dataset that is there already
  evaluate RUN         test a run's last policies, and its own teacher, on fresh episodes
  report RUN [RUN ...] write report.html of a run, finished or not; of several, a comparison
  video RUN            an episode of its policies, side by side, as GIF or MP4
  export RUN           a policy as TorchScript, ONNX or safetensors, with a model card
  dataset info DATA    what is in a data set (cqlray's own, Minari, D4RL, Parquet, CSV)
  dataset validate DATA, dataset convert DATA --out PLACE
                       check it; write it as cqlray's own, Minari's or a log
  benchmark learner|members|rollout|data|actor|peers
                       how fast each part is, beside what this machine could do
  doctor               what Ray, torch, GPUs, storage and the environment look like from here
"""


class _OneLine(argparse.ArgumentParser):
    """A mistake in the arguments is a line like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('cqlray ')}: {message}")


class _Parser(_OneLine):
    """The arguments of a small command."""

    def __init__(self, command: str, subject: str, about: str) -> None:
        super().__init__(f"cqlray {command}", description=about, allow_abbrev=False)
        if subject:
            self.add_argument("path", type=any_path, metavar=subject)
        self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

    def with_output(self) -> _Parser:
        """Add the flags on what is printed."""
        self.add_argument(
            "--json", action="store_true", help="print one JSON object, the last line of stdout"
        )
        self.add_argument("--quiet", action="store_true", help="show no progress")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 2 a mistake (one line), 130 stopped, 1 a failure, 3
    no run (--if-there).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0 if words else MISTAKE
    try:
        return _command(words[0])(words[1:])
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        return _complain(str(error), MISTAKE)
    except EnvironmentFailure as error:
        print(error.traceback_text, file=sys.stderr)
        return _complain(
            f"your environment raised the exception above ({error.where}); reset it with that seed"
            " to see it",
            FAILURE,
        )
    except ActorLost as error:
        if "--debug" in words:
            traceback.print_exc()
        return _complain(str(error), FAILURE)
    except (Interrupted, KeyboardInterrupt) as error:
        before = (
            error.__context__ if isinstance(error.__context__, Interrupted) else ""
        )  # it knows how to go on
        return _complain(
            str(error) or str(before) or "stopped before anything was written", INTERRUPTED
        )


def _command(name: str) -> Callable[[list[str]], int]:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": lambda words: _start(words, "run"),
        "train": lambda words: _start(words, "train"),
        "collect": lambda words: _start(words, "collect"),
        "resume": _resume,
        "submit": _submit,
        "evaluate": _evaluate,
        "report": _report,
        "video": _video,
        "export": _export,
        "dataset": _dataset,
        "doctor": _doctor,
        "benchmark": _benchmark,
    }
    if name == "--version":
        return _version
    if name not in commands:
        import difflib

        close = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(commands)}"
        raise UserError(f"there is no command {name!r}; {hint}")
    return commands[name]


def _version(words: list[str]) -> int:
    print(f"cqlray {version('cqlray')}")
    return 0


def _start(words: list[str], command: str) -> int:
    from cqlray.cli.flags import parse_config

    config, options = parse_config(words, command)
    from cqlray.api import session
    from cqlray.runtime.progress import ProgressDisplay

    with ProgressDisplay(options.quiet) as progress:
        directory = session.start(config, progress, dataset_only=command == "collect")
    return (
        _print_dataset(directory.path, options.json)
        if command == "collect"
        else _print_run(directory, options.json)
    )


def _resume(words: list[str]) -> int:
    parser = _Parser("resume", "RUN", "Go on with a run exactly where it stopped.").with_output()
    parser.add_argument(
        "--if-there",
        action="store_true",
        help=f"no run there is no mistake, but exit status {NO_RUN}",
    )
    options = parser.parse_args(words)
    from cqlray.api import session
    from cqlray.runtime.progress import ProgressDisplay
    from cqlray.storage.run_directory import RunDirectory

    if options.if_there and RunDirectory.is_free(options.path):
        return _complain(f"there is no run at {options.path} yet", NO_RUN)
    with ProgressDisplay(options.quiet) as progress:
        directory = session.resume(options.path, progress)
    dataset_only = directory.manifest()["dataset_only"]
    return (
        _print_dataset(directory.path, options.json)
        if dataset_only
        else _print_run(directory, options.json)
    )


def _submit(words: list[str]) -> int:
    from cqlray.cli import submit

    return submit.main(words, _OneLine)


def _evaluate(words: list[str]) -> int:
    parser = _Parser(
        "evaluate",
        "RUN",
        "Test a run's last policies, its own teacher and the random policy on the same fresh"
        " episodes.",
    ).with_output()
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="INT", help="episodes for each member [100]"
    )
    parser.add_argument(
        "--fitted-q",
        action="store_true",
        help="judge all snapshots by the data alone instead, and keep that",
    )
    options = parser.parse_args(words)
    if options.episodes < 1:
        raise UserError(f"episodes is {options.episodes}; it must be at least 1")
    from cqlray.api import session
    from cqlray.runtime.progress import ProgressDisplay
    from cqlray.storage.run_directory import RunDirectory

    if options.fitted_q:
        with ProgressDisplay(options.quiet) as progress:
            rows = session.fit_q(options.path, progress)
        _write_report(options.path)
        _print_estimates(options.path, rows, options.json)
        return 0
    with ProgressDisplay(options.quiet) as progress:
        record = session.evaluate(options.path, options.episodes, progress)
    _print_results(session.result(RunDirectory.open(options.path), record), record, options.json)
    return 0


def _print_estimates(path: AnyPath, rows: list[dict[str, Any]], as_json: bool) -> None:
    """What fitted Q evaluation says of each member's newest snapshot."""
    if as_json:
        print(json.dumps({"run_dir": str(path), "members": rows}))
        return
    print("member    updates  estimated discounted return")
    for row in rows:
        estimate = "not finite" if row["fqe_return"] is None else f"{row['fqe_return']:.2f}"
        print(f"{row['member']:>6}  {row['updates']:>9,}  {estimate:>27}")
    print(
        f"best by the data alone: cqlray export {path} --by fqe (how far to trust it:"
        f" {path}/report.html)"
    )


def _report(words: list[str]) -> int:
    about = (
        "Write report.html and TensorBoard files of a run, or --out alone; of several runs, one"
        " page that compares them."
    )
    parser = _Parser("report", "", about).with_output()
    parser.add_argument("runs", type=any_path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--out", type=any_path, metavar="FILE", help="the page [RUN/report.html; comparison.html]"
    )
    parser.add_argument(
        "--to",
        nargs="+",
        default=[],
        metavar="NAME",
        help="show it there too: tensorboard, wandb, mlflow",
    )
    options = parser.parse_args(words)
    if len(options.runs) > 1:
        return _compare(options)
    if options.out is not None and "tensorboard" in options.to:
        raise UserError(
            "--to tensorboard writes into the run directory, which --out leaves alone; give one of"
            " them"
        )
    from cqlray.results.trackers.send import send_to

    (run,) = options.runs
    path = _write_report(run) if options.out is None else _write_page(run, options.out)
    sent = send_to(run, options.to) if options.to else {}
    if options.json:
        print(json.dumps({"report": str(path), **sent}))
    else:
        print(path, *(f"{name}: {where}" for name, where in sent.items()), sep="\n")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from cqlray.results.report.comparison_page import write_comparison

    if options.to:
        raise UserError("--to takes one run at a time")
    path = write_comparison(options.runs, options.out or any_path("comparison.html"))
    print(json.dumps({"report": str(path)}) if options.json else path)
    return 0


def _video(words: list[str]) -> int:
    parser = _Parser(
        "video", "RUN", "Write a GIF or MP4 of one episode of each policy, side by side."
    )
    parser.add_argument(
        "--policy",
        nargs="+",
        default=["student"],
        metavar="NAME",
        help="student, teacher, random [student]",
    )
    parser.add_argument(
        "--member", default="best", metavar="INDEX", help="the student: its index, or best [best]"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="seed of the episodes' first state [0]"
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="the file, .gif or .mp4 [RUN/video.gif]"
    )
    options = parser.parse_args(words)
    from cqlray.api import session
    from cqlray.results.video import CannotRender, record

    session.require_environment(options.path)
    member = int(options.member) if options.member.isdecimal() else options.member
    try:
        print(record(options.path, options.policy, member, options.seed, options.out))
    except CannotRender as error:
        if options.debug:
            traceback.print_exc()
        print(f"no video: {error}")
    return 0


def _export(words: list[str]) -> int:
    parser = _Parser(
        "export",
        "RUN",
        "Write a student's policy as a file that needs no cqlray, with a model card beside it.",
    )
    parser.add_argument(
        "--member", default="best", metavar="INDEX", help="the student: its index, or best [best]"
    )
    parser.add_argument(
        "--format", default="onnx", metavar="NAME", help="torchscript, onnx or safetensors [onnx]"
    )
    parser.add_argument(
        "--by", choices=("return", "fqe"), help="what best is chosen by [return, else fqe]"
    )
    parser.add_argument(
        "--updates",
        type=int,
        metavar="N",
        help="its snapshot after N updates [the newest; of best the one chosen for]",
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="the file [RUN/export/member-INDEX.onnx]"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, the last line of stdout"
    )
    options = parser.parse_args(words)
    from cqlray.results.export import export

    member = int(options.member) if options.member.isdecimal() else options.member
    exported = export(
        options.path, member, options.format, options.out, options.by, options.updates
    )
    print(json.dumps(vars(exported), default=str) if options.json else exported.path)
    return 0


def _dataset(words: list[str]) -> int:
    from cqlray.cli import dataset as dataset_commands

    return dataset_commands.main(words, _OneLine)


def _doctor(words: list[str]) -> int:
    parser = _Parser(
        "doctor", "", "What Ray, torch, GPUs, storage and the environment look like from here."
    )
    parser.add_argument(
        "--env", default="Pendulum-v1", metavar="TEXT", help="environment to try [Pendulum-v1]"
    )
    parser.add_argument(
        "--out",
        type=any_path,
        default="runs",
        metavar="DIRECTORY",
        help="where runs are to be [runs]",
    )
    options = parser.parse_args(words)
    from cqlray.cli.doctor import examine
    from cqlray.config.schema import EnvConfig

    well = True
    for name, good, found in examine(EnvConfig(options.env), options.out):
        print(f"{'ok  ' if good else 'FAIL'} {name:<12} {found}")
        well = well and good
    return 0 if well else FAILURE


def _benchmark(words: list[str]) -> int:
    from importlib import import_module

    kinds = {
        "learner": "cqlray.benchmarks.learner",
        "members": "cqlray.benchmarks.members",
        "rollout": "cqlray.benchmarks.rollout",
        "data": "cqlray.benchmarks.object_store",
        "actor": "cqlray.benchmarks.actor",
        "peers": "cqlray.benchmarks.peers",
    }
    if not words or words[0] not in kinds:
        typed = f" {words[0]}" if words else ""
        raise UserError(f"benchmark{typed}: the commands are benchmark {', '.join(kinds)}")
    status: int = import_module(kinds[words[0]]).main(
        [word for word in words[1:] if word != "--debug"], _OneLine
    )
    return status


def _print_run(directory: RunDirectory, as_json: bool) -> int:
    from cqlray.api import session
    from cqlray.results.record import load_run

    report = _write_report(directory.path)
    record = load_run(directory.path)
    _print_results(session.result(directory), record, as_json)
    print(f"report: {report}", file=sys.stderr if as_json else sys.stdout)
    return 0


def _print_results(result: dict[str, Any], record: Any, as_json: bool) -> None:
    from rich.console import Console

    from cqlray.results.report.table import results_table

    if as_json:
        from cqlray.storage.run_directory import finite

        print(json.dumps(finite(result)))
    else:
        Console().print(results_table(result, record))


def _print_dataset(path: AnyPath, as_json: bool) -> int:
    from cqlray.data.dataset import read_description

    description = read_description(path)
    if as_json:
        print(json.dumps(description))
        return 0
    quantiles = description["returns"]["quantiles"]
    print(f"environment  {description['environment']['id']}")
    print(f"episodes     {description['episodes']:,}, {description['transitions']:,} transitions")
    for tier, of_tier in description["tiers"].items():
        print(
            f"  {tier:<10} {of_tier['episodes']:,} episodes, mean return"
            f" {of_tier['mean_return']:.1f}"
        )
    spread = ", ".join(f"{float(q):.0%} {value:.1f}" for q, value in quantiles.items())
    print(f"returns      mean {description['returns']['mean']:.1f}; quantiles {spread}")
    coverage = ", ".join(f"{share:.0%}" for share in description["action_coverage"])
    print(f"actions      cover {coverage} of their bounds, dimension by dimension")
    print(f"digest       {description['digest']}")
    return 0


def _write_report(run: AnyPath) -> AnyPath:
    from cqlray.results.report.html import write_report
    from cqlray.results.trackers.tensorboard import write_tensorboard

    path = write_report(run)
    write_tensorboard(run)
    return path


def _write_page(run: AnyPath, path: AnyPath) -> AnyPath:
    """The report somewhere else; nothing is written into the run directory, which one may only be
    allowed to read.
    """
    from cqlray.results.record import load_run
    from cqlray.results.report.html import render
    from cqlray.storage.run_directory import write_bytes

    write_bytes(path, render(load_run(run)).encode())
    return path


def _complain(line: str, status: int) -> int:
    print(f"cqlray: {line}", file=sys.stderr)
    return status
