"""The Python API: what the commands `cqlray run`, `train` and `resume` do, called from a
program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray.api import session
from cqlray.config.presets import PRESETS
from cqlray.config.schema import RunConfig
from cqlray.errors import UserError
from cqlray.results.record import load_run as load_run_record
from cqlray.results.report.html import write_report
from cqlray.results.series import Estimates, fqe_returns
from cqlray.results.statistics.summary import RunRecord, student_rows
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MEMBER_COLUMNS = ("member", "seed", "mean_return", "returns", "updates")  # of a run without a sweep


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, and the summary that `--json` prints."""

    run_dir: AnyPath
    summary: dict[str, Any]

    @property
    def iqm(self) -> float | None:
        """Interquartile mean over members' mean returns at the last test."""
        return self.summary["iqm"]  # type: ignore[no-any-return]

    @property
    def members(self) -> pandas.DataFrame:
        """A row for each member, `member` is the index: seed, what the sweep chose, and its last
        test, mean_return, returns and updates. Where fitted Q evaluation judged the run also
        fqe_return and fqe_updates, of the newest snapshot of the member that it judged.

        No rows before the students are begun, or of a data set that was collected alone.

        Raises:
            UserError: pandas is not installed.
        """
        rows = self.summary["members"]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return _frame(rows, columns or MEMBER_COLUMNS).set_index("member")

    def curves(self) -> pandas.DataFrame:
        """A row for each snapshot of a member that was judged: member, seed, what the sweep chose,
        updates, mean_return of its test and, where fitted Q evaluation judged the run, fqe_return.
        NaN stands for what there is not of a snapshot.

        No rows before the first test or estimate.

        Raises:
            UserError: pandas is not installed.
        """
        record = load_run_record(self.run_dir)
        estimates = fqe_returns(record)
        swept = dict.fromkeys(name for entry in record.members for name in entry["swept"])
        columns = [
            "member",
            "seed",
            *swept,
            "updates",
            "mean_return",
            *["fqe_return"] * bool(estimates),
        ]
        return _frame(list(_judged(record, estimates)), columns)

    def plot(self, axes: Axes | None = None) -> Axes:
        """The learning curves, as in the report, into `axes` or new ones; the axes are returned."""
        import matplotlib.pyplot as plt

        from cqlray.results.report.plots import draw_learning_curves

        record = load_run_record(self.run_dir)
        axes = plt.subplots()[1] if axes is None else axes
        draw_learning_curves(
            axes, record, record.config["evaluation"]["bootstrap_samples"], record.config["seed"]
        )
        if axes.get_legend_handles_labels()[1]:  # matplotlib warns of a legend of nothing
            axes.legend(fontsize="small")
        return axes


def load_run(run_dir: str | Path) -> RunResult:
    """A run that is there: finished, under way or interrupted. Nothing is written.

    Raises:
        UserError: it is not a run directory, or one of its files is damaged.
    """
    directory = RunDirectory.open(any_path(run_dir))
    return RunResult(directory.path, session.result(directory))


def _judged(record: RunRecord, estimates: Estimates) -> Iterator[dict[str, Any]]:
    for entry in record.members:
        tests, own = student_rows(record, entry["member"]), estimates.get(entry["member"], {})
        for updates in sorted(tests.keys() | own.keys()):
            returns, estimate = (
                tests[updates]["returns"] if updates in tests else [],
                own.get(updates),
            )
            yield {
                "member": entry["member"],
                "seed": entry["seed"],
                **entry["swept"],
                "updates": updates,
                "mean_return": float(sum(returns) / len(returns)) if len(returns) else math.nan,
                "fqe_return": math.nan if estimate is None else estimate,
            }


def _frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise UserError(
            "data frames need pandas, which is not installed: pip install pandas"
        ) from None
    return pandas.DataFrame(rows, columns=columns)


def run(config: RunConfig = PRESETS["pendulum"], quiet: bool = False) -> RunResult:
    """A whole run; with `config.dataset` set, training alone. Joins a running Ray or starts one for
    the time.

    Raises:
        UserError: a mistake in the config, the environment or the dataset; nothing was written
            then.
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
