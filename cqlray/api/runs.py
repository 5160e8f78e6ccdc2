"""The Python API for runs: `cqlray run`, `collect` and `resume`, for programs and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqlray.api import session
from cqlray.api.datasets import Dataset, load_dataset
from cqlray.config.load import check
from cqlray.config.presets import PRESETS
from cqlray.config.schema import RunConfig
from cqlray.errors import UserError
from cqlray.results.record import Estimates, fqe_returns
from cqlray.results.record import load_run as load_run_record
from cqlray.results.report.html import write_report
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
        """A row for each member, indexed by `member`: its seed, its values of the sweep, and
        mean_return, returns and updates of its last test. After fitted Q evaluation also
        fqe_return and fqe_updates, of its newest snapshot that has an estimate.

        There are no rows before the students begin, or after `cqlray collect`.

        Raises:
            UserError: pandas is not installed.
        """
        rows = self.summary["members"]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return _frame(rows, columns or MEMBER_COLUMNS).set_index("member")

    def curves(self) -> pandas.DataFrame:
        """A row for each snapshot of each member that has a test or an estimate: member, seed,
        values of the sweep, updates, mean_return and, after fitted Q evaluation, fqe_return. NaN
        where a snapshot lacks one of the two.

        There are no rows before the first test or estimate.

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
        return _frame(list(_snapshot_rows(record, estimates)), columns)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the report's learning curves into `axes`, or into new ones; returns the axes."""
        import matplotlib.pyplot as plt

        from cqlray.results.report.plots import draw_learning_curves

        record = load_run_record(self.run_dir)
        axes = plt.subplots()[1] if axes is None else axes
        draw_learning_curves(
            axes, record, record.config["evaluation"]["bootstrap_samples"], record.config["seed"]
        )
        if axes.get_legend_handles_labels()[1]:  # matplotlib warns of an empty legend
            axes.legend(fontsize="small")
        return axes


def load_run(run_dir: str | Path) -> RunResult:
    """Open a run on disk: finished, under way or interrupted. Nothing is written.

    Raises:
        UserError: it is not a run directory, or one of its files is damaged.
    """
    directory = RunDirectory.open(any_path(run_dir))
    return RunResult(directory.path, session.result(directory))


def _snapshot_rows(record: RunRecord, estimates: Estimates) -> Iterator[dict[str, Any]]:
    """The rows of `RunResult.curves`."""
    for entry in record.members:
        tests, fitted = student_rows(record, entry["member"]), estimates.get(entry["member"], {})
        for updates in sorted(tests.keys() | fitted.keys()):
            returns = tests[updates]["returns"] if updates in tests else []
            estimate = fitted.get(updates)
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
    """Make a whole run; with `config.dataset` set, training alone. Joins a Ray cluster that is
    there, or starts one until the run ends.

    Raises:
        UserError: a mistake in the config, the environment or the dataset; nothing was written
            then.
        Interrupted: Ctrl-C or SIGTERM; `resume` goes on from there.
        EnvironmentFailure: the environment raised.
    """
    with ProgressDisplay(quiet) as progress:
        return _finished(session.start(check(config, "config"), progress))


def collect(config: RunConfig = PRESETS["pendulum"], quiet: bool = False) -> Dataset:
    """Train a teacher and collect its dataset, without students; for `run`, the dataset's path is
    `config.out`. Raises as `run`.
    """
    if config.dataset:
        raise UserError(f"collect makes a dataset, and config.dataset is {config.dataset!r}")
    with ProgressDisplay(quiet) as progress:
        directory = session.start(check(config, "config"), progress, dataset_only=True)
    return load_dataset(str(directory.path))


def resume(run_dir: str | Path, quiet: bool = False, trust: bool | str = False) -> RunResult:
    """Go on with a run exactly where it stopped. Raises as `run`.

    Args:
        trust: of a run that was not made here, and whose environment is in a module, which would
            be imported: the environment's id, or True for whatever it is.
    """
    with ProgressDisplay(quiet) as progress:
        return _finished(session.resume(any_path(run_dir), progress, trust))


def _finished(directory: RunDirectory) -> RunResult:
    write_report(directory.path)
    return RunResult(directory.path, session.result(directory))
