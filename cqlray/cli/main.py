"""`cqlray COMMAND`: find the command, run it, end with its exit status.

A mistake is one line on stderr and exit status 2.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module

from cqlray.cli.statuses import FAILURE, INTERRUPTED, MISTAKE, complain
from cqlray.errors import ActorLost, EnvironmentFailure, Interrupted, UserError
from cqlray.runtime.signals import RAY_IS_GONE, insisting, restoring_handlers, stop_like_ctrl_c

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

# Each command is the function of its name in a module of this folder; only that one is imported.
_MODULES = {
    "run": "run",
    "train": "run",
    "collect": "run",
    "resume": "run",
    "submit": "submit",
    "evaluate": "results",
    "report": "results",
    "video": "results",
    "export": "results",
    "dataset": "dataset",
    "doctor": "doctor",
    "benchmark": "benchmark",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a failure, 2 a mistake, 3 no run to
    resume (--if-there), 130 stopped.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0 if words else MISTAKE
    RAY_IS_GONE.clear()
    ends = argv is None  # so does the process, now: nothing may come in between
    with nullcontext() if ends else restoring_handlers(), insisting():
        stop_like_ctrl_c()
        status = _status(words)
        if ends:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if RAY_IS_GONE.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(words: list[str]) -> int:
    """Run a command, or say in one line why not; returns the exit status."""
    try:
        return _command(words[0])(words[1:])
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        return complain(str(error), MISTAKE)
    except EnvironmentFailure as error:
        print(error.traceback_text, file=sys.stderr)
        return complain(
            f"your environment raised the exception above ({error.where}); reset it with that seed"
            " to see it",
            FAILURE,
        )
    except ActorLost as error:
        if "--debug" in words:
            traceback.print_exc()
        return complain(str(error), FAILURE)
    except (Interrupted, KeyboardInterrupt) as error:
        # A KeyboardInterrupt says nothing; an orderly stop before it says how to go on.
        before = error.__context__ if isinstance(error.__context__, Interrupted) else ""
        line = str(error) or str(before) or "stopped before anything was written"
        return complain(line, INTERRUPTED)


def _command(name: str) -> Callable[[list[str]], int]:
    if name == "--version":
        return _version
    if name not in _MODULES:
        import difflib

        close = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(_MODULES)}"
        raise UserError(f"there is no command {name!r}; {hint}")
    module = import_module(f"cqlray.cli.{_MODULES[name]}")
    command: Callable[[list[str]], int] = getattr(module, name)
    return command


def _version(words: list[str]) -> int:
    from importlib.metadata import version

    print(f"cqlray {version('cqlray')}")
    return 0
