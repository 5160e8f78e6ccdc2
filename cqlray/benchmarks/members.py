"""How many updates many members make together with a learner on each core, compared with one member
on all cores, in turns.

    cqlray benchmark members --workload P --members 8

The members are divided among the learners as in a run, and all learners work at once, each in a
plain process.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.benchmarks.command import ABOUT, Parser, parse, show
from cqlray.benchmarks.contestants import ROUNDS, Apart, Turn, apart, ratios, timed
from cqlray.benchmarks.learner import WORKLOADS, make_population
from cqlray.config.members import members as members_of
from cqlray.config.schema import RunConfig
from cqlray.runtime.placement import ClusterResources, make_plan

WARM_UP = 5  # updates
SECONDS = 2.0  # about, of a turn, unless a number of updates is asked for


class Updates:
    """cqlray's learner with random data."""

    def __init__(self, workload: str, threads: int, members: int = 1) -> None:
        keep_freed_memory()
        torch.set_num_threads(threads)
        self.population, self.gather = make_population(
            WORKLOADS[workload], members, torch.device("cpu"), "float32"
        )

    def turn(self, updates: int) -> Turn:
        """Update every member so many times; the turn's work counts those updates once."""

        def work() -> int:
            self.population.advance(updates, self.gather)
            return updates

        return timed(work)


def measure(workload: str, members: int, cores: int, updates: int | None = None) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints.

    `updates` is what each member makes in a round.
    """
    config = RunConfig(num_seeds=members)
    plan = make_plan(config, members_of(config), ClusterResources(cores))
    shares = [len(part) for part in plan.populations]
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(apart(Updates, workload, cores))
        together = [stack.enter_context(apart(Updates, workload, 1, share)) for share in shares]
        for learner in (alone, *together):
            learner.call("turn", WARM_UP)
        of_alone, of_together = (
            updates or max(1, round(SECONDS / seconds_of_all(learners, WARM_UP) * WARM_UP))
            for learners in ([alone], together)
        )
        one, many = [], []
        for _ in range(ROUNDS):
            one.append(of_alone / seconds_of_all([alone], of_alone))
            many.append(members * of_together / seconds_of_all(together, of_together))
    return {
        "workload": workload,
        "members": members,
        "cores": cores,
        "members_per_learner": shares,
        "rounds": ROUNDS,
        "one_member_updates_per_s": statistics.median(one),
        "member_updates_per_s": statistics.median(many),
        "ratio": ratios(many, one),
    }


def seconds_of_all(learners: Sequence[Apart], updates: int) -> float:
    """Seconds until all have made so many updates, at once."""
    started = time.perf_counter()
    for turn in [learner.begin("turn", updates) for learner in learners]:
        turn.result()
    return time.perf_counter() - started


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    ratio, shares = result["ratio"], " + ".join(map(str, result["members_per_learner"]))
    return f"""workload {result["workload"]}, CPU, float32, {result["rounds"]} rounds
  1 member on {result["cores"]} cores {result["one_member_updates_per_s"]:>10,.1f} updates/s
  {shares} members, one core each learner {result["member_updates_per_s"]:>10,.1f} member-updates/s
  {ratio["median"]:.2f} times ({ratio["smallest"]:.2f} to {ratio["largest"]:.2f} over the rounds)"""


def main(argv: Sequence[str], parser_class: Parser) -> int:
    """The command `cqlray benchmark members`."""
    parser = parser_class("cqlray benchmark members", description=ABOUT["members"])
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, default="P", help="sizes, as in benchmark learner [P]")
    add("--members", type=int, default=8)
    add(
        "--cores",
        type=int,
        default=os.cpu_count(),
        help="learners, and threads of the one member [all]",
    )
    add(
        "--updates",
        type=int,
        help=f"of each member in each of {ROUNDS} rounds [about {SECONDS:g} s]",
    )
    options = parse(parser, argv, positive=("members", "cores", "updates"))
    result = measure(options.workload, options.members, options.cores, options.updates)
    return show(result, text, options.json)
