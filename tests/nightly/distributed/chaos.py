"""`python -m tests.nightly.distributed.chaos --trials 50 --seed 0`: kill something at random in
a short run, many times over.

Each trial is a whole run on a cluster of three nodes. One victim is killed at a random moment;
where it was the driver, the run is resumed. It must end as the undisturbed run did: checkpoints,
snapshots and teacher bit for bit, the same evaluations, the same dataset, no transition lost or
doubled.

Victim and moment follow from --seed and the trial's number. A moment is "so long after this file
appeared", drawn from what the undisturbed run did, so that a slow machine meets it in the same
place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cqlray.config.load import dump_yaml
from cqlray.config.schema import RunConfig
from cqlray.data.episode import Shard
from cqlray.data.shards import from_parquet
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config
from tests.integration.test_driver import outcome
from tests.nightly.distributed.nodes import (
    HEAD,
    JUDGE,
    ROLES,
    Driver,
    EndedEarly,
    Nodes,
    cluster,
)
from tests.processes import kill

NODE, DRIVER, WRITING, WRITER = "node", "driver", "driver while writing", "actor while writing"
VICTIMS = (*ROLES, NODE, DRIVER, WRITING, WRITER)
# by folder
WRITERS = {
    "teacher": "Teacher",
    "dataset": "RolloutWorker",
    "checkpoints": "Learner",
    "snapshots": "Learner",
}
CPUS = 2  # of each node
TIMEOUT = 120.0  # seconds of a trial
ATTEMPTS = 3  # at a trial whose run was over before its moment came

Say = Callable[[str], None]


@dataclass(frozen=True)
class Series:
    """What the trials of one command have in common."""

    seed: int = 0
    hidden: bool = False  # the driver alone sees the run directories
    fitted_q: bool = False

    def victims(self) -> list[str]:
        """What may be killed; where directories are hidden, actors write none of their files."""
        listed = [victim for victim in VICTIMS if not (self.hidden and victim == WRITER)]
        return [*listed, JUDGE] if self.fitted_q else listed

    def config(self, out: Path) -> RunConfig:
        """A short run."""
        config = small_config(out)
        return replace(config, evaluation=replace(config.evaluation, fitted_q=self.fitted_q))


@dataclass(frozen=True)
class Timeline:
    """When what happened in the undisturbed run: seconds since its beginning."""

    files: dict[str, float]  # appeared
    roles: dict[str, tuple[float, float]]  # had processes from, to
    seconds: float


@dataclass(frozen=True)
class Moment:
    """An instant of a run, told by the last file that appeared before it."""

    file: str
    delay: float  # seconds

    def __str__(self) -> str:
        return f"{self.delay:.2f} s after {self.file}" if self.delay else f"at {self.file}"


@dataclass
class Trial:
    """What was done in a trial and how it ended."""

    trial: int
    victim: str
    moment: str
    killed: str = "nothing"
    seconds: float = 0.0
    equal: bool = False
    lost_transitions: int = 0
    doubled_transitions: int = 0
    repeated_tests: int = 0
    problem: str = ""

    def line(self) -> str:
        """For people."""
        lost = f"{self.lost_transitions} transitions lost, {self.doubled_transitions} doubled"
        verdict = "equal" if self.equal else f"NOT EQUAL: {self.problem or lost}"
        return (
            f"trial {self.trial:3}  {self.seconds:5.1f} s  {self.killed}, {self.moment}: {verdict}"
        )


def choose_victim(series: Series, trial: int) -> str:
    """Each victim once in so many trials, in random order."""
    victims = series.victims()
    turn, place = divmod(trial, len(victims))
    return random.Random(f"{series.seed}/{turn}").sample(victims, len(victims))[place]


def choose_moment(timeline: Timeline, victim: str, rng: random.Random) -> Moment:
    """A moment while the victim lives: any, or with even chances the very instant that a file
    appears.
    """
    # Before config.yaml there is nothing that could be resumed.
    begin, end = timeline.roles.get(victim, (timeline.files["config.yaml"], timeline.seconds))
    begin = max(begin, timeline.files["config.yaml"])
    if rng.random() < 0.5:
        return Moment(
            rng.choice([name for name, at in timeline.files.items() if begin <= at <= end]), 0.0
        )
    instant = rng.uniform(begin, end)
    last = max(
        (name for name, at in timeline.files.items() if at <= instant),
        key=timeline.files.__getitem__,
    )
    return Moment(last, instant - timeline.files[last])


def undisturbed(nodes: Nodes, out: Path, series: Series) -> Timeline:
    """Make the run that the others are compared with."""
    files: dict[str, float] = {}
    roles: dict[str, tuple[float, float]] = {}
    began = time.monotonic()
    run = begin(nodes, out, series)
    while run.process.poll() is None:
        now = time.monotonic() - began
        files |= {name: now for name in sorted(published(out)) if name not in files}
        for role in {*ROLES, JUDGE} & set(series.victims()):
            if nodes.processes(role):
                roles[role] = (roles.get(role, (now, now))[0], now)
        time.sleep(0.005)
    run.finish()
    return Timeline(files, roles, time.monotonic() - began)


def begin(nodes: Nodes, out: Path, series: Series) -> Driver:
    """Start a run."""
    config = out.with_suffix(".yaml")
    config.write_text(dump_yaml(series.config(out)))
    return nodes.start("run", "--config", str(config), "--quiet")


def published(out: Path) -> set[str]:
    """Names of the files that every run has; TensorBoard's have the time in them."""
    return {
        name
        for name in files(out)
        if not any(part.startswith((".", "tensorboard")) for part in Path(name).parts)
    }


