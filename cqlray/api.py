"""The Python API: what the commands `cqlray run`, `train` and `resume` do, called from a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray import session
from cqlray.config import PRESETS, RunConfig
from cqlray.errors import UserError
from cqlray.evaluation.summary import student_rows
from cqlray.filesystem import AnyPath, any_path
from cqlray.reporting.html import write_report
from cqlray.reporting.progress import ProgressDisplay
from cqlray.reporting.record import load_run as load_run_record
from cqlray.storage import RunDirectory

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, and the summary that `--json` prints."""

    run_dir: AnyPath
    summary: dict[str, Any]

    @property
    def iqm(self) -> float | None:
        """Interquartile mean over members and episodes at the last test."""
        return self.summary["iqm"]  # type: ignore[no-any-return]

    @property
    def members(self) -> pandas.DataFrame:
        """A row for each member: seed, what the sweep chose, and its last test.

        Raises:
            UserError: pandas is not installed.
        """
        return _frame(self.summary["members"]).set_index("member")

    def curves(self) -> pandas.DataFrame:
        """A row for each test of a member: member, seed, what the sweep chose, updates, mean_return.

        Raises:
            UserError: pandas is not installed.
        """
        record = load_run_record(self.run_dir)
        rows = [
            {"member": entry["member"], "seed": entry["seed"], **entry["swept"], "updates": updates, "mean_return": mean}
            for entry in record.members
            for updates, row in student_rows(record, entry["member"]).items()
            for mean in [sum(row["returns"]) / len(row["returns"])]
        ]
        return _frame(rows)

    def plot(self, axes: Axes | None = None) -> Axes:
        """The learning curves, as in the report, into `axes` or new ones; the axes are returned."""
        import matplotlib.pyplot as plt

        from cqlray.reporting.plots import draw_learning_curves

        record = load_run_record(self.run_dir)
        axes = plt.subplots()[1] if axes is None else axes
        draw_learning_curves(axes, record, record.config["evaluation"]["bootstrap_samples"], record.config["seed"])
        axes.legend(fontsize="small")
        return axes


def load_run(run_dir: str | Path) -> RunResult:
    """A run that is there: finished, under way or interrupted. Nothing is written.

    Raises:
        UserError: it is not a run directory, or one of its files is damaged.
    """
    directory = RunDirectory.open(any_path(run_dir))
    return RunResult(directory.path, session.result(directory))


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise UserError("data frames need pandas, which is not installed: pip install pandas") from None
    return pandas.DataFrame(rows)


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
