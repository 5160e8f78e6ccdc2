"""What it costs to run the learner in its Ray actor, with its evaluators elsewhere, beside its bare
loop.

Five rates over the same data and members, measured in turns, five rounds:
- bare: the learner's updates in a plain process, one behind the other; no calls, no snapshots, no
  Ray.
- actor: the learner in its actor, called as the driver calls it: SECONDS_PER_ADVANCE, a snapshot
  and a checkpoint at each interval, each carried here. An interval is as many updates as take
  SECONDS_PER_ADVANCE, shorter than in any preset.
- tested: the same, and each snapshot is tested by the evaluators, as in a run.
- contended: the same, while every evaluator plays without a pause, as no run asks for.
- beside: the bare loop, while as many plain processes play like that: what a core's neighbours cost
  (caches, memory, the clock of a chip whose other cores are busy), whoever runs them. Contended is
  set against this as well.

Besides: the CPU time of the driver's process for a learner's call and for a test by an evaluator,
which bounds how many learners and evaluators one driver can serve. In these calls is as little as
can be: no updates, one episode.

Updates per second of the process's CPU time tell what the actor itself costs, whoever else uses the
machine: Ray runs its workers at a lower priority (niceness 15), so on a busy machine other programs
slow an actor more than a plain process.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from cqlray import seeding
from cqlray.benchmarks.command import parse, say, show
from cqlray.benchmarks.contestants import ROUNDS, Apart, Turn, ratios, timed
from cqlray.benchmarks.learner import WORKLOADS
from cqlray.config.schema import EnvConfig, Member, ResourcesConfig, RunConfig
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.envs.scaling import ActionScaling
from cqlray.runtime.placement import Plan, make_plan
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.learner import CHUNK, Advance, Learner, LearnerSpec
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask

if TYPE_CHECKING:
    from cqlray.runtime.cluster import Loop, Team

NAMES = {
    "bare": "bare loop",
    "actor": "actor",
    "tested": "actor, snapshots tested",
    "contended": "actor, evaluators busy",
    "beside": "bare loop, players busy",
}
ENV = EnvConfig("Pendulum-v1")
SHARDS, EPISODES_PER_SHARD = 10, 10  # of 200 steps
FOREVER = 10**9
CALLS = 100  # of each kind, one behind the other, for what they cost the driver
# Those of the environment's sizes.
OF_PENDULUM = [
    name
    for name, workload in WORKLOADS.items()
    if (workload.observation_dim, workload.action_dim) == (3, 1)
]


class BareLearner:
    """The learner's updates and nothing else."""

    def __init__(
        self, members: list[Member], scaling: ActionScaling, threads: int, *shards: Shard
    ) -> None:
        spec = LearnerSpec(members, 0, scaling, FOREVER, "cpu", threads, "float32")
        self.learner = Learner(spec, None, *shards)

    def turn(self, seconds: float) -> Turn:
        """Updates for at least so long."""

        def work() -> int:
            before, deadline = self.learner.updates(), time.perf_counter() + seconds
            while True:
                self.learner.population.advance(CHUNK, self.learner.gather)
                if time.perf_counter() >= deadline:
                    return self.learner.updates() - before

        return timed(work)


class BarePlayer:
    """An evaluator that no driver calls."""

    def __init__(self, spec: EnvSpec) -> None:
        self.evaluator = Evaluator(ENV, spec)

    def play(self, snapshot: bytes, part: tuple[int, ...], seconds: float) -> None:
        """Test a snapshot again and again for at least so long."""
        deadline = time.perf_counter() + seconds
        while True:
            self.evaluator.evaluate(snapshot, part)
            if time.perf_counter() >= deadline:
                return


