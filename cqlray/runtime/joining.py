"""Join a Ray cluster or start one for this process, and find out its resources."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray._private.state import state
from ray.exceptions import RayError
from ray.experimental import internal_kv

from cqlray.errors import UserError
from cqlray.runtime.address import listens
from cqlray.runtime.event_loop import restoring_handlers
from cqlray.runtime.placement import ClusterResources


@contextmanager
def connect() -> Iterator[ClusterResources]:
    """Join the cluster of RAY_ADDRESS, or the one that `ray start` left running here, or start one
    for this process.

    Raises:
        UserError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    ours = not ray.is_initialized()
    with restoring_handlers():  # Ray and `Stop` set handlers, which last until Ray is gone
        if ours:
            _init()
        try:
            yield _resources()
        finally:
            if ours:
                ray.shutdown()


def _resources() -> ClusterResources:
    """The cluster's resources, and those that an autoscaler would add."""
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows, limits = _autoscaler()
    return ClusterResources(
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        nodes=len(nodes),
        memory=total.get("memory", math.inf),
        node_cpus=tuple(sorted(node.get("CPU", 0.0) for node in nodes)),
        grows=grows,
        most_cpus=limits.get("CPU", 0.0) if limits else math.inf,
        most_gpus=limits.get("GPU", 0.0) if limits else math.inf,
    )


def _autoscaler() -> tuple[bool, dict[str, float] | None]:
    """Whether an autoscaler adds nodes on demand, and its limit for each resource, if known.

    Ray has no call for this. Version 2 of the autoscaler (KubeRay's) leaves its limits in the
    cluster's state; version 1 (`ray up`) only names its node types in its status, where a cluster
    of plain `ray start` has names made of node ids, and `ray up` on machines that are there already
    has one name for all of them.
    """
    limits = state.get_max_resources_from_cluster_config()
    if limits:
        return True, {kind: float(most) for kind, most in limits.items()}
    status = internal_kv._internal_kv_get(b"__autoscaling_status")
    report = json.loads(status).get("autoscaler_report") if status else None
    types = ((report or {}).get("node_type_mapping") or {}).values()
    grows = any(not name.startswith("node_") and name != "local.cluster.node" for name in types)
    return grows, None


def _init() -> None:
    """Join or start a cluster.

    Use "auto" only if `ray start` left a cluster: else it joins any cluster that it finds on the
    machine, such as another run's, which ends with that run.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    asked, started = os.environ.get("RAY_ADDRESS"), find_bootstrap_address(None)  # by `ray start`
    if asked:
        _require_address(asked)
    if not asked and not (started and listens(started)):
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        # What `ray start` left has precedence in "auto", which alone turns on Ray's token mode
        # where there is a token.
        ray.init(address=asked or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        where = f"RAY_ADDRESS {asked!r}" if asked else f"the cluster of `ray start` at {started}"
        reason = str(error).strip().splitlines()[0]
        hint = "if it is protected by a token, set RAY_AUTH_MODE=token and have the token here"
        raise UserError(f"{where} cannot be joined: {reason}; {hint}") from None


def _require_address(asked: str) -> None:
    """Raise UserError if RAY_ADDRESS is of another kind, or nothing listens there."""
    if asked.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS {asked!r} is a dashboard, which takes jobs: cqlray submit --address"
            f" {asked} run …; a process on the cluster joins it by RAY_ADDRESS=HOST:6379 or auto"
        )
    if asked.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS {asked!r}: a run does not go through Ray Client; on a machine of the"
            " cluster set RAY_ADDRESS=HOST:6379 or auto, from elsewhere use"
            " cqlray submit --address http://HOST:8265 run …"
        )
    if not listens(asked):
        raise UserError(f"RAY_ADDRESS {asked!r}: nothing listens there; is `ray start` running?")
