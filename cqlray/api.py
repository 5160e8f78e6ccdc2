"""The Python API: what the commands `cqlray run`, `train` and `resume` do, called from a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray import session
from cqlray.config import PRESETS, RunConfig
from cqlray.filesystem import AnyPath, any_path
from cqlray.reporting.html import write_report
from cqlray.reporting.progress import ProgressDisplay
from cqlray.storage import RunDirectory


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, and the summary that `--json` prints."""

    run_dir: AnyPath
    summary: dict[str, Any]

    @property
    def iqm(self) -> float | None:
        """Interquartile mean over members and episodes at the last test."""
        return self.summary["iqm"]  # type: ignore[no-any-return]


def run(config: RunConfig = PRESETS["pendulum"], quiet: bool = False) -> RunResult:
    """A whole run; with `config.dataset` set, training alone. Joins a running Ray or starts one for the time.

    Raises:
        UserError: a mistake in the config, the environment or the dataset; nothing was written then.
        Interrupted: Ctrl-C or SIGTERM; `resume` goes on from there.
        EnvironmentFailure: the environment raised.
    """
    with ProgressDisplay(quiet) as progress:
        return _finished(session.start(config, progress))


def resume(run_dir: str | Path, quiet: bool = False) -> RunResult:
    """Go on with a run exactly where it stopped. Raises as `run`."""
    with ProgressDisplay(quiet) as progress:
        return _finished(session.resume(any_path(run_dir), progress))


def _finished(directory: RunDirectory) -> RunResult:
    write_report(directory.path)
    return RunResult(directory.path, session.result(directory))
