"""`cqlray dataset info|validate|convert`: describe a data set from anywhere, check it, or
write it in another format.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray.cli.parser import CommandParser, one_of_family, require_at_least
from cqlray.config.schema import NO_ENVIRONMENT, ColumnsConfig, EnvConfig
from cqlray.config.secrets import masked_words, printable
from cqlray.errors import Interrupted, UserError
from cqlray.storage.locations import any_path
from cqlray.storage.locks import LEASE

if TYPE_CHECKING:
    from cqlray.api.datasets import Dataset

_ABOUT = {
    "info": "What is in a data set: episodes, returns, lengths, actions, coverage.",
    "validate": "Check a data set; exit status 0 where training could begin, 2 where it could not.",
    "convert": "Write a data set as cqlray's own, or as Minari's or a plain log.",
}


def dataset(words: list[str]) -> int:
    """Run `cqlray dataset WORDS`; the exit status."""
    name = one_of_family("dataset", words, _ABOUT)
    commands = {"info": _info, "validate": _validate, "convert": _convert}
    return commands[name](words[1:]) if name else 0


def _parser(command: str) -> CommandParser:
    """The arguments that all three commands have: the data, and how to read it."""
    parser = CommandParser(f"dataset {command}", _ABOUT[command])
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="dataset or run directory, minari:ID, HDF5, Parquet or CSV, s3:// too",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--env", metavar="ID", help="the environment, where the data does not say it")
    add(
        "--max-episode-steps",
        type=int,
        metavar="INT",
        help="time limit, for D4RL files without timeouts",
    )
    add("--config", type=Path, metavar="FILE", help="YAML file with a section `columns`")
    defaults = ColumnsConfig()
    for field in dataclasses.fields(ColumnsConfig):
        add(
            f"--columns.{field.name.replace('_', '-')}",
            dest=f"columns.{field.name}",
            type=float if field.name.startswith("action_") else str,
            nargs="+" if isinstance(getattr(defaults, field.name), tuple) else None,
            metavar="NAME",
            help="see cqlray train --help",
        )
    return parser


def _open(options: argparse.Namespace) -> Dataset:
    from cqlray.api.datasets import load_dataset
    from cqlray.config.read_yaml import load_yaml

    require_at_least(1, "max-episode-steps", options.max_episode_steps)
    columns = dict(load_yaml(options.config).get("columns") or {}) if options.config else {}
    for field in dataclasses.fields(ColumnsConfig):
        given = getattr(options, f"columns.{field.name}")
        if given is not None:
            columns[field.name] = given
    return load_dataset(
        options.data, columns, EnvConfig(options.env or NO_ENVIRONMENT, options.max_episode_steps)
    )


def _info(words: list[str]) -> int:
    parser = _parser("info")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the card as one HTML file as well"
    )
    options = parser.parse_args(words)
    from cqlray.data.card import card
    from cqlray.results.report.dataset_card import card_lines
    from cqlray.storage.run_directory import finite

    dataset = _open(options)
    description = dataset.description
    if options.json and options.html is None:
        print(json.dumps(finite(description)))
        return 0
    drawn, place = card(description, dataset.shards), []
    if options.html is not None:
        from cqlray.results.report.dataset_card_page import write_card  # matplotlib

        write_card(drawn, description, options.html)
        place = [f"card         {options.html}"]
    lines = [*card_lines(drawn, description), *place]
    print(json.dumps(finite(description)) if options.json else "\n".join(lines))
    return 0


def _validate(words: list[str]) -> int:
    parser = _parser("validate")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="INT", help="transitions in a batch [256]"
    )
    options = parser.parse_args(words)
    from cqlray.data.source import columns_in_words

    require_at_least(1, "batch-size", options.batch_size)
    dataset = _open(options)
    report = dataset.validate(options.batch_size)
    columns = dataset.source.columns
    if options.json:
        findings = [dataclasses.asdict(finding) for finding in report.findings]
        counts = {"episodes": report.episodes, "transitions": report.transitions}
        found: dict[str, Any] = {**counts, "errors": report.num_errors, "findings": findings}
        found |= {"columns": columns} if columns else {}
        found |= {"reading": dataset.source.reading} if dataset.source.reading else {}
        print(json.dumps(found, default=float))
    else:
        for line in report.lines():
            print(printable(line))
        if columns:
            print(f"columns: {printable(columns_in_words(columns))}")
        for line in dataset.source.reading:
            print(f"reading: {printable(line)}")
        verdict = (
            f"{_counted(report.num_errors, 'error')}, {_counted(len(report.warnings), 'warning')}"
        )
        print(f"{report.episodes:,} episodes, {report.transitions:,} transitions: {verdict}")
    return 2 if report.errors else 0


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _convert(words: list[str]) -> int:
    from cqlray.data.checks.findings import require_valid
    from cqlray.data.source import columns_in_words

    options = _convert_parser().parse_args(words)
    _require_free(options)
    dataset = _open(options)
    done: list[str] = []
    if options.fix:
        dataset, done = dataset.fixed()
    report = dataset.validate(1)
    require_valid(report, options.data)
    notes = [f"warning: {warning}" for warning in report.warnings]
    if columns := dataset.source.columns:
        notes.insert(0, f"columns: {columns_in_words(columns)}")
    notes += [f"reading: {line}" for line in dataset.source.reading]
    for line in [*notes, *(f"fixed: {line}" for line in done)]:
        print(line, file=sys.stderr)
    counts = {"episodes": report.episodes, "transitions": report.transitions}
    try:
        written = counts | _write(dataset, options)
    except KeyboardInterrupt:
        command = shlex.join(["cqlray", "dataset", "convert", *masked_words(words)])
        raise Interrupted(f"stopped; go on with: {command}") from None
    if options.json:
        print(json.dumps(written))
    else:
        counted = f"{written['episodes']:,} episodes, {written['transitions']:,} transitions"
        print(f"{options.out}: {counted}")
    return 0


def _require_free(options: argparse.Namespace) -> None:
    """Raises UserError: what stands at --out is not to be written to; said before data is read."""
    from cqlray.data.convert import require_room
    from cqlray.data.dataset import SHARDS

    out, to = options.out, options.to
    if not out:
        raise UserError("--out is ''; it must name the place to write to")
    if options.append and to != "cqlray":
        raise UserError(f"--append adds to cqlray's own datasets alone, not with --to {to}")
    place = any_path(out)
    if to == "log" and place.exists():
        raise UserError(f"{out} exists already; choose another name, or remove it first")
    if to != "cqlray" or options.append or not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"{out} is a file; --out names a directory to make")
    require_room(place, append=False)
    # Shards without a description are what a conversion that was stopped leaves.
    others = [below.name for below in place.iterdir() if not fnmatch(below.name, SHARDS)]
    if shown := [name for name in others if not name.startswith(".") and name != LEASE]:
        raise UserError(f"{out} holds {sorted(shown)[0]!r}; --out names a directory to make")


def _convert_parser() -> CommandParser:
    parser = _parser("convert")
    add = parser.add_argument
    add(
        "--out", required=True, metavar="PLACE", help="directory to make, or the file with --to log"
    )
    add(
        "--to", choices=("cqlray", "minari", "log"), default="cqlray", help="what to write [cqlray]"
    )
    add("--append", action="store_true", help="add to the dataset that is there")
    add("--fix", action="store_true", help="mend what can be mended safely, and say what was done")
    return parser


def _write(dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Write the dataset; returns its description, which only cqlray's format has."""
    from cqlray.data import formats

    if options.to == "cqlray":
        return dataset.save(options.out, options.append)
    if options.to == "minari":
        from cqlray.envs.make import registered_spec

        formats.write_minari(dataset.source, options.out, registered_spec(dataset.environment))
    else:
        formats.write_log(dataset.shards(), options.out)
    return {}
