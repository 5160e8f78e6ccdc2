"""The learner's benchmark: its stated work is the work that is done."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cqlray.algorithms import networks
from cqlray.algorithms.benchmark import WORKLOADS, make_population, text


def product_flops(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return 2 * math.prod(left) * right[-1]


NOT_KNOWN_TO_THE_COUNTER = {torch.ops.aten.addmm_: lambda total, left, right, **_: product_flops(left, right)}


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("members", [1, 3])
def test_the_stated_operations_are_those_that_torch_counts(name: str, members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted() -> int:
        population, gather = make_population(WORKLOADS[name], members, torch.device("cpu"))
        with FlopCounterMode(display=False, custom_mapping=NOT_KNOWN_TO_THE_COUNTER) as counter:
            population.advance(1, gather)
        return counter.get_total_flops()

    stated = members * WORKLOADS[name].matrix_flops()
    assert stated < counted() < 1.03 * stated, "in pieces a bias is one more row of its layer's weight"
    monkeypatch.setattr(networks, "SMALLEST", math.inf)
    assert counted() == stated


def test_the_command_prints_what_programs_rely_on() -> None:
    command = [sys.executable, "-m", "cqlray.algorithms.benchmark", "--workload", "tutorial", "--threads", "1"]
    done = subprocess.run([*command, "--seconds", "0.05", "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result.keys() >= {
        *("member_updates_per_s", "fraction_of_limit", "limit_gflops", "achieved_gflops", "compile_seconds"),
        *("peak_bytes", "device"),
    }
    assert 0.0 < result["fraction_of_limit"] < 1.2
    assert result["achieved_gflops"] == pytest.approx(result["member_updates_per_s"] * result["flops_per_update"] / 1e9)
    assert "of the limit" in text(result)
