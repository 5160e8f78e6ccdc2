"""Show a run's progress on stderr: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_INTERVAL = 5.0  # seconds between plain lines of one stage


class ProgressDisplay:
    """Shows one stage after another; call `advance` as often as you like."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, highlight=False)
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.name, self.unit, self.total, self.done = "", "", 0, 0
        self.first_done, self.started, self.said = 0, 0.0, 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal and not self.quiet:
            self.bars = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self.console,
            )
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self.console.print(Text(line), soft_wrap=True)

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a stage of `total` units; `done` of them come from an earlier session."""
        self.name, self.unit, self.total, self.done, self.first_done = name, unit, total, done, done
        self.started = self.said = time.monotonic()
        if self.bars is not None:
            self.task = self.bars.add_task(name, total=total, completed=done, note="")
        elif not self.quiet:
            self._plain("")

    def advance(self, done: int, note: str = "") -> None:
        """Show that `done` units of the stage are complete."""
        self.done = done
        if self.quiet:
            return
        rate = (done - self.first_done) / max(1e-9, time.monotonic() - self.started)
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done, note=f"{rate:,.0f} {self.unit}/s  {note}")
        elif time.monotonic() - self.said > PLAIN_INTERVAL:
            self._plain(note)

    def finish(self, note: str) -> None:
        """Show that the stage has ended, perhaps before its total."""
        if self.quiet:
            return
        if self.bars is not None and self.task is not None:
            self.bars.update(
                self.task, total=max(1, self.done), completed=max(1, self.done), note=note
            )
            self.bars.stop_task(self.task)
        else:
            self.say(f"{self.name:<12} done in {time.monotonic() - self.started:.0f} s  {note}")

    def _plain(self, note: str) -> None:
        self.said = time.monotonic()
        elapsed = self.said - self.started
        rate = (self.done - self.first_done) / max(1e-9, elapsed)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        speed = f" ({rate:,.0f}/s{left})" if elapsed > 1 else ""
        self.say(
            f"{self.name:<12} {self.done:,} of {self.total:,} {self.unit}{speed}  {note}".rstrip()
        )
