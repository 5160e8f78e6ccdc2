"""`cqlray export RUN`: one member's policy as a file that other programs load, and a model card
beside it.

The file takes raw observations and gives actions within the environment's bounds: the observation
normaliser and the action scaling are part of it. Before it is written, its actions are compared
with the policy's.
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
from cqlray.data.dataset import dataset_directory, read_description
from cqlray.data.loading import iterate_shards
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
from cqlray.results.record import data_places, load_run
from cqlray.results.report.model_card import ExportedPolicy, model_card
from cqlray.results.report.verdict_words import algorithm_name
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.run_directory import write_bytes

TOLERANCE = 1e-6  # of the actions' range
# Float32 networks that sum in another order differ: by at most this many times the policy's own
# rounding error.
ROUNDINGS = 4.0
OBSERVATIONS = 1000  # that a file is compared on


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: AnyPath
    card: AnyPath
    """The model card: the file's name with .md after it."""
    format: str
    member: int
    updates: int
    algorithm: str
    """Of the member, with its setting, in words."""
    chosen_by: str | None
    """Where it was chosen as the best member: "return" or "fqe"."""
    max_difference: float
    """The largest difference from the policy's actions that was found, as a share of the actions'
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
        run, member, by, updates: as for load_policy.
        format: torchscript (one observation or a batch), onnx (a batch of any size) or safetensors
            (arrays; see policy_files).
        out: the file, local or in an object store; by default RUN/export/member-INDEX with the
            format's suffix, and member-INDEX-updates-N where `updates` is given.

    Raises:
        UserError: as load_policy; no such format, or its packages are not installed; the file
            cannot be written; its actions differ from the policy's, and then no file is left.
    """
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r}; they are {', '.join(FORMATS)}")
    policy = load_policy(run, member, by, updates)
    record = _until(load_run(any_path(run)), policy.updates)
    after = "" if updates is None else f"-updates-{policy.updates}"
    name = f"member-{policy.member}{after}{FORMATS[format][0]}"
    place = any_path(out) if str(out) else record.directory / "export" / name
    card, difference = _write(record, policy, format, place)
    entry = next(entry for entry in record.members if entry["member"] == policy.member)
    return Exported(
        path=place,
        card=card,
        format=format,
        member=policy.member,
        updates=policy.updates,
        algorithm=algorithm_name(record, entry),
        chosen_by=policy.chosen_by,
        max_difference=difference,
    )


def _write(
    record: RunRecord, policy: LoadedPolicy, format: str, place: AnyPath
) -> tuple[AnyPath, float]:
    """Write the file, checked, and its card: the card's place, and the actions' largest difference
    from the policy's.
    """
    arrays = policy_arrays(policy)
    data, act = FORMATS[format][1](arrays, _metadata(record, policy, arrays))
    observations, source = _observations(record, policy)
    difference = _check(policy, act, observations, format)
    card = place.parent / f"{place.name}.md"
    checked = f"on {len(observations):,} {source}, to {max(difference, 1e-9):.0e}"
    text = model_card(record, _describe(record, policy, arrays, format, place.name, checked))
    write_bytes(place, data)
    write_bytes(card, text.encode())
    return card, difference


def _describe(
    record: RunRecord, policy: LoadedPolicy, arrays: Arrays, format: str, file: str, checked: str
) -> ExportedPolicy:
    """What the model card needs to know of the file."""
    versions = {name: import_module(name).__version__ for name in REQUIRED[format]}
    return ExportedPolicy(
        file=file,
        format=format,
        member=policy.member,
        updates=policy.updates,
        chosen_by=policy.chosen_by,
        sizes=[arrays[f"{index}.weight"].shape[0] for index in range(num_layers(arrays))]
        + [len(arrays["action_low"])],
        layer_norm="0.norm_scale" in arrays,
        action_low=arrays["action_low"].tolist(),
        action_high=arrays["action_high"].tolist(),
        code=loading_code(format, file, arrays),
        layout=_layout(record),
        observation_names=policy.observation_names,
        action_names=policy.action_names,
        checked=f"{checked} of the actions' range",
        versions={"cqlray": version("cqlray"), **versions},
    )


def _until(record: RunRecord, updates: int) -> RunRecord:
    """The record as it was after so many updates, so that an earlier snapshot's card has that
    snapshot's test as its last.
    """
    evaluations = [
        row for row in record.evaluations if row["updates"] is None or row["updates"] <= updates
    ]
    return dataclasses.replace(record, evaluations=evaluations)


def _metadata(record: RunRecord, policy: LoadedPolicy, arrays: Arrays) -> str:
    """The file's metadata, as JSON: whose policy it is and how to compute an action."""
    layers = num_layers(arrays)
    norm = "layer normalisation (scale I.norm_scale, shift I.norm_shift, epsilon 1e-5), then " * (
        "0.norm_scale" in arrays
    )
    metadata = {
        "format": 1,
        "environment": record.config["env"]["id"],
        "member": policy.member,
        "updates": policy.updates,
        "dataset_digest": record.manifest.get("dataset_digest"),
        "observation": ["n", len(arrays["observation_mean"])],
        "action": ["n", len(arrays["action_low"])],
        "observation_names": policy.observation_names,
        "action_names": policy.action_names,
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
    return json.dumps(metadata, sort_keys=True)


def _observations(record: RunRecord, policy: LoadedPolicy) -> tuple[Array, str]:
    """Observations to compare actions on, [n, observation_dim] float32 with n at most OBSERVATIONS,
    and what they are in words.

    They are from the run's data where that still exists, else drawn from a normal distribution with
    the data's mean and standard deviation.
    """
    for directory in data_places(record):
        try:
            place = any_path(directory)
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
    """The largest difference between the file's actions and the policy's, as a share of their
    range.

    Raises:
        UserError: it is larger than TOLERANCE, and larger than rounding explains.
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
    """How the observations are flattened, as the run noted at its start; None where it did not."""
    found = record.manifest.get("observation_layout")
    return [str(line) for line in found] if isinstance(found, list) else None
