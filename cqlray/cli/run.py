"""`cqlray run`, `train`, `collect` and `resume`: a run from its beginning, or from where it
stopped.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from cqlray.cli.parser import CommandParser
from cqlray.cli.results import print_results, write_report
from cqlray.cli.statuses import NO_RUN, complain
from cqlray.config.secrets import printable
from cqlray.storage.locations import AnyPath

if TYPE_CHECKING:
    from cqlray.storage.run_directory import RunDirectory


def run(words: list[str]) -> int:
    """`cqlray run`: teacher, dataset, students, evaluation and report."""
    return _start(words, "run")


def train(words: list[str]) -> int:
    """`cqlray train`: students alone, from a dataset."""
    return _start(words, "train")


def collect(words: list[str]) -> int:
    """`cqlray collect`: teacher and dataset alone."""
    return _start(words, "collect")


def _start(words: list[str], command: str) -> int:
    from cqlray.cli.flags import parse_config

    config, options = parse_config(words, command)
    from cqlray.api import session
    from cqlray.runtime.progress import ProgressDisplay

    with ProgressDisplay(options.quiet) as progress:
        directory = session.start(config, progress, dataset_only=command == "collect")
    return _print(directory, command == "collect", options.json)


def resume(words: list[str]) -> int:
    """`cqlray resume`: go on where a run stopped."""
    parser = CommandParser(
        "resume", "Go on with a run exactly where it stopped.", "RUN"
    ).with_output()
    parser.with_trust()
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
        return complain(f"there is no run at {options.path} yet", NO_RUN)
    with ProgressDisplay(options.quiet) as progress:
        directory = session.resume(options.path, progress, options.env or options.trust)
    return _print(directory, directory.manifest()["dataset_only"], options.json)


def _print(directory: RunDirectory, dataset_only: bool, as_json: bool) -> int:
    from cqlray.api import session
    from cqlray.results.record import load_run

    with session.saying_how_to_go_on(f"cqlray resume {directory.path}"):
        if dataset_only:
            return _print_dataset(directory.path, as_json)
        report = write_report(directory.path)
        record = load_run(directory.path)
        print_results(session.result(directory, record), record, as_json)
        print(f"report: {report}", file=sys.stderr if as_json else sys.stdout)
        return 0


def _print_dataset(path: AnyPath, as_json: bool) -> int:
    from cqlray.data.dataset import read_description

    description = read_description(path)
    if as_json:
        print(json.dumps(description))
        return 0
    quantiles = description["returns"]["quantiles"]
    print(f"environment  {printable(str(description['environment']['id']))}")
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