def being_written(out: Path) -> list[str]:
    """Names of the files that are there under the name that they have while they are written."""
    return [
        name for name in files(out) if Path(name).name.startswith(".") and name.endswith(".tmp")
    ]


def files(out: Path) -> list[str]:
    """Names of all files in a directory that others change meanwhile."""
    return [
        os.path.relpath(Path(folder) / name, out)
        for folder, _, names in os.walk(out)
        for name in names
    ]


def strike(
    nodes: Nodes, run: Driver, out: Path, victim: str, moment: Moment, rng: random.Random
) -> str:
    """Wait for the moment and kill the victim, or for a role the next process that it has; what was
    killed.

    Raises:
        EndedEarly: the run was over before.
    """
    run.wait_for((out / moment.file).exists)
    time.sleep(moment.delay)
    if victim in (DRIVER, WRITING):
        written = run.wait_for(lambda: being_written(out), every=0.0) if victim == WRITING else []
        if run.process.poll() is not None:
            raise EndedEarly("the run was over")
        run.kill()
        return ", ".join([victim, *(Path(name).name for name in written)])
    if victim == WRITER:
        return kill_writer(nodes, run, out)
    if victim == NODE:
        busy = set(nodes.workers().values()) - {HEAD}
        name = rng.choice(sorted(busy or set(nodes.raylets) - {HEAD}))
        lost = [role for role in ROLES if name in nodes.processes(role).values()]
        if run.process.poll() is not None:
            raise EndedEarly("the run was over")
        nodes.kill(name)
        nodes.add(f"{name}+", CPUS)
        return f"node with {', '.join(lost) or 'nothing'}"
    found = run.wait_for(lambda: sorted(nodes.processes(victim)))
    process = rng.choice(found)
    place = nodes.processes(victim).get(process)
    if not kill(process):
        raise EndedEarly("the process had just ended")
    return f"{victim} on {place}"


def kill_writer(nodes: Nodes, run: Driver, out: Path) -> str:
    """Wait for an actor's file to be under the name that it has while it is written, and kill those
    that can be writing it.
    """

    def written() -> list[str]:
        return [name for name in being_written(out) if Path(name).parts[0] in WRITERS]

    while True:
        processes = {role: list(nodes.processes(role)) for role in set(WRITERS.values())}
        looked = time.monotonic()
        while time.monotonic() - looked < 0.1:
            for name in written():
                role = WRITERS[Path(name).parts[0]]
                if killed := [kill(process) for process in processes[role]]:
                    return f"{sum(killed)} {role} while writing {Path(name).name}"
            if run.process.poll() is not None:
                raise EndedEarly("the run was over")


def attempt(
    nodes: Nodes,
    out: Path,
    series: Series,
    trial: Trial,
    victim: str,
    moment: Moment,
    rng: random.Random,
) -> None:
    """A run with one thing killed in it, to its end."""
    deadline = time.monotonic() + TIMEOUT
    wait_until_idle(nodes)
    run = begin(nodes, out, series)
    try:
        trial.killed = strike(nodes, run, out, victim, moment, rng)
        if victim in (DRIVER, WRITING):
            again = ["resume", str(out), "--quiet"]
            run = (
                nodes.start(*again) if (out / "config.yaml").exists() else begin(nodes, out, series)
            )
        run.finish(deadline - time.monotonic())
    finally:
        if run.process.poll() is None:
            run.kill()


def wait_until_idle(nodes: Nodes) -> None:
    """Until the actors of a driver that was killed have followed it."""
    deadline = time.monotonic() + 30
    while nodes.workers() and time.monotonic() < deadline:
        time.sleep(0.05)


def examine(trial: Trial, out: Path, reference: Path) -> None:
    """Compare a run with the undisturbed one."""
    ours, theirs = outcome(out), outcome(reference)
    differ = [part for part in theirs if ours.get(part) != theirs[part]]
    if "files" in differ:
        differ += different_keys(ours["files"], theirs["files"])
    tests = tests_by_key(out)
    differ += [
        f"repetitions of test {key}"
        for key, rows in tests.items()
        if any(row != rows[0] for row in rows)
    ]
    trial.repeated_tests = sum(len(rows) - 1 for rows in tests.values())
    found, wanted = transitions(out), transitions(reference)
    trial.lost_transitions = (wanted - found).total()
    trial.doubled_transitions = (found - wanted).total()
    trial.problem = f"{', '.join(differ)} differ" if differ else ""
    trial.equal = not (differ or trial.lost_transitions or trial.doubled_transitions)


