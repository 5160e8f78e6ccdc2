"""`cqlray export RUN`: one member's policy as a file that other programs load, and a model card
beside it.

The file takes raw observations and gives actions in the environment's bounds: normaliser and action
scaling are inside. It is compared with the policy before it is written.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cqlray.algorithms.policy import Array, Arrays, Policy
from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig
from cqlray.data.dataset import dataset_directory, read_description
from cqlray.data.loading import iterate_shards
from cqlray.envs.layout import observation_layout
from cqlray.errors import UserError
from cqlray.results.policies import LoadedPolicy, load_policy
from cqlray.results.policy_files import (
    FORMATS,
    REQUIRED,
    Act,
    loading_code,
    num_layers,
    policy_arrays,
)
from cqlray.results.record import load_run
from cqlray.results.report.model_card import ExportedPolicy, model_card
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.run_directory import write_bytes

TOLERANCE = 1e-6  # of the actions' range
# Float32 networks that sum in another order differ; by so many times what the policy's own rounding
# is, at most.
ROUNDINGS = 4.0
OBSERVATIONS = 1000  # that a file is compared on


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: AnyPath
    card: AnyPath
    """The model card: the file's name and .md."""
    format: str
    member: int
    updates: int
    max_difference: float
    """Largest difference from the policy's actions that was found, in shares of the actions'
    range.
    """


def export(
    run: str | Path,
    member: int | str = "best",
    format: str = "onnx",
    out: str | Path = "",
    by: str | None = None,
    updates: int | None = None,
) -> Exported:
    """Write one student's policy as a file, with a model card beside it.

    Args:
        run: a run directory.
        member: its index or "best", as for load_policy.
        format: torchscript (one observation or a batch), onnx (a batch of any size) or safetensors
            (see the module).
        out: the file, local or in an object store; by default RUN/export/member-INDEX with the
            format's suffix, and member-INDEX-updates-N where `updates` is given.
        by: as for load_policy.
        updates: the snapshot, as for load_policy.

    Raises:
        UserError: not a run, no such member or format, no such snapshot, the format's packages are
            not installed, the file cannot be written; or the file's actions differ from the
            policy's, and then none is left.
    """
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r}; they are {', '.join(FORMATS)}")
    suffix, encode = FORMATS[format]
    policy = load_policy(run, member, by, updates)
    record = load_run(any_path(run))
    arrays = policy_arrays(policy)
    data, act = encode(arrays, _about(record, policy, arrays))
    observations, source = _observations(record, policy)
    difference = _check(policy, act, observations, format)
    name = (
        f"member-{policy.member}"
        if updates is None
        else f"member-{policy.member}-updates-{policy.updates}"
    )
    place = any_path(out) if str(out) else record.directory / "export" / f"{name}{suffix}"
    card = place.parent / f"{place.name}.md"
    described = ExportedPolicy(
        file=place.name,
        format=format,
        member=policy.member,
        updates=policy.updates,
        chosen_by=policy.chosen_by,
        sizes=[arrays[f"{index}.weight"].shape[0] for index in range(num_layers(arrays))]
        + [len(arrays["action_low"])],
        layer_norm="0.norm_scale" in arrays,
        action_low=arrays["action_low"].tolist(),
        action_high=arrays["action_high"].tolist(),
        code=loading_code(format, place.name, arrays),
        layout=_layout(record),
        checked=(
            f"on {len(observations):,} {source}, to {max(difference, 1e-9):.0e} of the actions'"
            " range"
        ),
        versions={
            "cqlray": version("cqlray"),
            **{name: import_module(name).__version__ for name in REQUIRED[format]},
        },
    )
    text = model_card(_until(record, policy.updates), described)
    write_bytes(place, data)
    write_bytes(card, text.encode())
    return Exported(place, card, format, policy.member, policy.updates, difference)


def _until(record: RunRecord, updates: int) -> RunRecord:
    """The record as it was after so many updates: on the card of an earlier snapshot the last test
    is that snapshot's own.
    """
    evaluations = [
        row for row in record.evaluations if row["updates"] is None or row["updates"] <= updates
    ]
    return dataclasses.replace(record, evaluations=evaluations)


def _about(record: RunRecord, policy: LoadedPolicy, arrays: Arrays) -> str:
    """JSON for the file's metadata."""
    layers = num_layers(arrays)
    norm = "layer normalisation (scale I.norm_scale, shift I.norm_shift, epsilon 1e-5), then " * (
        "0.norm_scale" in arrays
    )
    about = {
        "format": 1,
        "environment": record.config["env"]["id"],
        "member": policy.member,
        "updates": policy.updates,
        "dataset_digest": record.manifest.get("dataset_digest"),
        "observation": ["n", len(arrays["observation_mean"])],
        "action": ["n", len(arrays["action_low"])],
        "compute": [
            "x = (observation - observation_mean) / observation_std",
            (
                f"for each layer I = 0 to {layers - 1}: x = x @ I.weight + I.bias; then"
                f" {norm}max(x, 0) in all but the last"
            ),
            (
                "action = clip(action_low + (tanh(x) + 1) * (action_high - action_low) / 2,"
                " action_low, action_high)"
            ),
        ],
    }
    return json.dumps(about, sort_keys=True)


def _observations(record: RunRecord, policy: LoadedPolicy) -> tuple[Array, str]:
    """[n, observation_dim] float32, n at most OBSERVATIONS, and what they are.

    Of the run's data where it is there still, else drawn from a normal distribution of its mean and
    standard deviation.
    """
    configured = record.config.get("dataset")
    for said in (record.directory / "dataset", *([configured] if configured else [])):
        try:
            place = any_path(said)
            shard = next(iterate_shards(dataset_directory(place), read_description(place)))
        except (UserError, OSError):
            continue
        rows = np.linspace(0, len(shard.observations) - 1, OBSERVATIONS).astype(int)
        return (
            np.ascontiguousarray(shard.observations[np.unique(rows)], np.float32),
            "observations of its data",
        )
    mean, std = (policy.policy.arrays[name] for name in ("observation_mean", "observation_std"))
    drawn = np.random.default_rng(0).standard_normal((OBSERVATIONS, len(mean)), np.float32)
    return drawn * std + mean, "random observations"


def _check(policy: LoadedPolicy, act: Act, observations: Array, format: str) -> float:
    """The largest difference of the actions, in shares of their range.

    Raises:
        UserError: it is larger than TOLERANCE, and than rounding explains.
    """
    expected, span = policy(observations), policy.scaling.high - policy.scaling.low
    exact = LoadedPolicy(
        Policy({k: v.astype(np.float64) for k, v in policy.policy.arrays.items()}),
        policy.scaling,
        0,
        0,
    )
    rounding = float((np.abs(exact(observations) - expected) / span).max())
    difference = float((np.abs(act(observations) - expected) / span).max())
    alone = float((np.abs(act(observations[:1]) - expected[:1]) / span).max())
    largest, allowed = float(np.max([difference, alone])), max(TOLERANCE, ROUNDINGS * rounding)
    if not largest <= allowed:  # also where it is NaN
        raise UserError(
            f"the {format} file's actions differ from the policy's by {largest:.1e} of their range,"
            f" more than {allowed:.0e}; no file was written"
        )
    return largest


def _layout(record: RunRecord) -> list[str] | None:
    """How the observations are flattened; None where the environment cannot be made here."""
    said = record.config["env"]
    if said["id"] == NO_ENVIRONMENT:
        return None
    try:
        return observation_layout(EnvConfig(said["id"], said["max_episode_steps"], said["kwargs"]))
    except Exception:  # whatever somebody's environment raises: a policy is exported without it
        return None
