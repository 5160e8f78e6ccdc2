"""What it costs to run the learner in its Ray actor, with evaluators elsewhere, compared with the
bare loop.

Five rates over the same data and members, measured in turns, in five rounds:
- bare: the learner's updates in a plain process, one after another; no calls, no snapshots, no Ray.
- actor: the learner in its actor, called as the driver calls it: for SECONDS_PER_ADVANCE, with a
  snapshot and a checkpoint at each interval, each brought here. An interval is as many updates as
  take SECONDS_PER_ADVANCE, shorter than in any preset.
- tested: the same, and the evaluators test each snapshot, as in a run.
- contended: the same, while every evaluator plays without a pause, more than in any run.
- beside: the bare loop, while as many plain processes play without a pause: what the neighbours of
  a core cost, whoever runs them (caches, memory, the clock of a chip whose other cores are busy).
  Contended is compared with this, too.

Besides: the CPU time of the driver's process for a call of the learner and for a test by an
evaluator, which bounds how many learners and evaluators one driver can serve. These calls do as
little as possible: no updates, one episode.

Updates per second of the process's CPU time show what the actor itself costs, whoever else uses the
machine: Ray runs its workers at a lower priority (niceness 15), so on a busy machine other programs
slow an actor more than a plain process.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cqlray.benchmarks.actor_contestants import (
    ENV,
    FOREVER,
    BareLearner,
    BarePlayer,
    DrivenLearner,
    played_shards,
)
from cqlray.benchmarks.command import ABOUT, Parser, parse, say, show
from cqlray.benchmarks.contestants import ROUNDS, Apart, Turn, apart, ratios
from cqlray.benchmarks.learner import WORKLOADS
from cqlray.config.members import Member
from cqlray.config.schema import ResourcesConfig, RunConfig
from cqlray.data.episode import Shard
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.runtime.placement import Plan, make_plan
from cqlray.runtime.pool import Pool
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.learner import CHUNK, Learner, LearnerSpec

if TYPE_CHECKING:
    from cqlray.runtime.cluster import Cluster

NAMES = {
    "bare": "bare loop",
    "actor": "actor",
    "tested": "actor, snapshots tested",
    "contended": "actor, evaluators busy",
    "beside": "bare loop, players busy",
}
# Workloads of the environment's sizes.
OF_PENDULUM = [
    name
    for name, workload in WORKLOADS.items()
    if (workload.observation_dim, workload.action_dim) == (3, 1)
]


def measure(
    workload: str, members: int, threads: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints.

    Raises:
        UserError: the cluster has fewer CPUs than `threads`.
    """
    from cqlray.runtime.joining import connect

    config = dataclasses.replace(WORKLOADS[workload].config, num_updates=FOREVER)
    population = [Member(index, index, config, {}) for index in range(members)]
    resources = ResourcesConfig(learners=1, gpus=0, threads_per_learner=threads)
    with connect() as cluster:
        plan = make_plan(RunConfig(env=ENV, resources=resources), population, cluster)
        result = _measure(plan, population, seconds, say)
    return {
        "workload": workload,
        "members": members,
        "threads": threads,
        "evaluators": plan.evaluators,
        "seconds": seconds,
        "rounds": ROUNDS,
        "cpus": cluster.cpus,
        **result,
    }


def _measure(
    plan: Plan, population: list[Member], seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    from cqlray.runtime.cluster import run_with_actors
    from cqlray.stages import train

    spec = describe_env(ENV)
    shards = played_shards(spec)
    with ExitStack() as opened:
        learner = apart(BareLearner, population, spec.scaling, plan.threads, *shards)
        bare = opened.enter_context(learner)
        players = [opened.enter_context(apart(BarePlayer, spec)) for _ in range(plan.evaluators)]
        bare.call("turn", 0.0)
        in_one_call = bare.call("turn", 0.0).rate * train.SECONDS_PER_ADVANCE
        interval = max(1, round(in_one_call / CHUNK)) * CHUNK

        async def turns(cluster: Cluster) -> dict[str, Any]:
            driven = driven_learner(cluster, plan, spec, population, interval, shards)
            return await _in_turns(bare, players, driven, len(population), seconds)

        return {"interval": interval, **run_with_actors(turns, say)}


def driven_learner(
    cluster: Cluster,
    plan: Plan,
    spec: EnvSpec,
    members: list[Member],
    interval: int,
    shards: Sequence[Shard],
) -> DrivenLearner:
    """The plan's learner and evaluators."""
    of_learner = LearnerSpec(members, 0, spec.scaling, interval, "cpu", plan.threads, "float32")
    share = plan.cpus["learner"]
    learner = cluster.start(Learner, of_learner, None, *shards, cpus=share)
    share = plan.cpus["evaluator"]
    evaluators = Pool(
        "evaluator", plan.evaluators, lambda number: cluster.start(Evaluator, ENV, spec, cpus=share)
    )
    return DrivenLearner(learner, evaluators)


def _beside(bare: Apart, players: Sequence[Apart], driven: DrivenLearner, seconds: float) -> Turn:
    """A turn of the bare loop while the players play what the evaluators do."""
    playing = [
        player.begin("play", driven.snapshot, driven.parts[0], seconds) for player in players
    ]
    turn: Turn = bare.call("turn", seconds)
    for played in playing:
        played.result()
    return turn


async def _in_turns(
    bare: Apart, players: Sequence[Apart], driven: DrivenLearner, members: int, seconds: float
) -> dict[str, Any]:
    await driven.warm_up()
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
                turns[name].append(await driven.turn(seconds, name))
                inside.append(driven.inside / turns[name][-1].seconds)
    rates = {name: [turn.rate for turn in of_name] for name, of_name in turns.items()}
    cpu_rates = {name: [turn.cpu_rate for turn in of_name] for name, of_name in turns.items()}
    others = names[1:]  # than the bare loop
    return {
        "member_updates_per_s": {name: members * statistics.median(rates[name]) for name in names},
        "ratio": {name: ratios(rates[name], rates["bare"]) for name in others},
        "cpu_ratio": {name: ratios(cpu_rates[name], cpu_rates["bare"]) for name in others},
        "ratio_to_beside": ratios(rates["contended"], rates["beside"]),
        "share_inside_advance": statistics.median(inside),
        "tests_played": driven.tests,
        "niceness": await driven.niceness(),
        "driver_ms_per_call": await driven.driver_ms(),
    }


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


def main(argv: Sequence[str], parser_class: Parser) -> int:
    """The command `cqlray benchmark actor`."""
    parser = parser_class("cqlray benchmark actor", description=ABOUT["actor"])
    add = parser.add_argument
    add("--workload", choices=OF_PENDULUM, default="tutorial", help="sizes [tutorial]")
    add("--members", type=int, default=1, help="students in the population [1]")
    add("--threads", type=int, default=1, help="CPU threads of the learner [1]")
    add("--seconds", type=float, default=2.0, help=f"of each rate in each of {ROUNDS} rounds [2]")
    options = parse(parser, argv, positive=("members", "threads", "seconds"))
    result = measure(options.workload, options.members, options.threads, options.seconds, say)
    return show(result, text, options.json)
