"""Exported networks compute what the policy computes, in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cqlray.algorithms.policy import Array, Policy
from cqlray.config.schema import RunConfig
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.results import export as exporting
from cqlray.results.policies import LoadedPolicy
from cqlray.results.policy_files import FORMATS, policy_arrays
from cqlray.results.record import load_run
from tests.unit.results.run_directories import make_run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LOW, HIGH = np.array([-2.0, 0.0, -1.0], np.float32), np.array([3.0, 100.0, 1e-3], np.float32)


def made_policy(sizes: list[int], layer_norm: bool = False, gain: float = 1.0) -> LoadedPolicy:
    """A policy of random weights, with three actions of different bounds, and a normaliser far from
    the identity.
    """
    rng = np.random.default_rng(sum(sizes))

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    arrays = {
        "observation_mean": normal(sizes[0], scale=5.0),
        "observation_std": np.exp(normal(sizes[0])),
    }
    arrays["log_std_min"] = np.full(1, -5.0, np.float32)
    for index, (rows, columns) in enumerate(zip(sizes, [*sizes[1:], 2 * len(LOW)], strict=True)):
        arrays[f"policy.{index}.weight"] = normal(1, rows, columns, scale=gain / np.sqrt(rows))
        arrays[f"policy.{index}.bias"] = normal(1, 1, columns, scale=0.3)
        if layer_norm and index < len(sizes) - 1:
            arrays[f"policy.{index}.norm_scale"] = normal(1, 1, columns)
            arrays[f"policy.{index}.norm_shift"] = normal(1, 1, columns)
    return LoadedPolicy(Policy(arrays), ActionScaling(LOW, HIGH), 0, 0)


def observations_of(policy: LoadedPolicy, rows: int) -> Array:
    mean, std = (policy.policy.arrays[name] for name in ("observation_mean", "observation_std"))
    drawn: Array = (
        np.random.default_rng(1).standard_normal((rows, len(mean)), np.float32) * std + mean
    )
    return drawn


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("sizes", "layer_norm"),
    [
        ([3, 64, 64], False),
        ([1, 8], False),
        ([5], False),
        ([17, 256, 256], True),
        ([376, 64], True),
    ],
)
def test_networks_of_any_shape(format: str, sizes: list[int], layer_norm: bool) -> None:
    policy = made_policy(sizes, layer_norm)
    data, act = FORMATS[format][1](policy_arrays(policy), "{}")
    observations = observations_of(policy, 50)
    actions = act(observations)
    assert actions.dtype == np.float32 and actions.shape == (50, 3)
    np.testing.assert_allclose(
        (actions - policy(observations)) / (HIGH - LOW), 0.0, rtol=0, atol=1e-6
    )
    assert (actions >= LOW).all() and (actions <= HIGH).all() and np.ptp(actions, axis=0).min() > 0
    assert data, "bytes to be written"


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_of_sharp_networks_is_no_difference(format: str) -> None:
    """Where float32 itself is coarser than 1e-6 of the range, a file that is as exact as the policy
    is taken.
    """
    policy = made_policy([376, 1024, 1024, 1024], gain=2.5)
    arrays = policy_arrays(policy)
    observations = observations_of(policy, 300)
    found = exporting._check(policy, FORMATS[format][1](arrays, "{}")[1], observations, format)
    assert found < 1e-4
    arrays["1.bias"] = arrays["1.bias"] + np.float32(1e-3)
    with pytest.raises(UserError, match="differ from the policy's by"):
        exporting._check(policy, FORMATS[format][1](arrays, "{}")[1], observations, format)


def test_the_same_policy_gives_the_same_onnx_file() -> None:
    arrays = policy_arrays(made_policy([3, 8], layer_norm=True))
    turned = dict(reversed(arrays.items()))  # safetensors gives a snapshot's arrays in any order
    files = [FORMATS["onnx"][1](given, "{}")[0] for given in (arrays, turned)]
    assert files[0] == files[1]


def test_the_card_has_the_layout_that_the_run_noted(tmp_path: Path) -> None:
    def layout(name: str, **manifest: object) -> list[str] | None:
        return exporting._layout(load_run(make_run(tmp_path / name, **manifest)))

    assert layout("vector", observation_layout=[]) == []
    assert layout("tuple", observation_layout=["number 0: observation[0]"]) == [
        "number 0: observation[0]"
    ]
    assert layout("logged", observation_layout=None) is layout("older") is None
    assert layout("damaged", observation_layout={"a": 3}) is None


def test_no_bucket_is_asked_because_a_run_on_a_disk_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(exporting, "read_description", lambda place: asked.append(str(place)))
    monkeypatch.setattr(exporting, "iterate_shards", lambda *_: iter(()))
    monkeypatch.setattr(exporting, "dataset_directory", lambda place: place)
    config = RunConfig(dataset="s3://elsewhere/data")
    with pytest.raises(StopIteration):  # of the stand-in without shards
        exporting._observations(
            load_run(make_run(tmp_path / "run", config=config)), made_policy([3])
        )
    assert asked == [str(tmp_path / "run" / "dataset")]


def test_a_loaded_policy_says_which_algorithm_it_is() -> None:
    policy = made_policy([3])
    swept = {"algorithm": "bc", "conservative_weight": 5.0}
    named = LoadedPolicy(policy.policy, policy.scaling, 3, 2000, "fqe", swept)
    assert (policy.algorithm, named.algorithm) == ("cql", "bc")
    assert repr(named) == (
        "<policy of member 3, the best by fqe: bc, conservative_weight 5.0, after 2,000 updates>"
    )