def different_keys(ours: Any, theirs: Any) -> list[str]:
    """Keys of two dictionaries with different values, or in one of them only."""
    return [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]


def tests_by_key(out: Path) -> dict[tuple[Any, ...], list[Any]]:
    """All rows of each of the students' tests.

    A repeated test is no fault: readers take the last row, all being equal.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in RunDirectory(out).rows("evaluations.jsonl"):
        if row["policy"] == "student":
            without_time = {name: value for name, value in row.items() if name != "seconds"}
            found.setdefault((row["member"], row["updates"]), []).append(without_time)
    return found


def transitions(out: Path) -> Counter[tuple[str, bytes]]:
    """How often each transition stands in each shard of the dataset and of the teacher's replay."""
    files = sorted([*out.glob("dataset/shard-*.parquet"), *out.glob("teacher/replay-*.parquet")])
    counts: Counter[tuple[str, bytes]] = Counter()
    for path in files:
        counts.update(
            (path.name, content) for content in contents(from_parquet(path.read_bytes(), path.name))
        )
    return counts


def contents(shard: Shard) -> Iterator[bytes]:
    """Each transition of a shard as bytes."""
    for episode in shard.episodes():
        for step in range(len(episode)):
            ends = bytes([bool(episode.terminations[step]), bool(episode.truncations[step])])
            pair = episode.observations[step : step + 2].tobytes()
            yield pair + episode.actions[step].tobytes() + episode.rewards[step].tobytes() + ends


def run_trial(
    nodes: Nodes, folder: Path, reference: Path, timeline: Timeline, series: Series, number: int
) -> Trial:
    """One trial; its run directory is left behind only if it is not equal."""
    began = time.monotonic()
    victim = choose_victim(series, number)
    for again in range(ATTEMPTS):
        rng = random.Random(f"{series.seed}/{number}/{again}")
        moment = choose_moment(timeline, victim, rng)
        trial = Trial(number, victim, str(moment))
        out = folder / f"trial-{number}-{again}"
        try:
            attempt(nodes, out, series, trial, victim, moment, rng)
            examine(trial, out, reference)
        except EndedEarly as error:
            trial.problem = f"never killed anything: {error}"
            shutil.rmtree(out, ignore_errors=True)
            continue
        except Exception as error:
            trial.problem = f"{type(error).__name__}: {error}"
        break
    trial.seconds = round(time.monotonic() - began, 1)
    if trial.equal:
        shutil.rmtree(out)
    return trial


def chaos(trials: int, series: Series, first: int = 0, say: Say = print) -> dict[str, Any]:
    """Trials `first` to `first + trials - 1` of a series.

    Returns: `trials`, `equal`, `lost_transitions`, `doubled_transitions`, …, and `unequal`, the
    trials that were not.
    """
    folder = Path(tempfile.mkdtemp(prefix="cqlray-chaos-"))
    done = []
    with cluster(CPUS, (CPUS, CPUS), folder if series.hidden else None) as nodes:
        timeline = undisturbed(nodes, folder / "undisturbed", series)
        say(f"undisturbed {timeline.seconds:5.1f} s  {len(timeline.files)} files")
        for number in range(first, first + trials):
            done.append(run_trial(nodes, folder, folder / "undisturbed", timeline, series, number))
            say(done[-1].line())
    unequal = [asdict(trial) for trial in done if not trial.equal]
    if unequal:
        options = "--hidden " * series.hidden + "--fitted-q " * series.fitted_q
        say(f"the runs that are not equal lie in {folder}; each is repeated by:")
        say(f"{options}--seed {series.seed} --first TRIAL --trials 1")
    else:
        shutil.rmtree(folder)
    return {
        "trials": len(done),
        "equal": sum(trial.equal for trial in done),
        "lost_transitions": sum(trial.lost_transitions for trial in done),
        "doubled_transitions": sum(trial.doubled_transitions for trial in done),
        "repeated_tests": sum(trial.repeated_tests for trial in done),
        **asdict(series),
        "victims": dict(Counter(trial.victim for trial in done)),
        "unequal": unequal,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 if all trials ended equal."""
    parser = argparse.ArgumentParser(
        "python -m tests.nightly.distributed.chaos",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first trial, to repeat one [0]"
    )
    parser.add_argument(
        "--hidden",
        action="store_true",
        help="run directories on the driver's machine alone; for root",
    )
    parser.add_argument(
        "--fitted-q",
        action="store_true",
        help="with fitted Q evaluation, whose processes are killed, too",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, the last line of stdout"
    )
    options = parser.parse_args(argv)
    series = Series(options.seed, options.hidden, options.fitted_q)
    result = chaos(options.trials, series, options.first, partial(print, flush=True))
    print(json.dumps(result) if options.json else f"{result['equal']} of {result['trials']} equal")
    return 0 if result["equal"] == result["trials"] else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is taken down
    sys.exit(main())
