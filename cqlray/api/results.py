"""The Python API for what one does with a run on disk: `cqlray report` and `cqlray video`. Like
`cqlray export`, which `cqlray.results.export` holds, they need no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cqlray.api import session
from cqlray.errors import UserError
from cqlray.results import video as films
from cqlray.results.record import load_run
from cqlray.results.report.comparison_page import write_comparison
from cqlray.results.report.html import write_report
from cqlray.results.trackers.send import require_trackers, send_to
from cqlray.results.trackers.tensorboard import write_tensorboard
from cqlray.storage.locations import AnyPath, any_path


@dataclass(frozen=True)
class Report:
    """A report that was written: its page, and where each tracker shows the run."""

    path: AnyPath
    sent: dict[str, str] = field(default_factory=dict)


def report(*runs: str | Path, out: str | Path | None = None, to: Sequence[str] = ()) -> Report:
    """Write the report of a run, finished or not, and its TensorBoard files; of several runs, one
    page that compares them.

    Args:
        out: the page; by default RUN/report.html, and comparison.html of several runs. Of one run,
            only the page is written then.
        to: the trackers that shall show the run too: tensorboard, wandb, mlflow.

    Raises:
        UserError: no run was given, or one is not a run or is damaged; no such tracker, or it is
            not installed; `to` with several runs, or tensorboard with `out`.
    """
    if isinstance(to, str):
        raise UserError(f"to is {to!r}; it should be a list, [{to!r}]")
    if not runs:
        raise UserError("report needs a run: cqlray.report('runs/NAME')")
    page = None if out is None else any_path(out)
    if len(runs) > 1:
        if to:
            raise UserError("to takes one run at a time")
        page = page or any_path("comparison.html")
        return Report(write_comparison([any_path(run) for run in runs], page))
    if page is not None and "tensorboard" in to:
        raise UserError(
            "to tensorboard writes into the run directory, which out leaves alone; give one of them"
        )
    require_trackers(list(to))  # before anything is written
    run = any_path(runs[0])
    record = load_run(run)
    path = write_report(run, record, page)
    if page is None:
        write_tensorboard(run, record)
    return Report(path, send_to(run, list(to)) if to else {})


def video(
    run: str | Path,
    policy: Sequence[str] = ("student",),
    member: int | str = "best",
    seed: int = 0,
    out: str | Path = "",
    trust: bool | str = False,
) -> AnyPath:
    """Write a GIF or MP4 of one episode of each policy, side by side; returns its path.

    Args:
        policy: any of student, teacher and random.
        member: the student: its index, or "best".
        seed: of the episodes' first state.
        out: the file, .gif or .mp4; by default RUN/video.gif.
        trust: as in `resume`.

    Raises:
        UserError: not a run or not a trusted one, no such policy or member, another kind of file,
            Pillow or PyAV is not installed, or the environment cannot be drawn.
        EnvironmentFailure: a step raised.
    """
    if isinstance(policy, str):
        raise UserError(f"policy is {policy!r}; it should be a list, [{policy!r}]")
    if seed < 0:
        raise UserError(f"seed is {seed}; it should be at least 0")
    path = any_path(run)
    session.require_environment(path)
    try:
        return films.record(str(path), policy, member, seed, out, trust)  # type: ignore[no-any-return]
    except films.CannotRender as error:
        raise UserError(f"no video: {error}") from None
