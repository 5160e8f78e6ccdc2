"""How many environment steps per second rollout workers make, compared with what the environment
alone allows.

Three rates for each number of workers and of environments in a worker, measured in turns, in three
rounds:
- workers: RolloutWorker actors that the driver's pool keeps busy; a call plays one whole episode in
  each environment, and as in a run the shard's summary comes back and the shard stays in the object
  store. Every step counts, over the time until the last call is back. The CPU time of this process
  for each call is what the driver pays.
- in process: the same calls of a RolloutWorker in this process, without Ray.
- bare: `env.step` of one environment with uniform actions in this process; nothing else is computed
  or kept.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cqlray import seeding
from cqlray.benchmarks.command import ABOUT, Parser, parse, say, show
from cqlray.benchmarks.contestants import Turn, ratios, timed
from cqlray.config.members import members
from cqlray.config.schema import EnvConfig, ResourcesConfig, RunConfig, TeacherConfig
from cqlray.data.dataset import ShardSummary
from cqlray.envs.make import EnvSpec, describe_env, make_env
from cqlray.runtime.event_loop import group
from cqlray.runtime.placement import Plan, make_plan
from cqlray.runtime.pool import Pool
from cqlray.storage.outbox import HandedBack
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask

if TYPE_CHECKING:
    from cqlray.runtime.cluster import Cluster, Reply

ROUNDS = 3
POLICIES = ("uniform", "256 x 2")


class Calls:
    """Tasks with fresh seeds, and the steps of the shards that came back for them."""

    def __init__(self, envs_per_worker: int) -> None:
        self.envs_per_worker = envs_per_worker
        self.made = 0
        self.steps = 0

    def next(self) -> ShardTask:
        """The task of the next call."""
        seeds = seeding.integer_seeds(0, "benchmark", self.made, count=self.envs_per_worker)
        self.made += 1
        return ShardTask(self.made, "random", tuple(seeds))

    def count(self, summary: ShardSummary) -> None:
        """Add the steps of a call's shard."""
        self.steps += summary.transitions


def bare_steps(env: EnvConfig, seconds: float) -> int:
    """Steps of one environment, which nobody looks at."""
    played, generator = make_env(env), np.random.default_rng(0)
    space: Any = played.action_space
    actions = generator.uniform(space.low, space.high, (1000, *space.shape)).astype(np.float32)
    played.reset(seed=0)
    steps, deadline = 0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for action in actions:
            _, _, terminated, truncated, _ = played.step(action)
            if terminated or truncated:
                played.reset()
        steps += len(actions)
    played.close()
    return steps


def steps_in_process(
    worker: RolloutWorker, snapshot: bytes | None, envs_per_worker: int, seconds: float
) -> int:
    """Steps of a worker in this process."""
    calls, deadline = Calls(envs_per_worker), time.perf_counter() + seconds
    while True:
        calls.count(worker.play(calls.next(), snapshot)[0])
        if time.perf_counter() >= deadline:
            return calls.steps


async def calls_of_pool(
    pool: Pool, snapshot: Any, envs_per_worker: int, seconds: float
) -> tuple[Calls, Turn]:
    """What the pool's workers made; `snapshot` is a reference, or None for uniform actions."""
    calls, began, cpu_began = Calls(envs_per_worker), time.perf_counter(), time.process_time()

    async def play_on() -> None:
        while True:
            summary, _ = await pool.call("play", calls.next(), snapshot, returns=2)
            calls.count(summary)
            if time.perf_counter() >= began + seconds:
                return

    async with group() as tasks:
        for _ in range(2 * len(pool.actors)):  # one waits for each that is played, as in a stage
            tasks.create_task(play_on())
    used = time.process_time() - cpu_began
    return calls, Turn(calls.steps, time.perf_counter() - began, used)


