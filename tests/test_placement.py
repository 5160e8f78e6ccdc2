"""The plan, without Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cqlray.config import ResourcesConfig, RunConfig, members
from cqlray.errors import UserError
from cqlray.placement import ClusterResources, Plan, make_plan


def plan_of(cluster: ClusterResources, num_seeds: int = 4, sweep: dict[str, Any] | None = None, **resources: int) -> Plan:
    base = RunConfig(num_seeds=num_seeds, resources=ResourcesConfig(**resources))
    config = dataclasses.replace(base, sweep=dataclasses.replace(base.sweep, **(sweep or {})))
    return make_plan(config, members(config), cluster)


@pytest.mark.parametrize(
    ("cluster", "seeds", "sizes", "threads"),
    [
        (ClusterResources(2), 4, [2, 2], 1),
        (ClusterResources(2), 1, [1], 1),
        (ClusterResources(1), 4, [4], 1),
        (ClusterResources(16), 64, [4] * 16, 1),
        (ClusterResources(16), 4, [1] * 4, 1),
        (ClusterResources(64, gpus=8, nodes=4), 64, [8] * 8, 1),
        (ClusterResources(64, gpus=3), 64, [22, 21, 21], 1),
    ],
    ids=["two cores", "one member", "one core", "many cores", "more cores than members", "GPUs", "uneven"],
)
def test_members_are_shared_out_evenly(cluster: ClusterResources, seeds: int, sizes: list[int], threads: int) -> None:
    plan = plan_of(cluster, seeds)
    assert [len(p) for p in plan.populations] == sizes
    assert plan.threads == threads
    assert plan.gpu == (cluster.gpus > 0)


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64, 1000])
@pytest.mark.parametrize("seeds", [1, 4, 64])
def test_no_stage_asks_for_more_than_there_is(cpus: int, seeds: int) -> None:
    plan = plan_of(ClusterResources(cpus), seeds)
    teaching = plan.cpus["teacher"] + plan.rollout_workers * plan.cpus["rollout_worker"]
    training = plan.learners * plan.cpus["learner"]
    evaluators = plan.evaluators * plan.cpus["evaluator"]
    assert teaching + evaluators <= cpus + 1e-6
    assert training + evaluators <= cpus + 1e-6
    assert min(plan.cpus.values()) > 0


def test_what_changes_shapes_makes_another_population() -> None:
    sweep = {"hidden_units": (64, 128), "conservative_weight": (1.0, 5.0), "layer_norm": (False, True)}
    plan = plan_of(ClusterResources(2), 3, sweep)
    assert sorted(i for p in plan.populations for i in p) == list(range(24))
    config = RunConfig(num_seeds=3)
    listed = members(dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, **sweep)))
    for population in plan.populations:
        assert len({listed[index].structure for index in population}) == 1
    assert len(plan.populations) == 4
    assert plan.learners == 2, "populations take turns"


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus": 8}, "resources.gpus is 8, but the cluster has 0 GPUs"),
        ({"learners": 5}, r"resources.learners is 5, but there are 2 CPUs"),
        ({"threads_per_learner": 4}, r"resources.threads_per_learner is 4"),
        ({"rollout_workers": 900}, r"900 processes of role rollout_worker are too many"),
    ],
)
def test_impossible_demands_are_refused(resources: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(ClusterResources(2), **resources)


def test_the_plan_is_told() -> None:
    lines = plan_of(ClusterResources(2)).lines(offline_only=False)
    assert lines[0] == "cluster      2 CPUs, 0 GPUs on 1 node"
    assert lines[1] == "teaching     1 teacher, 2 rollout workers"
    assert lines[2] == "training     2 learners (1 CPU thread each) for 2 + 2 members, 2 evaluators"
