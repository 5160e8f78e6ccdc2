"""How fast the update is, compared with what the device can do, measured in one process and one
run.

    python -m cqlray.benchmarks.learner --workload H --members 8 --device cuda

It needs torch and numpy only, so it also runs on a machine that has nothing else. Limits and
updates are measured in turns, so that a machine that slows down in the middle slows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql
from cqlray.algorithms.agent import network_shapes
from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.algorithms.graphs import WARM_UP
from cqlray.algorithms.networks import product_dtype
from cqlray.algorithms.population import NoiseStream, Population, TransitionTable
from cqlray.benchmarks.command import ABOUT, Parser, parse, show
from cqlray.config.presets import PRESETS
from cqlray.config.schema import CQLConfig, Precision

ROUNDS = 5
FIRST = WARM_UP + 2  # updates that set libraries up and record the graph
TRANSITIONS = 20_000
# Passes over the hidden activations of one critic layer without fusion. Forward: they are written,
# and read by the next layer. Backward: they are read for the weights' gradient and for the relu's;
# their gradient is written, and read twice.
PASSES = 7


@dataclass(frozen=True)
class Workload:
    """Sizes of one benchmark."""

    observation_dim: int
    action_dim: int
    config: CQLConfig

    def matrix_flops(self) -> int:
        """Floating-point operations of the matrix products in one update of one member (2 for a
        multiply-add).

        Critics: forward, weights' gradient and hidden gradient over B (1 + 3K) rows; target
        forward, and forward and gradient to the inputs for the policy, over B rows. Policy: two
        forwards and one backward over B rows.
        """
        config, batch = self.config, self.config.batch_size
        policy, critic = network_shapes(config, self.observation_dim, self.action_dim)
        products = [
            sum(a * b for a, b in zip(s.sizes[:-1], s.sizes[1:], strict=True))
            for s in (policy, critic)
        ]
        first = [shape.sizes[0] * shape.sizes[1] for shape in (policy, critic)]
        rows = batch * (1 + 3 * config.num_action_samples)
        of_critics = config.num_critics * (
            rows * (3 * products[1] - first[1]) + batch * 3 * products[1]
        )
        of_policy = batch * (4 * products[0] - first[0])
        return 2 * (of_critics + of_policy)

    def bytes_moved(self) -> int:
        """Bytes of hidden critic activations that unfused layers move in one update of one member,
        in float32 (bf16: half).
        """
        config = self.config
        rows = config.batch_size * (1 + 3 * config.num_action_samples) * config.num_critics
        return PASSES * 4 * rows * config.hidden_units * config.critic_layers


_DEEP = CQLConfig(hidden_units=256, policy_layers=3, critic_layers=3)
WORKLOADS = {
    "P": Workload(3, 1, dataclasses.replace(_DEEP, batch_size=64)),
    "H": Workload(17, 6, dataclasses.replace(_DEEP, batch_size=256)),
    "tutorial": Workload(3, 1, PRESETS["tutorial"].cql),
    "pendulum": Workload(3, 1, PRESETS["pendulum"].cql),
}


def make_population(
    workload: Workload, members: int, device: torch.device, precision: Precision = "float32"
) -> tuple[Population, Any]:
    """Members with fresh networks over random transitions, and the gather of their batches."""
    configs = [workload.config] * members
    dimension, actions = workload.observation_dim, workload.action_dim
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    agent = agents.initial_state(
        configs, range(members), dimension, actions, device, product_dtype(precision)
    )
    scalars = agents.member_scalars(configs, actions, device)
    settings = cql.PopulationConfig.of(configs)
    generator = torch.Generator().manual_seed(0)
    table = TransitionTable(
        observations=torch.randn(TRANSITIONS + 1, dimension, generator=generator).to(device),
        rows=torch.arange(TRANSITIONS, device=device),
        actions=(torch.rand(TRANSITIONS, actions, generator=generator) * 2 - 1).to(device),
        rewards=torch.randn(TRANSITIONS, generator=generator).to(device),
        terminations=torch.zeros(TRANSITIONS, device=device),
    )
    noise = NoiseStream(
        list(range(members)),
        cql.noise_shapes(workload.config, actions),
        workload.config.batch_size,
        device,
    )
    population = Population(agent, lambda a, b, n: cql.update(a, b, n, scalars, settings), noise)
    return population, table.gather(scalars)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a piece of work, the device waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Round:
    """Rates of one round, per second: what the machine can do, and what was made."""

    flops: float  # of a large matrix product
    bytes: float  # read and written by a copy
    updates: float  # of all members together


def limits(device: torch.device, precision: Precision) -> Callable[[], tuple[float, float]]:
    """A function that measures FLOP/s of a large matrix product, and bytes/s (read and written) of
    a copy.
    """
    size, repeats = (8192, 10) if device.type == "cuda" else (2048, 3)
    left, right = (
        torch.randn(size, size, device=device).to(product_dtype(precision)) for _ in range(2)
    )
    product = torch.empty_like(left)
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)

    def measure() -> tuple[float, float]:
        torch.mm(left, right, out=product)
        seconds = seconds_of(
            lambda: [torch.mm(left, right, out=product) for _ in range(repeats)], device
        )
        flops = 2 * size**3 * repeats / seconds
        target.copy_(source)
        moved = 8 * source.numel() / seconds_of(lambda: target.copy_(source), device)
        return flops, moved

    return measure


def measure(
    workload: str,
    members: int,
    device: str,
    threads: int,
    seconds: float = 2.0,
    precision: Precision = "tf32",
) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    on, sizes = torch.device(device), WORKLOADS[workload]
    population, gather = make_population(sizes, members, on, precision)

    def seconds_for(updates: int) -> float:
        return seconds_of(lambda: population.advance(updates, gather), on)

    compile_seconds = seconds_for(FIRST)
    count = max(2, round(seconds / seconds_for(FIRST) * FIRST))
    measure_limits, rounds = limits(on, precision), []
    for _ in range(ROUNDS):
        of_machine = measure_limits()
        rounds.append(Round(*of_machine, members * count / seconds_for(count)))
    on_gpu = on.type == "cuda"
    peak_of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "workload": workload,
        "members": members,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {threads} threads",
        "precision": precision,
        **_rates(rounds, sizes),
        "compile_seconds": compile_seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_of_process,
    }


def _rates(rounds: Sequence[Round], sizes: Workload) -> dict[str, float]:
    """Medians over the rounds, and the work of one update."""
    rate = statistics.median(each.updates for each in rounds)
    flops, moved = sizes.matrix_flops(), sizes.bytes_moved()
    return {
        "member_updates_per_s": rate,
        "slowest_round": min(each.updates for each in rounds),
        "fastest_round": max(each.updates for each in rounds),
        "flops_per_update": flops,
        "bytes_per_update": moved,
        "limit_gflops": statistics.median(each.flops for each in rounds) / 1e9,
        "achieved_gflops": rate * flops / 1e9,
        "fraction_of_limit": statistics.median(
            each.updates * flops / each.flops for each in rounds
        ),
        "limit_gbytes_per_s": statistics.median(each.bytes for each in rounds) / 1e9,
        "achieved_gbytes_per_s": rate * moved / 1e9,
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    found = {
        name: f"{value:,.0f}" if isinstance(value, float) else value
        for name, value in result.items()
    }
    rate, slowest, fastest = (
        f"{result[k]:,.1f}" for k in ("member_updates_per_s", "slowest_round", "fastest_round")
    )
    share, peak = result["fraction_of_limit"], result["peak_bytes"] / 2**20
    lines = [
        f"{found['device']}; workload {found['workload']}, {found['members']} members,"
        f" {found['precision']}",
        f"  {rate} member-updates/s ({slowest} to {fastest})",
        f"  {found['achieved_gflops']} of {found['limit_gflops']} GFLOP/s: {share:.0%} of the"
        " limit",
        f"  {found['achieved_gbytes_per_s']} GB/s of activations; a copy moves"
        f" {found['limit_gbytes_per_s']} GB/s",
        f"  first updates {result['compile_seconds']:.2f} s, peak memory {peak:,.0f} MiB",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, parser_class: Parser = argparse.ArgumentParser) -> int:
    """The command `python -m cqlray.benchmarks.learner`; `cqlray benchmark learner` passes another
    parser class.
    """
    parser = parser_class("cqlray benchmark learner", description=ABOUT["learner"])
    add = parser.add_argument
    add(
        "--workload",
        choices=WORKLOADS,
        default="H",
        help="P, H (CORL's HalfCheetah sizes), or a preset",
    )
    add("--members", type=int, default=1)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--precision", choices=get_args(Precision), default="tf32", help="tf32 is float32 on a CPU")
    add("--seconds", type=float, default=2.0, help="of each of five rounds")
    options = parse(parser, argv, positive=("members", "threads", "seconds"))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    result = measure(
        options.workload,
        options.members,
        options.device,
        options.threads,
        options.seconds,
        options.precision,
    )
    return show(result, text, options.json)


if __name__ == "__main__":
    sys.exit(main())
