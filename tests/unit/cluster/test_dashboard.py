"""The Grafana dashboard: every expression is made of metrics that exist."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from cqlray.runtime import metrics
from tests.unit.cluster.commands import CLUSTER

# cqlray's own, as Ray exports them: with the prefix ray_ (seen on 2.60, on an agent's metrics
# page).
OURS = {f"ray_{name}" for name in re.findall(r'"(cqlray_\w+)"', inspect.getsource(metrics))}
RAYS = {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_object_store_memory"}
DASHBOARD = json.loads((CLUSTER / "grafana" / "cqlray-dashboard.json").read_text())


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (
        variable["definition"]
        for variable in dashboard["templating"]["list"]
        if "definition" in variable
    )


def mistakes(dashboard: dict[str, Any]) -> list[str]:
    """What Grafana or Prometheus would not find or not show."""
    found = []
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {
        "__rate_interval"
    }
    for expression in expressions(dashboard):
        metrics = set(re.findall(r"\bray_(?!io_cluster\b)\w+", expression))
        if not metrics or metrics - OURS - RAYS:
            found.append(f"unknown metric in {expression}")
        if set(re.findall(r"\$\{?(\w+)", expression)) - variables:
            found.append(f"unknown variable in {expression}")
        if (
            any(expression.count(a) != expression.count(b) for a, b in ("()", "{}", "[]"))
            or expression.count('"') % 2
        ):
            found.append(f"brackets in {expression}")
        if bool(re.search(r"_total\b", expression)) != ("rate(" in expression):
            found.append(f"a counter without a rate, or a rate of no counter, in {expression}")
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        found.append("two panels of one id")
    areas = [panel["gridPos"] for panel in dashboard["panels"]]
    if any(_overlap(a, b) for i, a in enumerate(areas) for b in areas[:i]) or any(
        a["x"] + a["w"] > 24 for a in areas
    ):
        found.append("panels on top of each other")
    return found


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


def test_nothing_is_wrong_with_it() -> None:
    assert mistakes(DASHBOARD) == []


def test_each_of_our_metrics_is_shown() -> None:
    shown = {
        metric
        for expression in expressions(DASHBOARD)
        for metric in re.findall(r"ray_cqlray_\w+", expression)
    }
    assert shown == OURS


def test_rays_metrics_are_those_of_its_own_dashboard() -> None:
    assert set(re.findall(r"ray_\w+", inspect.getsource(default_dashboard_panels))) >= RAYS


@pytest.mark.parametrize(
    ("before", "after", "mistake"),
    [
        ("ray_cqlray_shards_total", "ray_cqlray_shard_total", "unknown metric"),
        ("ray_cqlray_shards_total", "cqlray_shards_total", "unknown metric"),
        ("$SessionName", "$Session", "unknown variable"),
        ("))", ")", "brackets"),
        ("rate(", "avg(", "a counter without a rate"),
        (
            "ray_cqlray_shards_total",
            "ray_cqlray_busy_ratio",
            "a counter without a rate, or a rate of no counter",
        ),
    ],
)
def test_a_broken_copy_is_refused(before: str, after: str, mistake: str) -> None:
    broken = copy.deepcopy(DASHBOARD)
    target = next(
        t for p in broken["panels"] for t in p.get("targets", []) if "shards" in t["expr"]
    )
    assert before in target["expr"]
    target["expr"] = target["expr"].replace(before, after)
    assert [line for line in mistakes(broken) if line.startswith(mistake)]


def test_panels_that_overlap_are_seen() -> None:
    broken = copy.deepcopy(DASHBOARD)
    broken["panels"][2]["gridPos"] = broken["panels"][1]["gridPos"]
    broken["panels"][2]["id"] = broken["panels"][1]["id"]
    assert mistakes(broken) == ["two panels of one id", "panels on top of each other"]