class DrivenLearner:
    """A learner actor, called as the driver calls it, and evaluators for its snapshots."""

    def __init__(self, loop: Loop, learner: Any, evaluators: Team) -> None:
        from cqlray.runtime import crew
        from cqlray.stages import train as students

        self.loop, self.learner, self.evaluators = loop, learner, evaluators
        self.seconds_per_advance = students.SECONDS_PER_ADVANCE
        episodes = RunConfig().evaluation.episodes
        seeds = seeding.integer_seeds(0, "benchmark", count=episodes)
        size = crew.EPISODES_PER_CALL
        self.parts = [tuple(seeds[first : first + size]) for first in range(0, episodes, size)]
        self.updates = 0
        self.snapshot: bytes | None = None
        self.busy = False  # evaluators play on and on
        self.inside = 0.0  # seconds inside calls of `advance`
        self.tests = 0  # calls that the evaluators finished

    def warm_up(self) -> None:
        """Go on until there is a snapshot that every evaluator has played."""
        while self.snapshot is None:
            self.turn(0.0, "actor")
        self.turn(0.0, "contended")

    def turn(self, seconds: float, mode: str) -> Turn:
        """Calls for at least so long."""
        before, cpu_before, ended = self.updates, self._cpu_seconds(), 0.0
        self.inside = 0.0
        started = time.perf_counter()

        def advance() -> None:
            self.loop.on(self.learner.advance.remote(self.seconds_per_advance, False), advanced)

        def advanced(result: Advance) -> None:
            nonlocal ended
            ended = time.perf_counter() - started
            if ended < seconds:
                advance()
            else:
                self.busy = False
            self.updates, self.snapshot = result.updates, result.snapshot or self.snapshot
            self.inside += result.seconds
            if mode == "tested" and result.snapshot is not None:
                for part in self.parts:
                    self._test(part)

        advance()
        self.busy = mode == "contended"
        for _ in self.evaluators.actors if self.busy else []:
            self._test(self.parts[0])
        self.loop.run()
        return Turn(self.updates - before, ended, self._cpu_seconds() - cpu_before)

    def _test(self, part: tuple[int, ...]) -> None:
        snapshot = self.snapshot

        def tested(_: Any, __: Any) -> None:
            self.tests += 1
            if self.busy:
                self._test(part)

        self.evaluators.call(lambda evaluator: evaluator.evaluate.remote(snapshot, part), tested)

    def driver_ms(self) -> dict[str, float]:
        """CPU time of this process for a learner's call and for a test, called and answered as in a
        run.
        """
        from cqlray.runtime.cluster import put

        snapshot, part = put(self.snapshot), self.parts[0][:1]

        def step() -> None:
            said, _, _ = self.learner.step.options(num_returns=3).remote(0.0, False)
            self.loop.on(said, lambda _: None)

        def test() -> None:
            self.evaluators.call(
                lambda evaluator: evaluator.evaluate.remote(snapshot, part), lambda _, __: None
            )

        return {"learner": self._ms_each(step), "evaluation": self._ms_each(test)}

    def _ms_each(self, call: Callable[[], None]) -> float:
        before = time.process_time()
        for _ in range(CALLS):
            call()
            self.loop.run()
        return 1e3 * (time.process_time() - before) / CALLS

    def _cpu_seconds(self) -> float:
        seconds: float = self.loop.get(self.learner.__ray_call__.remote(_process_time))
        return seconds

    def niceness(self) -> int:
        """Of the actor's process: 0 is a usual one's, 19 the lowest priority."""
        number: int = self.loop.get(self.learner.__ray_call__.remote(_niceness))
        return number


def _process_time(_: Any) -> float:
    return time.process_time()


def _niceness(_: Any) -> int:
    return os.nice(0)


def played_shards(spec: EnvSpec) -> list[Shard]:
    """A dataset of 20,000 steps with uniform actions."""
    worker = RolloutWorker(ENV, spec)
    seeds = seeding.integer_seeds(0, "benchmark-data", count=SHARDS * EPISODES_PER_SHARD)
    parts = [tuple(seeds[first::SHARDS]) for first in range(SHARDS)]
    return [
        worker.collect(ShardTask(index, "random", part), None) for index, part in enumerate(parts)
    ]


