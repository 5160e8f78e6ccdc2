"""The benchmark beside d3rlpy: the same networks, the same data, and what the command prints."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from cqlray.benchmarks import peers
from cqlray.benchmarks.learner import TRANSITIONS, WORKLOADS, make_population
from cqlray.benchmarks.peers import D3rlpyUpdates
from cqlray.cli.parser import OneLine
from cqlray.errors import UserError


@pytest.mark.parametrize("name", WORKLOADS)
def test_both_train_the_same_number_of_parameters(name: str) -> None:
    pytest.importorskip("d3rlpy")
    population, _ = make_population(WORKLOADS[name], 1, torch.device("cpu"))
    modules = D3rlpyUpdates(name, 1).algorithm.impl.modules
    trained = [*modules.policy.parameters(), *modules.q_funcs.parameters()]
    ours = population.agent.policy.flat.numel() + population.agent.critics.flat.numel()
    assert sum(parameter.numel() for parameter in trained) == ours


def test_the_peer_is_set_up_as_the_workload_says() -> None:
    pytest.importorskip("d3rlpy")
    from d3rlpy.dataset import InfiniteBuffer

    theirs, config = D3rlpyUpdates("tutorial", 1), WORKLOADS["tutorial"].config
    modules, own = theirs.algorithm.impl.modules, theirs.algorithm.config
    assert modules.alpha_optim is None and modules.temp_optim is not None, (
        "no multiplier is learnt, the temperature is"
    )
    assert (own.batch_size, own.n_action_samples, own.n_critics) == (
        config.batch_size,
        config.num_action_samples,
        2,
    )
    assert (
        isinstance(theirs.buffer.buffer, InfiniteBuffer)
        and theirs.buffer.transition_count == TRANSITIONS
    )
    before = [parameter.clone() for parameter in modules.policy.parameters()]
    assert theirs.turn(2).work == 2
    assert all((a != b).any() for a, b in zip(before, modules.policy.parameters(), strict=True)), (
        "it learns"
    )


def test_the_command_prints_what_programs_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("d3rlpy")
    assert (
        peers.main(
            ["--workload", "tutorial", "--threads", "1", "--updates", "3", "--json"], OneLine
        )
        == 0
    )
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["updates_per_round"] == 3
    assert result["ratio"]["smallest"] <= result["ratio"]["median"] <= result["ratio"]["largest"]
    assert min(result["cqlray_updates_per_s"], result["d3rlpy_updates_per_s"]) > 0
    assert "times as fast" in peers.text(result)


def test_without_d3rlpy_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(UserError, match=r"pip install 'cqlray\[peers\]'$"):
        peers.main([], OneLine)


@pytest.mark.parametrize("words", [["--updates", "0"], ["--threads", "-1"], ["--workload", "X"]])
def test_wrong_use_is_one_line(words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        peers.main(words, OneLine)
    assert str(error.value).startswith("benchmark peers: ") and "\n" not in str(error.value)
