"""The files for `ray up`, against the schema that Ray ships and what this project wants of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.aws.config import DEFAULT_RAY_IAM_ROLE
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.cluster.commands import CLUSTER, fenced, of_program

NAMES = ("local", "aws", "gcp")
CLOUDS = ("aws", "gcp")
SPOT: dict[str, Callable[[dict[str, Any]], bool]] = {
    "aws": lambda node: node.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
    "gcp": lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT",
}


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / f"ray-{name}.yaml").read_text())
    return config


def validate(config: dict[str, Any]) -> None:
    """Raises as `ray up` would before it reaches for a machine."""
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_it(name: str) -> None:
    validate(config_of(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("misspelt", ["setup_commands", "file_mounts", "head_start_ray_commands"])
def test_a_misspelt_field_is_refused(name: str, misspelt: str) -> None:
    config = config_of(name)
    config[misspelt + "s"] = config.pop(misspelt)
    with pytest.raises(ValidationError, match=misspelt + "s"):
        validate(config)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_wrong_type_and_a_missing_head_are_refused(name: str) -> None:
    config = config_of(name)
    config["available_node_types"]["learner"]["resources"]["GPU"] = "one"
    with pytest.raises(ValidationError, match="'one' is not of type 'integer'"):
        validate(config)
    config = config_of(name)
    config["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(config)


def mistakes(name: str, config: dict[str, Any]) -> list[str]:
    """What this project wants of a file for `ray up` and does not find."""
    found = []
    starts = [
        line
        for part in ("head", "worker")
        for line in config[f"{part}_start_ray_commands"]
        if "ray start" in line
    ]
    if (
        not all("RAY_AUTH_MODE=token" in line for line in starts)
        or "~/.ray/auth_token" not in config["file_mounts"]
    ):
        found.append("token")
    if "--num-cpus=0" not in starts[0] or "--dashboard-host=127.0.0.1" not in starts[0]:
        found.append("head")
    if name == "local":
        return found
    types = config["available_node_types"]
    if any(types["head"]["resources"].values()):
        found.append("head")
    spot = {kind for kind, of_kind in types.items() if SPOT[name](of_kind["node_config"])}
    if spot != {"rollout"}:
        found.append("spot")
    if {kind for kind in types if types[kind]["resources"].get("GPU")} != {"learner"}:
        found.append("gpu")
    if config["max_workers"] != sum(types[kind]["max_workers"] for kind in ("rollout", "learner")):
        found.append("limits")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_this_project_wants(name: str) -> None:
    assert mistakes(name, config_of(name)) == []


def test_what_this_project_does_not_want_is_seen() -> None:
    config = config_of("aws")
    config["worker_start_ray_commands"] = ["ray start --address=$RAY_HEAD_IP:6379"]
    config["head_start_ray_commands"] = [
        line.replace("--num-cpus=0", "") for line in config["head_start_ray_commands"]
    ]
    config["available_node_types"]["learner"]["node_config"]["InstanceMarketOptions"] = {
        "MarketType": "spot"
    }
    config["available_node_types"]["rollout"]["resources"]["GPU"] = 1
    config["max_workers"] = 100
    assert mistakes("aws", config) == ["token", "head", "spot", "gpu", "limits"]


def test_the_head_is_given_the_right_to_start_workers_with_their_role() -> None:
    """Ray makes the head's role without it, and EC2 then refuses to start a worker that has a
    profile.
    """
    types = config_of("aws")["available_node_types"]
    assert "IamInstanceProfile" not in types["head"]["node_config"], (
        "else the head's role is another than Ray's"
    )
    profiles = {
        types[kind]["node_config"]["IamInstanceProfile"]["Name"] for kind in ("rollout", "learner")
    }
    (words,) = of_program(
        fenced((CLUSTER / "README.md").read_text()), "aws", "iam", "put-role-policy"
    )
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--role-name"] == DEFAULT_RAY_IAM_ROLE
    (statement,) = json.loads(options["--policy-document"])["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Allow", "iam:PassRole")
    assert {statement["Resource"].rpartition(":role/")[2]} == profiles
    assert "iam:PassRole" in (CLUSTER / "ray-aws.yaml").read_text()
