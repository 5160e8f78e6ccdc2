"""Requests to stop, and who hears them: signals, the loop, the writer, a teacher and learners in
the middle of their work.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from cqlray.api import runs as api
from cqlray.api import session
from cqlray.cli import main as cli
from cqlray.config.load import dump_yaml
from cqlray.errors import Interrupted
from cqlray.runtime import event_loop
from cqlray.runtime.cluster import Cluster
from cqlray.runtime.event_loop import Stop
from cqlray.runtime.journal import Journal
from cqlray.runtime.signals import restoring_handlers
from cqlray.stages import teach
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.writer import Writer
from cqlray.workers.teacher import Teacher
from tests.conftest import small_config
from tests.integration.test_driver import ROOT, assert_same

pytestmark = pytest.mark.ray

# What a cqlray process of these tests begins with. `sys.argv[1]` is a file that appears with a
# learner's first answer.
PROLOGUE = """
import sys, time
from pathlib import Path
from cqlray.stages import train as students
from cqlray.runtime import metrics
from cqlray.cli.main import main
sign, advanced = Path(sys.argv.pop(1)), metrics.RunMetrics.advanced

def noted(self, *args):
    advanced(self, *args)
    sign.touch()

metrics.RunMetrics.advanced = noted
students.SECONDS_PER_ADVANCE = 0.3
"""
SLOW_SAVE = """
class Slow(students.Learner):
    def save(self):
        time.sleep({seconds})
        return super().save()

students.Learner = Slow
"""
HANGING_STORAGE = """
from cqlray.storage.run_directory import RunDirectory
append = RunDirectory.append
RunDirectory.append = lambda self, *args: time.sleep(600) if sign.exists() else append(self, *args)
"""


class Run:
    """A `train` of a long run in a process of its own, with no snapshot before its end."""

    def __init__(self, code: str, dataset: Path, folder: Path, cluster: str) -> None:
        self.out, self.sign = folder / "run", folder / "answered"
        self.config = long_config(self.out, dataset)
        (folder / "c.yaml").write_text(dump_yaml(self.config))
        command = [sys.executable, "-c", f"{PROLOGUE}{code}\nsys.exit(main())", str(self.sign)]
        self.process = subprocess.Popen(
            [*command, "train", "--config", str(folder / "c.yaml")],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_answer(self) -> None:
        """Until a learner has answered its first call."""
        while not self.sign.exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def wait_for_line(self, part: str) -> None:
        """Until it has said so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if part in line:
                return
        raise AssertionError(f"it never said {part!r}")

    def end(self, within: float) -> str:
        """What it said last, if it ends within so many seconds as a stopped run does."""
        began = time.monotonic()
        _, said = self.process.communicate(timeout=60)
        assert time.monotonic() - began < within, said
        assert self.process.returncode == 130, said
        assert "Traceback" not in said
        assert said.splitlines()[-1] == f"cqlray: stopped; go on with: cqlray resume {self.out}"
        return said


def long_config(out: Path, dataset: Path) -> Any:
    config = small_config(out, dataset=str(dataset))
    cql = dataclasses.replace(config.cql, num_updates=1_500)
    evaluation = dataclasses.replace(config.evaluation, interval=1_500)
    return dataclasses.replace(config, cql=cql, evaluation=evaluation)


@pytest.fixture
def begin(ray_cluster: str, finished_run: Path, tmp_path: Path) -> Iterator[Any]:
    """Begins a run with this code before its main."""
    runs: list[Run] = []

    def started(code: str = "") -> Run:
        runs.append(Run(code, finished_run, tmp_path, ray_cluster))
        return runs[-1]

    yield started
    for run in runs:
        run.process.kill()
        run.process.communicate()


# -- whole runs ------------------------------------------------------------------------------------


def test_sigterm_leaves_a_last_checkpoint_from_which_the_same_bits_follow(
    begin: Any, finished_run: Path, tmp_path: Path
) -> None:
    """Also when it comes twice, as `ray job stop` sends it where a script passes it on."""
    patient = (  # on a busy machine two do not come together
        "from cqlray.runtime import event_loop\nevent_loop.SECONDS_OF_ONE_REQUEST = 20.0"
    )
    run = begin(SLOW_SAVE.format(seconds=1.5) + patient)
    run.wait_for_answer()
    run.process.terminate()
    run.wait_for_line("stopping after a last checkpoint")
    run.process.terminate()
    run.end(within=20)
    done = [
        checkpoint.read_metadata(path)["updates"] for path in (run.out / "checkpoints").glob("*")
    ]
    assert done and all(0 < updates < 1_500 for updates in done), done
    api.resume(run.out, quiet=True)
    undisturbed = api.run(long_config(tmp_path / "undisturbed", finished_run), quiet=True).run_dir
    assert_same(undisturbed, run.out)
    sessions = [
        row["what"]
        for row in RunDirectory(run.out).rows("events.jsonl")
        if row["event"] == "session"
    ]
    assert sessions == ["began", "stopped", "resumed", "finished"]


def test_ctrl_c_twice_does_not_wait(begin: Any) -> None:
    run = begin(SLOW_SAVE.format(seconds=60))
    run.wait_for_answer()
    run.process.send_signal(signal.SIGINT)
    run.wait_for_line("stopping after a last checkpoint")
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(3)  # once, it does wait
    run.process.send_signal(signal.SIGINT)
    run.end(within=10)
    assert not list((run.out / "checkpoints").glob("*"))


