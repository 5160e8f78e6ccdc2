"""What never ends: an environment, a learner. It is replaced where the user set a limit, and named
where that does not help.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from cqlray.api import runs as api
from cqlray.api import session
from cqlray.config.schema import ResourcesConfig
from cqlray.errors import ActorLost
from cqlray.runtime.cluster import Cluster
from cqlray.runtime.pool import Pool
from cqlray.runtime.progress import ProgressDisplay
from cqlray.stages import run as runs
from cqlray.stages import train
from cqlray.workers.learner import Advance, Learner
from tests.conftest import small_config

pytestmark = pytest.mark.ray


class Said(ProgressDisplay):
    """Keeps its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_an_environment_that_hangs_is_replaced_and_the_tests_are_the_same(
    finished_run: Path, tmp_path: Path
) -> None:
    """Its first step never ends; the second run of the same command finds the marker there."""
    out, said = Path(shutil.copytree(finished_run, tmp_path / "run")), Said()
    config = (out / "config.yaml").read_text()
    kwargs = f"kwargs: {{marker: {tmp_path / 'marker'}}}"
    config = re.sub(r"kwargs: \{\}", kwargs, config.replace(":Point-v0", ":Hanging-v0"))
    config = config.replace("call_timeout: null", "call_timeout: 6")
    (out / "config.yaml").write_text(config)
    replaced = session.evaluate(out, 5, said, trust=True)
    (line,) = said.lines
    assert re.fullmatch(
        r"evaluator 0 on node .+ did not answer evaluate within 6 s \(resources.call_timeout\); it"
        r" is replaced, and the call made again",
        line,
    )
    undisturbed = session.evaluate(out, 5, said, trust=True)
    assert said.lines == [line], "nothing hung"

    def returns(run: object) -> list[object]:
        return [(row["policy"], row["member"], list(row["returns"])) for row in run.evaluations]  # type: ignore[attr-defined]

    assert returns(replaced) == returns(undisturbed) and len(returns(replaced)) == 5


class Sleeper:
    """Never answers."""

    def work(self) -> None:
        time.sleep(600)


def test_what_hangs_every_time_is_named_with_its_node(ray_cluster: str) -> None:
    said: list[str] = []

    async def work(cluster: Cluster) -> None:
        pool = Pool(
            "sleeper",
            1,
            lambda number: cluster.start(Sleeper, cpus=0.1, retried=True, name=f"sleeper {number}"),
            said.append,
        )
        await pool.call("work")

    with closing(Cluster(said.append, call_timeout=1.0)) as cluster:
        line = (
            r"^sleeper 0 on (no )?node .+ did not answer work within 1 s \(.+\), 3 times in a row$"
        )
        with pytest.raises(ActorLost, match=line):
            asyncio.run(work(cluster))
    assert len(said) == 2


class Stuck(Learner):
    """Hangs, as with a GPU that does not return."""

    def step(self, seconds: float, save: bool) -> tuple[Advance, bytes | None, bytes | None]:
        time.sleep(600)
        return super().step(seconds, save)


def test_a_learner_that_hangs_ends_the_run_in_a_line(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Learner", Stuck)
    monkeypatch.setattr(runs, "DEATHS_IN_A_ROW", 1)
    config = small_config(tmp_path / "run", dataset=str(finished_run), num_seeds=1)
    resources = ResourcesConfig(learners=1, evaluators=1, call_timeout=2.0)
    with pytest.raises(ActorLost) as raised:
        api.run(dataclasses.replace(config, resources=resources), quiet=True)
    assert re.match(
        r"^a learner hung 2 times in a row: learner of population 0 on (no )?node .+ did not answer"
        r" step within 2 s",
        str(raised.value),
    )