def measure(
    env: EnvConfig,
    workers: Sequence[int],
    envs_per_worker: Sequence[int],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints. Without `workers` powers of two
    up to the CPUs there are.

    Raises:
        UserError: the environment cannot be used, or there are too many workers for the cluster.
    """
    from cqlray.runtime.cluster import run_with_actors
    from cqlray.runtime.joining import connect

    spec = describe_env(env)
    with connect() as cluster:
        counts = sorted(set(workers)) or _up_to(int(cluster.cpus))
        resources = ResourcesConfig(rollout_workers=counts[-1], learners=1, gpus=0)
        config = RunConfig(env=env, resources=resources)
        plan = make_plan(config, members(config), cluster)
        envs = sorted(set(envs_per_worker))
        cells = run_with_actors(
            lambda actors: _cells(actors, plan, env, spec, counts, envs, seconds), say
        )
    return {
        "environment": env.id,
        "seconds": seconds,
        "cpus": cluster.cpus,
        "cpus_per_worker": plan.cpus["rollout_worker"],
        "cells": cells,
    }


async def _cells(
    cluster: Cluster,
    plan: Plan,
    env: EnvConfig,
    spec: EnvSpec,
    counts: Sequence[int],
    envs_per_worker: Sequence[int],
    seconds: float,
) -> list[dict[str, Any]]:
    """All policies, numbers of workers and numbers of environments, one after another."""
    from cqlray.workers.teacher import Teacher

    # A teacher that only gives a snapshot of fresh networks.
    config = TeacherConfig(hidden_units=256, policy_layers=2, critic_layers=2, pool_capacity=1)
    share, nothing = plan.cpus["teacher"], (None, HandedBack())
    teacher = cluster.start(
        Teacher, config, 0, spec.scaling, spec.observation_dim, *nothing, cpus=share
    )
    share = plan.cpus["rollout_worker"]
    workers = [
        cluster.start(RolloutWorker, env, spec, cpus=share, retried=True) for _ in range(counts[-1])
    ]
    snapshot = teacher.ask("snapshot")
    await snapshot
    cells = []
    for policy, count, envs in itertools.product(POLICIES, counts, envs_per_worker):
        pool = Pool("rollout worker", count, workers.__getitem__)
        played = None if policy == "uniform" else snapshot
        cells.append({"policy": policy, **await _cell(pool, env, spec, played, envs, seconds)})
    return cells


def _up_to(cores: int) -> list[int]:
    """1, 2, 4 ..., and the number of cores."""
    return sorted(
        {2**power for power in range(cores.bit_length()) if 2**power <= cores} | {max(1, cores)}
    )


async def _cell(
    pool: Pool, env: EnvConfig, spec: EnvSpec, reply: Reply | None, envs: int, seconds: float
) -> dict[str, Any]:
    reference = None if reply is None else reply.references[0]
    snapshot: bytes | None = None if reply is None else await reply
    local = RolloutWorker(env, spec)
    await calls_of_pool(pool, reference, envs, 0.0)  # makes the environments
    steps_in_process(local, snapshot, envs, 0.0)
    turns: list[tuple[Turn, Turn, Turn]] = []
    driver_ms = []
    for _ in range(ROUNDS):
        bare = timed(lambda: bare_steps(env, seconds))
        in_process = timed(lambda: steps_in_process(local, snapshot, envs, seconds))
        calls, turn = await calls_of_pool(pool, reference, envs, seconds)
        turns.append((turn, in_process, bare))
        driver_ms.append(1e3 * turn.cpu_seconds / calls.made)
    of_pool, in_process_rates, bare_rates = (
        [turn.rate for turn in column] for column in zip(*turns, strict=True)
    )
    return {
        "workers": len(pool.actors),
        "envs_per_worker": envs,
        "steps": sum(turn.work for turn, _, _ in turns),
        "steps_per_s": statistics.median(of_pool),
        "in_process_steps_per_s": statistics.median(in_process_rates),
        "bare_steps_per_s": statistics.median(bare_rates),
        "driver_ms_per_call": statistics.median(driver_ms),
        "ratio": ratios(of_pool, bare_rates)["median"],
        "ratio_to_in_process": ratios(of_pool, in_process_rates)["median"],
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    head = (
        f"{result['environment']}, environment steps per second; {result['cpus']:g} CPUs, of which"
        f" each worker asks Ray for {result['cpus_per_worker']:g}, so that they fit however many"
        " there are\npolicy    workers  envs each     workers  in process        bare "
        " workers/bare  workers/in process  driver ms/call"
    )
    rows = [
        f"{c['policy']:<9} {c['workers']:>7}  {c['envs_per_worker']:>9}  {c['steps_per_s']:>10,.0f}"
        f"  {c['in_process_steps_per_s']:>10,.0f}  {c['bare_steps_per_s']:>10,.0f} "
        f" {c['ratio']:>12.2f}  {c['ratio_to_in_process']:>18.2f}  {c['driver_ms_per_call']:>14.2f}"
        for c in result["cells"]
    ]
    return "\n".join([head, *rows])


def main(argv: Sequence[str], parser_class: Parser) -> int:
    """The command `cqlray benchmark rollout`."""
    parser = parser_class("cqlray benchmark rollout", description=ABOUT["rollout"])
    add = parser.add_argument
    add("--env", default="Pendulum-v1", metavar="TEXT", help="Gymnasium id [Pendulum-v1]")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[],
        metavar="INT",
        help="[1 2 4 ... CPUs of the cluster]",
    )
    add("--envs-per-worker", type=int, nargs="+", default=[1, 10], metavar="INT", help="[1 10]")
    add("--seconds", type=float, default=0.5, help=f"of each rate in each of {ROUNDS} rounds [0.5]")
    options = parse(parser, argv, positive=("workers", "envs_per_worker", "seconds"))
    result = measure(
        EnvConfig(options.env), options.workers, options.envs_per_worker, options.seconds, say
    )
    return show(result, text, options.json)