def test_ctrl_c_twice_does_not_wait_for_storage_that_is_away(begin: Any) -> None:
    run = begin(HANGING_STORAGE)
    run.wait_for_answer()
    run.process.send_signal(signal.SIGINT)
    run.wait_for_line("stopping after a last checkpoint")
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(3)
    run.process.send_signal(signal.SIGINT)
    run.end(within=10)


class SlowTeacher(Teacher):
    """Its updates take some time."""

    def learn(self, round_index: int, *shards: Any) -> tuple[dict[str, Any], bytes | None]:
        time.sleep(1.0)
        return super().learn(round_index, *shards)


def test_sigterm_in_the_midst_of_the_teachers_updates_keeps_them(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a round whose policy is to be tested: the test is made up for."""
    out, play = tmp_path / "run", teach.Lessons._play

    async def disturbed(self: teach.Lessons, teacher: Any) -> Any:
        episodes = await play(self, teacher)
        if self.rounds == 3:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return episodes

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"cqlray resume {out}"):
        patch.setattr(teach, "Teacher", SlowTeacher)
        patch.setattr(teach.Lessons, "_play", disturbed)
        api.run(small_config(out), quiet=True)
    kept = checkpoint.read_metadata(out / "teacher" / "checkpoint.safetensors")
    assert kept["rounds"] == 4
    assert [test["round"] for test in kept["tests"]] == [2]
    api.resume(out, quiet=True)
    assert_same(finished_run, out)


# -- its parts -------------------------------------------------------------------------------------


@pytest.fixture
def stop() -> Iterator[Stop]:
    """What this process's signals ask for."""
    made = Stop(print)
    with restoring_handlers():
        made.handle_signals()
        yield made


def sent(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_what_counts_as_a_second_request(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    sent(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
    assert stop.requested and not stop.hurried, "one request that came by several ways"
    monkeypatch.setattr(event_loop, "SECONDS_OF_ONE_REQUEST", 0.0)
    sent(signal.SIGTERM)
    assert stop.hurried
    with pytest.raises(KeyboardInterrupt):
        sent(signal.SIGTERM)


def test_ctrl_c_is_never_taken_for_an_echo(stop: Stop) -> None:
    sent(signal.SIGINT)
    assert stop.requested and not stop.hurried
    sent(signal.SIGTERM)
    assert not stop.hurried
    sent(signal.SIGINT)
    assert stop.hurried


class Busy:
    """Takes its time."""

    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def test_replies_are_seen_out_once_asked_and_left_when_asked_again(
    ray_cluster: str, stop: Stop
) -> None:
    async def story() -> list[float]:
        stop.attach()
        with closing(Cluster(print)) as cluster:
            actor = cluster.start(Busy, cpus=0.1)
            kept = actor.ask("work", 1.0)
            sent(signal.SIGINT)
            found = [await stop.see_out(kept, "seeing it out")]
            with pytest.raises(asyncio.CancelledError):
                stop.check()  # what comes after is stopped, too
            slow = actor.ask("work", 600)
            threading.Timer(0.5, sent, (signal.SIGINT,)).start()
            with pytest.raises(asyncio.CancelledError):
                await stop.see_out(slow, "seeing it out")
            return found

    assert asyncio.run(story()) == [1.0]


def test_whoever_waits_for_the_writer_can_be_told_not_to(tmp_path: Path) -> None:
    over, background, stop = threading.Event(), Writer(), Stop(print)
    journal = Journal(RunDirectory(tmp_path), background, stop)

    async def story() -> float:
        stop.attach()
        stop.requests.append(0.0)
        background.put(lambda: over.wait(30))  # type: ignore[arg-type, return-value]
        threading.Timer(0.3, stop.request).start()
        began = time.monotonic()
        for _ in range(2):  # also who begins to wait after that
            with pytest.raises(asyncio.CancelledError):
                await journal.flush()
        return time.monotonic() - began

    assert 0.2 < asyncio.run(story()) < 5
    over.set()
    background.flush()
    background.close()


def test_the_third_request_waits_for_nothing_even_if_the_loop_hangs(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "SECONDS_OF_ONE_REQUEST", 0.0)
    over = threading.Event()

    async def hanging() -> None:
        over.wait(30)

    for delay in (0.2, 0.3, 0.4):
        threading.Timer(delay, sent, (signal.SIGINT,)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        event_loop.run(hanging, stop)
    assert time.monotonic() - began < 5
    over.set()


def test_a_run_from_within_a_running_loop_as_in_a_notebook(
    ray_cluster: str, finished_run: Path, tmp_path: Path
) -> None:
    async def cell() -> Path:
        await asyncio.sleep(0)
        return Path(api.run(small_config(tmp_path / "run"), quiet=True).run_dir)

    assert_same(finished_run, asyncio.run(cell()))


def test_ctrl_c_at_any_place_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third Ctrl-C is a KeyboardInterrupt: within a run, or as the run's lease is given back
    after it was stopped.
    """

    def within(_: Any) -> int:
        with session.saying_how_to_go_on("cqlray resume X"):
            raise KeyboardInterrupt

    def afterwards(_: Any) -> int:
        try:
            with session.saying_how_to_go_on("cqlray resume X"):
                raise Interrupted
        finally:
            raise KeyboardInterrupt

    def before(_: Any) -> int:
        raise KeyboardInterrupt

    said = []
    for command in (within, afterwards, before):
        monkeypatch.setattr("cqlray.cli.run.resume", command)
        with suppress(KeyboardInterrupt):
            assert cli.main(["resume", "X"]) == 130
        said.append(capsys.readouterr().err)
    stopped = "cqlray: stopped; go on with: cqlray resume X\n"
    assert said == [stopped, stopped, "cqlray: stopped before anything was written\n"]