def measure(
    workload: str, members: int, threads: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints.

    Raises:
        UserError: the cluster has fewer CPUs than `threads`.
    """
    from cqlray.runtime.cluster import Loop, connect
    from cqlray.stages import train as students

    spec = describe_env(ENV)
    shards = played_shards(spec)
    config = dataclasses.replace(WORKLOADS[workload].config, num_updates=FOREVER)
    population = [Member(index, index, config, {}) for index in range(members)]
    asked = RunConfig(
        env=ENV, resources=ResourcesConfig(learners=1, gpus=0, threads_per_learner=threads)
    )
    with connect() as cluster:
        plan = make_plan(asked, population, cluster)
        with ExitStack() as opened:
            bare = opened.enter_context(
                Apart(BareLearner, population, spec.scaling, threads, *shards)
            )
            players = [
                opened.enter_context(Apart(BarePlayer, spec)) for _ in range(plan.evaluators)
            ]
            bare.call("turn", 0.0)
            in_one_call = bare.call("turn", 0.0).rate * students.SECONDS_PER_ADVANCE
            interval = max(1, round(in_one_call / CHUNK)) * CHUNK
            loop = Loop(say)
            loop.handle_signals()
            driven = opened.enter_context(
                driven_learner(loop, plan, spec, population, interval, shards)
            )
            result = _in_turns(bare, players, driven, members, seconds)
    sizes = {
        "workload": workload,
        "members": members,
        "threads": threads,
        "evaluators": plan.evaluators,
    }
    return {
        **sizes,
        "interval": interval,
        "seconds": seconds,
        "rounds": ROUNDS,
        "cpus": cluster.cpus,
        **result,
    }


@contextmanager
def driven_learner(
    loop: Loop,
    plan: Plan,
    spec: EnvSpec,
    members: list[Member],
    interval: int,
    shards: Sequence[Shard],
) -> Iterator[DrivenLearner]:
    """The plan's learner and evaluators, ended afterwards."""
    from cqlray.runtime.cluster import Team

    learner = loop.create(
        Learner,
        LearnerSpec(members, 0, spec.scaling, interval, "cpu", plan.threads, "float32"),
        None,
        *shards,
        cpus=plan.cpus["learner"],
    )
    evaluators = [
        loop.create(Evaluator, ENV, spec, cpus=plan.cpus["evaluator"])
        for _ in range(plan.evaluators)
    ]
    try:
        yield DrivenLearner(loop, learner, Team(loop, evaluators))
    finally:
        Team(loop, [learner, *evaluators]).dismiss()


def _beside(bare: Apart, players: Sequence[Apart], driven: DrivenLearner, seconds: float) -> Turn:
    """A turn of the bare loop while the players play what the evaluators do."""
    playing = [
        player.begin("play", driven.snapshot, driven.parts[0], seconds) for player in players
    ]
    turn: Turn = bare.call("turn", seconds)
    for played in playing:
        played.result()
    return turn


def _in_turns(
    bare: Apart, players: Sequence[Apart], driven: DrivenLearner, members: int, seconds: float
) -> dict[str, Any]:
    driven.warm_up()
    _beside(bare, players, driven, 0.0)
    names = list(NAMES)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    inside = []
    for first in range(ROUNDS):
        for name in (names * 2)[first % len(names) :][: len(names)]:  # none is always the first
            if name == "bare":
                turns[name].append(bare.call("turn", seconds))
            elif name == "beside":
                turns[name].append(_beside(bare, players, driven, seconds))
            else:
                turns[name].append(driven.turn(seconds, name))
                inside.append(driven.inside / turns[name][-1].seconds)
    result: dict[str, Any] = {"member_updates_per_s": {}, "ratio": {}, "cpu_ratio": {}}
    for name, of_name in turns.items():
        result["member_updates_per_s"][name] = members * statistics.median(
            turn.rate for turn in of_name
        )
        if name != "bare":
            result["ratio"][name] = ratios(
                [t.rate for t in of_name], [t.rate for t in turns["bare"]]
            )
            result["cpu_ratio"][name] = ratios(
                [t.cpu_rate for t in of_name], [t.cpu_rate for t in turns["bare"]]
            )
    result["ratio_to_beside"] = ratios(
        [t.rate for t in turns["contended"]], [t.rate for t in turns["beside"]]
    )
    share = statistics.median(inside)
    of_driver = {"niceness": driven.niceness(), "driver_ms_per_call": driven.driver_ms()}
    return {**result, "share_inside_advance": share, "tests_played": driven.tests, **of_driver}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"workload {result['workload']}, {result['members']} members, {result['threads']} threads,"
        f" a snapshot every {result['interval']} updates, {result['evaluators']} evaluators,"
        f" {result['cpus']:g} CPUs"
    ]
    for name, words in NAMES.items():
        line = f"  {words:<24} {result['member_updates_per_s'][name]:>9,.1f} member-updates/s"
        if name != "bare":
            clock, cpu = result["ratio"][name], result["cpu_ratio"][name]
            line += (
                f", {clock['median']:.3f} of bare ({clock['smallest']:.3f} to"
                f" {clock['largest']:.3f})"
            )
            line += f"; {cpu['median']:.3f} by CPU time"
        if name == "contended":
            other = result["ratio_to_beside"]
            line += (
                f"; {other['median']:.3f} of the {NAMES['beside']} ({other['smallest']:.3f} to"
                f" {other['largest']:.3f})"
            )
        lines.append(line)
    lines.append(
        f"  {result['share_inside_advance']:.2%} of the actor's time is inside its calls; its"
        f" niceness is {result['niceness']}"
    )
    driver = result["driver_ms_per_call"]
    lines.append(
        f"  driver's CPU time: {driver['learner']:.2f} ms a learner's call,"
        f" {driver['evaluation']:.2f} ms an evaluation"
    )
    return "\n".join(lines)


def main(argv: Sequence[str], parser_class: type[argparse.ArgumentParser]) -> int:
    """The command `cqlray benchmark actor`."""
    parser = parser_class(
        "cqlray benchmark actor", description="The learner in its Ray actor beside its bare loop."
    )
    parser.add_argument(
        "--workload", choices=OF_PENDULUM, default="tutorial", help="sizes [tutorial]"
    )
    parser.add_argument("--members", type=int, default=1, help="students in the population [1]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the learner [1]")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help=f"of each rate in each of {ROUNDS} rounds [2]"
    )
    options = parse(parser, argv, positive=("members", "threads", "seconds"))
    result = measure(options.workload, options.members, options.threads, options.seconds, say)
    return show(result, text, options.json)
