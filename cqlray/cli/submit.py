"""`cqlray submit`: a command of cqlray as a Ray job. It is checked here; Ray's job client packs,
sends and follows it.

The job gets none of this process's environment variables, and it needs this machine no more once
it is submitted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray.cli.flags import parse_config
from cqlray.cli.parser import CommandParser
from cqlray.config.secrets import has_key_within, is_secret_variable
from cqlray.errors import UserError
from cqlray.runtime import jobs
from cqlray.storage.trust import names_module

_ABOUT = (
    "Run a command of cqlray as a job on a Ray cluster, print its log, and end with its status."
    " Ctrl-C leaves the job running."
)
COMMANDS = ("run", "train", "collect", "resume")
STOP_WAIT = 60  # seconds; a checkpoint of many members in an object store takes some


@dataclass(frozen=True)
class Command:
    """The command line to run on the cluster, its run directory, and the --config file that has to
    be sent with it.
    """

    words: list[str]
    run: str
    trust: list[str]  # what a job that resumes the run on another machine needs to say, too
    config: Path | None = None


def submit(words: list[str]) -> int:
    """Run `cqlray submit WORDS`; the exit status: 0 SUCCEEDED, 1 FAILED, 130 STOPPED or not
    followed to its end.

    Where cqlray itself ended with 2 (a mistake) or 130 (a stop) on the cluster, the status is that.

    Raises:
        UserError: a mistake in the words, no cluster at the address, or one that refuses the token
            or the job.
    """
    options = _parser().parse_args(words)
    command = _checked(options.words[1:] if options.words[:1] == ["--"] else options.words)
    runtime_env = _runtime_env(options)
    token_mode = "RAY_AUTH_MODE=token " if jobs.turn_on_token_mode() else ""
    client = jobs.connect(options.address)
    with tempfile.TemporaryDirectory() as folder:
        packed = _pack(command, runtime_env, Path(folder))
        entrypoint = shlex.join(["python", "-m", "cqlray", *packed])
        identity = jobs.submit(client, entrypoint, runtime_env, options.submission_id)
    resume = shlex.join(
        ["cqlray", "submit", *_kept(options), "resume", command.run, *command.trust]
    )
    job = jobs.Job(client, identity, options.address, token_mode, resume)
    if not options.no_wait:
        return job.follow()
    job.explain(f"job {identity} is submitted")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("submit", _ABOUT)
    parser.usage = "cqlray submit [OPTIONS] run|train|collect|resume ..."
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, http://HOST:8265; else Ray looks for one",
    )
    parser.add_argument(
        "--submission-id", metavar="ID", help="the job's name, which can be used once [made by Ray]"
    )
    parser.add_argument(
        "--working-dir",
        type=Path,
        metavar="DIR",
        help="code to send along, without what .gitignore names [nothing]",
    )
    parser.add_argument(
        "--stop-wait",
        type=int,
        default=STOP_WAIT,
        metavar="SECONDS",
        help=f"for a last checkpoint at a stop [{STOP_WAIT}]",
    )
    parser.add_argument(
        "--runtime-env-json",
        default="{}",
        metavar="JSON",
        help="Ray's runtime_env, such as env_vars, pip",
    )
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the job's end")
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="run|train|collect|resume ...",
        help="what to run",
    )
    return parser


def _resume_parser() -> CommandParser:
    """The arguments of `cqlray resume` on the cluster, where RUN may be a path of that machine."""
    parser = CommandParser("submit resume", "").with_output().with_trust()
    parser.add_argument("run", metavar="RUN")
    return parser


def _checked(words: Sequence[str]) -> Command:
    """The command to submit, checked as far as it can be without the cluster.

    Raises UserError: the cluster would refuse it.
    """
    if not words or words[0] not in COMMANDS:
        typed = f" {words[0]}" if words else ""
        raise UserError(
            f"submit{typed}: a job is one of {', '.join(f'submit {name}' for name in COMMANDS)}"
        )
    name, *rest = words
    _refuse_passwords(name, " ".join(rest))
    if name == "resume":
        given = _resume_parser().parse_args(rest)
        jobs.require_lasting("RUN", given.run)
        trust = ["--env", given.env] if given.env else ["--trust"] * given.trust
        return Command([*words], given.run, trust)
    config, options = parse_config(rest, name, look=False)
    jobs.require_lasting("--out", config.out)
    # minari:ID and s3://… are no paths.
    if config.dataset is not None and ":" not in config.dataset.partition("/")[0]:
        jobs.require_lasting("--dataset", config.dataset)
    assert config.out is not None
    module = names_module(config.env.id, config.env.kwargs)
    trust = ["--env", config.env.id] if module else []
    return Command([*words], config.out, trust, options.config)


def _runtime_env(options: argparse.Namespace) -> dict[str, Any]:
    """Ray's runtime_env for the job.

    Raises UserError: it is not a valid one, or Ray's dashboard would show a secret in it.
    """
    if options.stop_wait < 1:
        raise UserError(f"submit: --stop-wait is {options.stop_wait}; it must be at least 1")
    try:
        given = json.loads(options.runtime_env_json)
    except (ValueError, RecursionError) as error:
        raise UserError(f"submit: --runtime-env-json is not JSON: {error}") from None
    variables = given.get("env_vars", {}) if isinstance(given, dict) else None
    if not isinstance(variables, dict):
        raise UserError(
            "submit: --runtime-env-json must be an object, and its env_vars too, such as"
            ' {"env_vars": {}}'
        )
    if shown := [name for name in variables if is_secret_variable(name)]:
        raise UserError(
            f"submit: env_vars has {shown[0]}, which Ray's dashboard would show; credentials belong"
            " on the nodes"
        )
    _refuse_passwords("--runtime-env-json", json.dumps(given))
    env = {**given, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(options.stop_wait), **variables}}
    if options.working_dir is not None:
        if not options.working_dir.is_dir():
            raise UserError(f"submit: --working-dir {options.working_dir}: no such directory")
        env["working_dir"] = str(options.working_dir)
    return env


def _refuse_passwords(where: str, shown: str) -> None:
    """Raises UserError: an address has a password or token in it."""
    if has_key_within(shown):
        raise UserError(
            f"submit: {where} has an address with a password or token in it, which Ray's dashboard"
            " would show; credentials belong on the nodes"
        )


def _pack(command: Command, runtime_env: dict[str, Any], folder: Path) -> list[str]:
    """The command's words with --config as a path in the job's working directory.

    Without a working directory the file is sent alone: in `folder`, which is empty.

    Raises:
        UserError: the file is not in the working directory.
    """
    if command.config is None:
        return command.words
    root = runtime_env.setdefault("working_dir", str(folder))
    if root == str(folder):
        shutil.copy(command.config, folder / command.config.name)
        inside = Path(command.config.name)
    elif "://" not in root and command.config.resolve().is_relative_to(Path(root).resolve()):
        inside = command.config.resolve().relative_to(Path(root).resolve())
    else:
        raise UserError(
            f"--config {command.config}: not in the working directory {root}, which is what the job"
            " gets"
        )
    index = next(i for i, word in enumerate(command.words) if word.partition("=")[0] == "--config")
    taken = 1 if "=" in command.words[index] else 2
    return [*command.words[:index], "--config", str(inside), *command.words[index + taken :]]


def _kept(options: argparse.Namespace) -> list[str]:
    """The options of `submit` that a job which resumes this one needs, too.

    They go into a log, and so without the values of env_vars.
    """
    given = json.loads(options.runtime_env_json)
    if variables := given.get("env_vars"):
        given["env_vars"] = dict.fromkeys(variables, "...")
    flags = {
        "--address": options.address,
        "--working-dir": options.working_dir,
        "--stop-wait": options.stop_wait if options.stop_wait != STOP_WAIT else None,
        # Not JSON without the quotes, on purpose: pasted unchanged, it is refused.
        "--runtime-env-json": json.dumps(given).replace('"..."', "...") if given else None,
    }
    return [
        str(word) for flag, value in flags.items() if value is not None for word in (flag, value)
    ]
