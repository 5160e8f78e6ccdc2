"""The rollout benchmark: it counts what workers really returned, and asks for no more CPUs than
there are.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cqlray.benchmarks import rollout
from cqlray.benchmarks.rollout import bare_steps, calls_of_pool, steps_in_process
from cqlray.cli.parser import OneLine
from cqlray.config.schema import EnvConfig
from cqlray.envs.make import describe_env
from cqlray.errors import UserError
from cqlray.runtime.pool import Pool
from cqlray.workers.rollout_worker import RolloutWorker

pytestmark = pytest.mark.sample


def counting(log: Path) -> EnvConfig:
    return EnvConfig("tests.nightly.benchmarks.counting_env:Counting-v0", kwargs={"log": str(log)})


def steps_by_process(log: Path) -> Counter[int]:
    return Counter(
        int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("step")
    )


@pytest.mark.ray
def test_the_steps_counted_are_those_that_the_workers_played(
    ray_cluster: str, tmp_path: Path
) -> None:
    from cqlray.runtime.cluster import Cluster, run_with_actors
    from cqlray.runtime.joining import connect

    env = counting(tmp_path / "log")

    async def story(cluster: Cluster) -> int:
        def hire(number: int) -> Any:
            return cluster.start(RolloutWorker, env, describe_env(env), cpus=0.5)

        pool = Pool("rollout worker", 2, hire)
        return sum([(await calls_of_pool(pool, None, envs, 0.3))[0].steps for envs in (1, 3)])

    with connect():
        counted = run_with_actors(story, print)
    played = steps_by_process(tmp_path / "log")
    assert counted == sum(played.values()) > 0
    assert len(played) == 2 and os.getpid() not in played


def test_the_steps_counted_in_this_process_are_those_played(tmp_path: Path) -> None:
    first, second = counting(tmp_path / "first"), counting(tmp_path / "second")
    counted = steps_in_process(RolloutWorker(first, describe_env(first)), None, 3, 0.05)
    assert steps_by_process(tmp_path / "first") == {os.getpid(): counted}
    counted = bare_steps(second, 0.05)
    assert steps_by_process(tmp_path / "second") == {os.getpid(): counted}


@pytest.mark.ray
def test_the_command_prints_what_programs_rely_on(
    ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--env",
        "tests.toy_envs:Point-v0",
        "--workers",
        "2",
        "1",
        "--envs-per-worker",
        "2",
        "--seconds",
        "0.05",
        "--json",
    ]
    assert rollout.main(words, OneLine) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cpus"] == 2.0
    assert 0 < 2 * result["cpus_per_worker"] <= result["cpus"]
    cells = result["cells"]
    assert [(c["policy"], c["workers"], c["envs_per_worker"]) for c in cells] == [
        *[("uniform", 1, 2), ("uniform", 2, 2), ("256 x 2", 1, 2), ("256 x 2", 2, 2)]
    ]
    for cell in cells:
        assert (
            min(
                cell[name]
                for name in ("steps", "steps_per_s", "in_process_steps_per_s", "bare_steps_per_s")
            )
            > 0
        )
        assert cell["ratio"] < 2 * cell["workers"], (
            "no worker is twice as fast as the environment alone"
        )
        assert f"{cell['steps_per_s']:,.0f}" in rollout.text(result)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "must be positive"),
        (["--seconds", "nan"], "must be positive"),
        (["--envs-per-worker", "many"], "invalid int value: 'many'"),
        (["--env", "Pendulm-v1"], "did you mean Pendulum-v1?"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        rollout.main(words, OneLine)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.ray
def test_more_workers_than_the_cluster_can_hold_are_refused(ray_cluster: str) -> None:
    with pytest.raises(
        UserError, match="100000 processes of role rollout_worker are too many for 2 CPUs"
    ):
        rollout.main(["--workers", "100000"], OneLine)
