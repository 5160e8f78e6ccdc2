"""A run's policy beside its log: what it does in a seeded sample of the states that were logged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from cqlray import seeding
from cqlray.data.dataset import dataset_directory, read_description
from cqlray.data.episode import Shard
from cqlray.data.loading import iterate_shards
from cqlray.data.source import number_names
from cqlray.errors import UserError
from cqlray.results.policies import LoadedPolicy, load_policy
from cqlray.results.record import data_places
from cqlray.results.statistics.actions import Comparison, compare_actions
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.locations import any_path

STATES = 2_000
MOST_SHARDS = 4  # that are read for them, evenly spread
MOST_TRANSITIONS = 200_000  # of a shard that is read


@dataclass(frozen=True)
class Beside:
    """A member's newest judged policy beside the log."""

    member: int
    updates: int
    chosen_by: str | None
    observation_names: list[str]
    comparison: Comparison


def beside_the_log(run: RunRecord) -> Beside | None:
    """The best member's policy (the first member's where none is known to be best) beside the log;
    None where there is no snapshot yet, or the data is not at hand.

    No bucket is asked because a file on a disk names it.
    """
    try:
        policy = _policy(run)
        found = _sample(run)
        if found is None or policy is None:
            return None
        observations, actions, columns = found
        low, high = policy.scaling.low, policy.scaling.high
        if actions.shape[1:] != low.shape or not np.isfinite(actions).all():
            return None
        comparison = compare_actions(
            observations, actions, policy, low, high, number_names(columns, "action", len(low))
        )
    except (UserError, OSError, ValueError):
        return None
    names = number_names(columns, "observation", observations.shape[1])
    return Beside(policy.member, policy.updates, policy.chosen_by, names, comparison)


def as_json(run: RunRecord) -> dict[str, Any] | None:
    """What `--json` prints of it; None where it is not known."""
    found = beside_the_log(run)
    if found is None:
        return None
    dimensions = [
        {**dataclasses.asdict(one), "edges": one.edges.tolist(), "warnings": one.warnings}
        for one in found.comparison.dimensions
    ]
    furthest = [
        {
            "observation": dict(
                zip(found.observation_names, state.observation.tolist(), strict=True)
            ),
            "policy": state.policy.tolist(),
            "logged": state.logged.tolist(),
        }
        for state in found.comparison.furthest
    ]
    return {
        "member": found.member,
        "updates": found.updates,
        "states": found.comparison.states,
        "dimensions": dimensions,
        "furthest": furthest,
        "warnings": found.comparison.warnings,
    }


def _policy(run: RunRecord) -> LoadedPolicy | None:
    if not run.members:
        return None
    try:
        return load_policy(str(run.directory))
    except UserError:  # nothing was judged yet
        return load_policy(str(run.directory), run.members[0]["member"])


def _sample(run: RunRecord) -> tuple[Any, Any, dict[str, Any]] | None:
    """Observations [n, observation_dim] and the actions [n, A] logged there, and the data's columns
    by name.
    """
    for place in data_places(run):
        try:
            directory = dataset_directory(any_path(place))
            description = read_description(directory)
        except (UserError, OSError):
            continue
        entries = [
            entry
            for entry in description["shards"]
            if entry.get("transitions", 0) <= MOST_TRANSITIONS
        ]
        if not entries:
            continue
        chosen = np.unique(np.linspace(0, len(entries) - 1, MOST_SHARDS).astype(int))
        shards = {**description, "shards": [entries[index] for index in chosen]}
        generator = seeding.generator(run.config["seed"], "actions-beside-the-log")
        parts = [
            _of_shard(shard, generator, STATES // len(chosen))
            for shard in iterate_shards(directory, shards)
        ]
        observations, actions = (np.concatenate(part) for part in zip(*parts, strict=True))
        return observations, actions, description.get("columns") or {}
    return None


def _of_shard(shard: Shard, generator: np.random.Generator, count: int) -> tuple[Any, Any]:
    """A few of a shard's states, without replacement, and what was done there."""
    steps = generator.permutation(shard.num_transitions)[:count]
    episode_of = np.repeat(np.arange(shard.num_episodes), shard.lengths)
    # Every earlier episode has a final observation without an action.
    return shard.observations[steps + episode_of[steps]], shard.actions[steps]
