"""The plan, without Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cqlray.config.members import members
from cqlray.config.schema import ResourcesConfig, RunConfig
from cqlray.errors import UserError
from cqlray.runtime.placement import ClusterResources, Plan, make_plan


def plan_of(
    cluster: ClusterResources,
    num_seeds: int = 4,
    sweep: dict[str, Any] | None = None,
    **resources: int,
) -> Plan:
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
    ids=[
        "two cores",
        "one member",
        "one core",
        "many cores",
        "more cores than members",
        "GPUs",
        "uneven",
    ],
)
def test_members_are_shared_out_evenly(
    cluster: ClusterResources, seeds: int, sizes: list[int], threads: int
) -> None:
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
    sweep = {
        "hidden_units": (64, 128),
        "conservative_weight": (1.0, 5.0),
        "layer_norm": (False, True),
    }
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


GROWING = ClusterResources(0, nodes=1, node_cpus=(0.0,), grows=True)


def test_what_an_autoscaler_brings_may_be_asked_for() -> None:
    """The head has no CPU, all groups are empty: the demands themselves bring the nodes."""
    plan = plan_of(GROWING, 64, rollout_workers=64, gpus=2, learners=2)
    assert (plan.rollout_workers, plan.learners, plan.gpu) == (64, 2, True)
    assert [len(p) for p in plan.populations] == [32, 32]
    assert plan.cpus["rollout_worker"] == 0.5, "as on a cluster of that size"
    assert (
        "the autoscaler is asked for what this plan needs beyond that (34 CPUs, 2 GPUs)"
        in plan.lines(False)[0]
    )


def test_what_an_autoscaler_never_brings_is_refused() -> None:
    limited = dataclasses.replace(GROWING, most_cpus=16.0, most_gpus=1.0)
    with pytest.raises(
        UserError, match=r"resources.gpus is 2, but its autoscaler brings at most 1 GPUs"
    ):
        plan_of(limited, 4, gpus=2)
    with pytest.raises(UserError, match=r"resources.learners is 20, but there are 16 CPUs"):
        plan_of(limited, 64, learners=20)


def test_without_demands_a_growing_cluster_is_used_as_it_is() -> None:
    plan = plan_of(dataclasses.replace(GROWING, cpus=4.0, node_cpus=()), 8)
    assert (plan.rollout_workers, plan.learners) == (4, 4)


def test_learners_fit_on_single_nodes() -> None:
    """Three nodes of three CPUs have room for three learners of two threads, not for four."""
    cluster = ClusterResources(9, nodes=3, node_cpus=(3.0, 3.0, 3.0))
    assert plan_of(cluster, 8, threads_per_learner=2).learners == 3
    with pytest.raises(UserError, match="the largest node has 3 CPUs; ask for at most 3"):
        plan_of(cluster, 8, threads_per_learner=4)


@pytest.mark.parametrize(
    "nodes", [(2.0, 2.0), (1.0, 1.0, 1.0), (4.0, 60.0), (8.0,) * 16, (0.0, 2.0)]
)
def test_all_learners_find_room_wherever_the_evaluators_are(nodes: tuple[float, ...]) -> None:
    cluster = ClusterResources(sum(nodes), nodes=len(nodes), node_cpus=nodes)
    plan = plan_of(cluster, 64)
    share, taken = plan.cpus["learner"], plan.evaluators * plan.cpus["evaluator"]
    for crowded in range(len(nodes)):
        free = [
            max(0.0, cpus - taken) if node == crowded else cpus for node, cpus in enumerate(nodes)
        ]
        assert sum(int((cpus + 1e-6) / share) for cpus in free) >= plan.learners


def test_a_learner_on_a_gpu_waits_for_no_cpu() -> None:
    assert plan_of(ClusterResources(8, gpus=4), 8).cpus["learner"] <= 0.01
