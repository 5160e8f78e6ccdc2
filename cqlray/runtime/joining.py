"""Join a Ray cluster or start one for this process, and find out its resources."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import services
from ray._private.state import state
from ray.exceptions import RayError
from ray.experimental import internal_kv

from cqlray.errors import UserError
from cqlray.runtime.address import listens
from cqlray.runtime.liveness import own_node
from cqlray.runtime.placement import ClusterResources
from cqlray.runtime.signals import RAY_IS_GONE, restoring_handlers, set_again, stop_like_ctrl_c

SECONDS_TO_SHUT_DOWN = 4.0


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
            stop_like_ctrl_c()
            _init()
            stop_like_ctrl_c()  # in place of Ray's
        node = own_node()
        try:
            yield _resources()
        finally:
            if ours:
                _shut_down(node)


def _shut_down(node: str) -> None:
    """End Ray, or leave that to a thread if it takes long: without the cluster, up to a minute.

    Not without this process's node: Ray would end the process as soon as it used the object store.
    """
    if not listens(node):
        RAY_IS_GONE.set()
        return
    ending = threading.Thread(target=ray.shutdown, daemon=True, name="cqlray-shutdown")
    ending.start()
    deadline = time.monotonic() + SECONDS_TO_SHUT_DOWN
    try:
        while ending.is_alive() and time.monotonic() < deadline:
            ending.join(0.05)
            set_again()
    finally:  # also if a signal raises here
        if ending.is_alive():
            RAY_IS_GONE.set()


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
    asked = os.environ.get("RAY_ADDRESS")
    started = services.find_bootstrap_address(None)  # by `ray start`
    if asked:
        _require_address(asked)
    if not asked and not (started and listens(started)):
        with _daemons_in_sessions():
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


@contextmanager
def _daemons_in_sessions() -> Iterator[None]:
    """Start Ray's daemons in sessions of their own: a signal to our process group, as `timeout`
    sends it, would end them with us, and with them the last checkpoint. They still end with us.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


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
