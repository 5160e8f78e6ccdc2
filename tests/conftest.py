"""One small Ray cluster for each process of tests, and the small run that many of them look at."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqlray.config.schema import (
    CollectionConfig,
    CQLConfig,
    EnvConfig,
    EvaluationConfig,
    ResourcesConfig,
    RunConfig,
    TeacherConfig,
)

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The key that runs are signed with; the same for all processes of tests.
os.environ["XDG_STATE_HOME"] = f"{tempfile.gettempdir()}/cqlray-tests-{os.geteuid()}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m "not ray"` leaves out also what needs the cluster through another fixture."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


def small_config(out: Path, **changes: object) -> RunConfig:
    """A run of a few seconds with every stage in it."""
    base = RunConfig(
        out=str(out),
        num_seeds=3,
        env=EnvConfig("tests.toy_envs:Point-v0"),
        teacher=TeacherConfig(
            hidden_units=16,
            batch_size=32,
            rounds=6,
            episodes_per_round=3,
            evaluation_interval=2,
            evaluation_episodes=4,
            policy_learning_rate=1e-3,
            critic_learning_rate=1e-3,
        ),
        collection=CollectionConfig(
            tiers=("replay", "expert", "medium", "random"), episodes=(10,), episodes_per_shard=3
        ),
        cql=CQLConfig(hidden_units=16, batch_size=32, num_updates=330, num_action_samples=3),
        evaluation=EvaluationConfig(interval=110, episodes=12),
        resources=ResourcesConfig(rollout_workers=2, evaluators=1, learners=2),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a real cluster of two CPUs; subprocesses join it by RAY_ADDRESS."""
    import ray

    context = ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_run(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, undisturbed; tests read it and do not write. xdist's workers share one."""
    from cqlray.api import runs as api

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers' folders stand in it
    out, done = folder / "undisturbed", folder / "undisturbed is finished"
    with (folder / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            api.run(small_config(out), quiet=True)
            done.touch()
    return out
