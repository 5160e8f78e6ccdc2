"""The benchmark of the learner in its actor: it counts the learner's own updates, and drives it as
the driver does.
"""

from __future__ import annotations

import json

import pytest

from cqlray.benchmarks import actor as learner_actor
from cqlray.benchmarks import actor_contestants
from cqlray.benchmarks.actor import NAMES, driven_learner
from cqlray.benchmarks.actor_contestants import ENV, BareLearner, played_shards
from cqlray.cli.parser import OneLine
from cqlray.config.members import Member
from cqlray.config.schema import CQLConfig, ResourcesConfig, RunConfig
from cqlray.envs.make import describe_env
from cqlray.errors import UserError
from cqlray.runtime.placement import Plan, make_plan
from cqlray.stages import train

pytestmark = pytest.mark.sample

MEMBERS = [
    Member(
        0, 0, CQLConfig(hidden_units=8, batch_size=8, num_action_samples=2, num_updates=10**9), {}
    )
]


@pytest.mark.ray
def test_the_updates_counted_are_those_that_the_learner_made(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cqlray.runtime.cluster import Cluster, run_with_actors
    from cqlray.runtime.joining import connect

    monkeypatch.setattr(train, "SECONDS_PER_ADVANCE", 0.1)
    spec = describe_env(ENV)

    async def story(actors: Cluster, plan: Plan) -> None:
        driven = driven_learner(actors, plan, spec, MEMBERS, 100, played_shards(spec)[:1])
        turns = [await driven.turn(0.2, "actor")]
        assert driven.tests == 0 and driven.snapshot is not None
        turns.append(await driven.turn(0.2, "tested"))
        assert driven.tests == len(driven.parts) * turns[-1].work // 100, (
            "every snapshot is tested once"
        )
        turns.append(await driven.turn(0.2, "contended"))
        assert sum(turn.work for turn in turns) == await driven.learner.ask("updates")
        assert all(
            turn.work >= 100 and turn.seconds > 0.2 and turn.cpu_seconds > 0 for turn in turns
        )
        assert not driven.evaluators.attempts and not driven.evaluators.waiting

        made: list[int] = []

        async def make() -> None:
            made.append(len(made))

        assert await driven._ms_each(make) < 1.0
        assert made == list(range(actor_contestants.CALLS))
        assert (await driven.driver_ms()).keys() == {"learner", "evaluation"}
        assert sum(turn.work for turn in turns) == await driven.learner.ask("updates"), (
            "these calls make no updates"
        )

    with connect() as cluster:
        asked = RunConfig(env=ENV, resources=ResourcesConfig(learners=1))
        plan = make_plan(asked, MEMBERS, cluster)
        run_with_actors(lambda actors: story(actors, plan), print)


def test_the_bare_loop_counts_its_updates() -> None:
    spec = describe_env(ENV)
    bare = BareLearner(MEMBERS, spec.scaling, 1, *played_shards(spec)[:1])
    turns = [bare.turn(0.0), bare.turn(0.3)]
    assert turns[0].work == 100
    assert sum(turn.work for turn in turns) == bare.learner.updates()


@pytest.mark.ray
def test_the_command_prints_what_programs_rely_on(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "SECONDS_PER_ADVANCE", 0.1)
    monkeypatch.setattr(learner_actor, "ROUNDS", 1)
    monkeypatch.setattr(actor_contestants, "CALLS", 10)
    assert learner_actor.main(["--seconds", "0.1", "--json"], OneLine) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["member_updates_per_s"].keys() == NAMES.keys()
    assert result["ratio"].keys() == result["cpu_ratio"].keys() == NAMES.keys() - {"bare"}
    rates = result["member_updates_per_s"]
    assert result["ratio"]["tested"]["median"] == pytest.approx(rates["tested"] / rates["bare"])
    assert result["ratio_to_beside"]["median"] == pytest.approx(
        rates["contended"] / rates["beside"]
    )
    assert 0.5 < result["share_inside_advance"] <= 1.0
    assert result["interval"] % 100 == 0 and result["tests_played"] > 0
    driver = result["driver_ms_per_call"]
    assert driver.keys() == {"learner", "evaluation"}
    assert all(0.05 < ms < 100 for ms in driver.values()), driver
    assert "of bare" in learner_actor.text(result)
    assert f"{driver['evaluation']:.2f} ms an evaluation" in learner_actor.text(result)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--members", "0"], "must be positive"),
        (["--seconds", "inf"], "must be positive"),
        (["--workload", "H"], "'H'"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        learner_actor.main(words, OneLine)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.ray
def test_more_threads_than_the_cluster_has_are_refused(ray_cluster: str) -> None:
    with pytest.raises(UserError, match="the largest node has 2 CPUs; ask for at most 2"):
        learner_actor.main(["--threads", "3"], OneLine)
