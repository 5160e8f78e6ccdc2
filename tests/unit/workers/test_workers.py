"""The roles as plain objects, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqlray import seeding
from cqlray.algorithms.policy import DeterministicActor, Policy
from cqlray.config.members import Member, members
from cqlray.config.schema import CQLConfig, EnvConfig, RunConfig, TeacherConfig
from cqlray.data.columns import join_shards
from cqlray.data.episode import Shard
from cqlray.data.shards import to_parquet
from cqlray.envs.make import EnvPool, describe_env
from cqlray.envs.rollout import rollout
from cqlray.errors import NotShared, UserError
from cqlray.storage import checkpoint
from cqlray.storage.outbox import HandedBack, SharedDirectory
from cqlray.workers.evaluator import Evaluator
from cqlray.workers.learner import CHUNK, Advance, Learner, LearnerSpec, StudentFiles
from cqlray.workers.rollout_worker import RolloutWorker, ShardTask
from cqlray.workers.rows import merge_rows
from cqlray.workers.teacher import Teacher
from cqlray.workers.training_data import transition_table

ENV = EnvConfig("tests.toy_envs:Point-v0")
SPEC = describe_env(ENV)
SMALL = CQLConfig(hidden_units=8, batch_size=16, num_action_samples=2, num_updates=350)
TEACHER = TeacherConfig(hidden_units=8, batch_size=16, warmup_rounds=1, updates_per_step=0.3)


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    worker = RolloutWorker(ENV, SPEC)
    return [
        worker.collect(ShardTask(i, "random", tuple(range(10 * i, 10 * i + 6))), None)
        for i in range(2)
    ]


HERE = StudentFiles(HandedBack(), 0)


def learner_spec(own: list[Member], files: StudentFiles = HERE) -> LearnerSpec:
    return LearnerSpec(own, 0, SPEC.scaling, 150, "cpu", 1, "float32", files)


def learner(
    shards: list[Shard],
    cql: CQLConfig = SMALL,
    num_seeds: int = 2,
    saved: bytes | None = None,
    **sweep: Any,
) -> Learner:
    config = RunConfig(num_seeds=num_seeds, cql=cql)
    config = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, **sweep))
    return Learner(learner_spec(members(config)), saved, *shards)


def finish(role: Learner) -> list[Advance]:
    results = []
    while role.updates() < role.num_updates:
        results.append(role.advance(1e9, save=False))
    return results


def test_snapshots_come_at_the_interval_and_at_the_end(shards: list[Shard]) -> None:
    results = finish(learner(shards))
    assert [r.updates for r in results] == [150, 300, 350]
    for result in results:
        assert (
            result.snapshot is not None and result.saved is not None and result.metrics is not None
        )
        assert checkpoint.decode(result.snapshot)[1]["updates"] == result.updates
        assert all(
            len(values) == 2 and np.isfinite(values).all() for values in result.metrics.values()
        )


def test_a_learner_resumed_anywhere_ends_with_the_same_bytes(shards: list[Shard]) -> None:
    whole = finish(learner(shards))
    first = learner(shards)
    part = first.advance(1e-3, save=True)
    assert part.updates == CHUNK and part.snapshot is None and part.saved is not None
    rest = finish(learner(shards, saved=part.saved))
    assert [(r.updates, r.snapshot, r.saved, r.metrics) for r in rest] == [
        (r.updates, r.snapshot, r.saved, r.metrics) for r in whole
    ]


def test_a_member_alone_learns_what_it_learns_among_others(shards: list[Shard]) -> None:
    together = finish(learner(shards, num_seeds=3, conservative_weight=(1.0, 4.0)))[-1]
    member = Member(0, 2, dataclasses.replace(SMALL, conservative_weight=4.0), {})
    alone = Learner(learner_spec([member]), None, *shards)
    ours, _ = checkpoint.decode(finish(alone)[-1].snapshot or b"")
    theirs, metadata = checkpoint.decode(together.snapshot or b"")
    assert metadata["members"] == [0, 1, 2, 3, 4, 5]
    for name in ("policy.0.weight", "policy.2.bias", "critics.1.weight"):
        per_member = theirs[name].reshape(6, -1, *theirs[name].shape[1:])
        np.testing.assert_allclose(per_member[5].reshape(ours[name].shape), ours[name], atol=2e-4)


def test_a_member_that_diverges_is_frozen_and_told_and_survives_a_resume(
    shards: list[Shard],
) -> None:
    bad = learner(shards, critic_learning_rate=(3e-4, 1e30))
    results = finish(bad)
    assert set(results[-1].frozen) == {2, 3}
    arrays, _ = checkpoint.decode(results[-1].snapshot or b"")
    assert all(np.isfinite(array).all() for array in arrays.values())
    good, _ = checkpoint.decode(finish(learner(shards))[-1].snapshot or b"")
    np.testing.assert_allclose(arrays["policy.0.weight"][:2], good["policy.0.weight"], atol=1e-4)
    again = learner(shards, saved=results[0].saved, critic_learning_rate=(3e-4, 1e30))
    assert finish(again)[-1].snapshot == results[-1].snapshot


def test_checkpoints_of_other_members_are_refused(shards: list[Shard]) -> None:
    saved = learner(shards).advance(1e9, save=True).saved
    with pytest.raises(ValueError, match="other networks or another number of members"):
        learner(shards, num_seeds=3, saved=saved)
    with pytest.raises(UserError, match="student checkpoint: not a readable"):
        learner(shards, saved=b"junk")


def test_a_learner_does_not_begin_anew_where_the_others_files_are_not(
    shards: list[Shard], tmp_path: Path
) -> None:
    """On a node without the shared disk; a teacher there finds out at its first round."""
    place = SharedDirectory(tmp_path / "elsewhere", "of the run")
    own = [Member(0, 0, SMALL, {})]
    with pytest.raises(NotShared, match=r"elsewhere is not on node"):
        Learner(learner_spec(own, StudentFiles(place, 0)), None, *shards)
    teacher = Teacher(TEACHER, 0, SPEC.scaling, 2, None, place)
    with pytest.raises(NotShared, match=r"elsewhere is not on node"):
        teacher.learn(0, *shards)


def test_calibration_bounds_come_from_the_data(shards: list[Shard]) -> None:
    role = learner(shards, dataclasses.replace(SMALL, calibrated=True), discount=(0.5, 0.9))
    positions = torch.rand(4, 16, dtype=torch.float64)
    batch = role.gather(positions)
    assert batch.data_returns is not None and batch.data_returns.shape == (4, 16)
    episode = next(shards[0].episodes())
    by_hand = [
        sum(0.9**k * r for k, r in enumerate(episode.rewards[t:])) for t in range(len(episode))
    ]
    first = torch.arange(len(episode), dtype=torch.float64) / role_size(shards) + 1e-9
    returns = role.gather(first.repeat(4, 1)).data_returns
    assert returns is not None
    np.testing.assert_allclose(returns[3], by_hand, rtol=1e-4)


def test_members_with_one_discount_share_calibration_returns(shards: list[Shard]) -> None:
    data, device = join_shards(shards), torch.device("cpu")
    configs = [
        dataclasses.replace(SMALL, calibrated=True, discount=d) for d in (0.9, 0.5, 0.9, 0.9)
    ]
    table = transition_table(data, configs, device)
    assert table.data_returns is not None and table.returns_of is not None
    assert table.data_returns.shape == (2, len(data.rewards))
    assert table.returns_of.tolist() == [0, 1, 0, 0]


def role_size(shards: list[Shard]) -> int:
    return sum(shard.num_transitions for shard in shards)


def test_a_shard_is_a_pure_function_of_its_task(shards: list[Shard]) -> None:
    busy, fresh = RolloutWorker(ENV, SPEC), RolloutWorker(ENV, SPEC)
    task = ShardTask(0, "random", tuple(range(6)))
    busy.collect(ShardTask(1, "random", (77, 78)), None)
    assert (
        busy.collect(task, None).digest()
        == fresh.collect(task, None).digest()
        == shards[0].digest()
    )


def test_teacher_rounds_updates_and_resume(shards: list[Shard]) -> None:
    whole, first = (Teacher(TEACHER, 0, SPEC.scaling, 2, None, HandedBack()) for _ in range(2))
    steps = [shard.num_transitions for shard in shards]
    reports = [whole.learn(index, shard)[0] for index, shard in enumerate(shards)]
    assert [r["updates"] for r in reports] == [int(steps[0] * 0.3), int(sum(steps) * 0.3)]
    assert reports[1]["environment_steps"] == sum(steps) and not reports[1]["diverged"]
    first.learn(0, shards[0])
    saved = first.save({"rounds": 1})
    assert checkpoint.decode(saved)[1]["rounds"] == 1
    resumed = Teacher(TEACHER, 0, SPEC.scaling, 2, saved, HandedBack(), to_parquet(shards[0]))
    resumed.learn(1, shards[1])
    assert resumed.save({}) == whole.save({}) and resumed.snapshot() == whole.snapshot()


def test_teacher_only_collects_while_it_warms_up(shards: list[Shard]) -> None:
    teacher = Teacher(
        dataclasses.replace(TEACHER, warmup_rounds=2), 0, SPEC.scaling, 2, None, HandedBack()
    )
    assert teacher.learn(0, shards[0])[0]["updates"] == 0
    assert teacher.learn(1, shards[1])[0]["updates"] > 0


def test_evaluations_in_parts_are_the_evaluation(shards: list[Shard]) -> None:
    snapshot = learner(shards).advance(1e9, save=False).snapshot
    evaluator = Evaluator(ENV, SPEC)
    seeds = tuple(seeding.integer_seeds(0, "test", count=6))
    whole = evaluator.evaluate(snapshot, seeds)
    parts = merge_rows(
        [evaluator.evaluate(snapshot, seeds[:4]), evaluator.evaluate(snapshot, seeds[4:])]
    )
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        assert one["lengths"] == other["lengths"]
        for name in ("returns", "value", "discounted_return", "tail_value"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4)
        np.testing.assert_allclose(one["excesses"], other["excesses"], rtol=1e-3, atol=1e-4)
        assert len(one["excesses"]) == 6
        assert np.mean(one["excesses"]) == pytest.approx(
            one["value"] - one["discounted_return"] - one["tail_value"], abs=1e-4
        )


def test_tails_count_for_truncations_alone(shards: list[Shard]) -> None:
    """Recomputed from the episodes: discount^T * min_i Q_i at the last state, for the truncated
    ones.
    """
    snapshot = learner(shards).advance(1e9, save=False).snapshot or b""
    policy = Policy(checkpoint.decode(snapshot)[0]).member(1)
    seeds = tuple(range(8))
    for limit in (1, 12, 25):
        env = dataclasses.replace(ENV, max_episode_steps=limit)
        row = Evaluator(env, SPEC).evaluate(snapshot, seeds)[1]
        episodes = rollout(DeterministicActor(policy), EnvPool(env).take(8), seeds, SPEC.scaling)
        expected = []
        for episode in episodes:
            last = episode.observations[-1][None, None]
            tail = 0.99 ** len(episode) * policy.value(last, policy.act(last)).item()
            expected.append(tail if episode.truncations[-1] else 0.0)
        np.testing.assert_allclose(row["tail_value"], np.mean(expected), rtol=1e-4)
        assert limit > 1 or all(expected), "every episode of one step is truncated"
