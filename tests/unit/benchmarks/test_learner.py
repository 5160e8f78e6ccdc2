"""The learner's benchmark: its stated work is the work that is done."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cqlray.algorithms import forward_backward
from cqlray.algorithms.agent import network_shapes
from cqlray.benchmarks.learner import WORKLOADS, Workload, make_population, text


def product_flops(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return 2 * math.prod(left) * right[-1]


NOT_KNOWN_TO_THE_COUNTER = {
    torch.ops.aten.addmm_: lambda total, left, right, **_: product_flops(left, right)
}


def beside_in_tiles(workload: Workload) -> int:
    """Operations that tiles add to the stated ones: biases are in the products, and the outer
    products are not.

    A bias is one more row of its layer's weight, forward and for its gradient; the backward pass
    through a single output is an outer product, made without a matrix product.
    """
    config, batch = workload.config, workload.config.batch_size
    policy, critic = network_shapes(config, workload.observation_dim, workload.action_dim)
    rows = batch * (1 + 3 * config.num_action_samples)
    # networks, their shape, rows forward, rows that give the parameters' gradients, rows backward
    # through the last layer
    passes = [
        (1, policy, 2 * batch, batch, 0),
        (config.num_critics, critic, rows, rows, rows),
        (config.num_critics, critic, batch, 0, 0),
        (config.num_critics, critic, batch, 0, batch),
    ]
    return sum(
        2 * many * ((forward + backward) * sum(shape.sizes[1:]) - outer * shape.sizes[-2])
        for many, shape, forward, backward, outer in passes
        if forward * config.hidden_units >= forward_backward.TILED_FROM
    )


@pytest.mark.parametrize(("name", "members"), [*((name, 1) for name in WORKLOADS), ("P", 3)])
def test_the_stated_operations_are_those_that_torch_counts(
    name: str, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> int:
        population, gather = make_population(WORKLOADS[name], members, torch.device("cpu"))
        with FlopCounterMode(display=False, custom_mapping=NOT_KNOWN_TO_THE_COUNTER) as counter:
            population.advance(1, gather)
        return counter.get_total_flops()

    stated = members * WORKLOADS[name].matrix_flops()
    assert counted() == stated + members * beside_in_tiles(WORKLOADS[name])
    monkeypatch.setattr(forward_backward, "TILED_FROM", math.inf)
    assert counted() == stated


def test_the_command_prints_what_programs_rely_on() -> None:
    three_rounds = "from cqlray.benchmarks import learner; learner.ROUNDS = 3; learner.main()"
    words = ["--workload", "tutorial", "--threads", "1", "--seconds", "0.05", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", three_rounds, *words], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result.keys() >= {
        *(
            "member_updates_per_s",
            "fraction_of_limit",
            "limit_gflops",
            "achieved_gflops",
            "compile_seconds",
        ),
        *("peak_bytes", "device"),
    }
    assert 0.0 < result["fraction_of_limit"] < 1.2
    assert result["achieved_gflops"] == pytest.approx(
        result["member_updates_per_s"] * result["flops_per_update"] / 1e9
    )
    assert "of the limit" in text(result)
