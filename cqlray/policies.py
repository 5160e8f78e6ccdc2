"""Policies of finished or running runs, for use outside cqlray: raw observations in, the environment's actions out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cqlray import checkpoint
from cqlray.algorithms.policy import Array, Policy
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.filesystem import AnyPath, Location, any_path
from cqlray.storage import RunDirectory


class LoadedPolicy:
    """A student's deterministic policy; normaliser and action scaling inside. Needs numpy alone."""

    def __init__(self, policy: Policy, scaling: ActionScaling, member: int, updates: int) -> None:
        self.policy, self.scaling, self.member, self.updates = policy, scaling, member, updates

    def __call__(self, observations: Any) -> Array:
        """[observation_dim] -> [A], or [E, observation_dim] -> [E, A]: actions in the environment's bounds, float32.

        Raises:
            ValueError: observations of another size.
        """
        array = np.asarray(observations, np.float32)
        expected = self.policy.arrays["policy.0.weight"].shape[1]
        if array.ndim not in (1, 2) or array.shape[-1] != expected:
            raise ValueError(f"observations have shape {array.shape}; they should be [{expected}] or [episodes, {expected}]")
        actions = self.scaling.to_environment(self.policy.act(np.atleast_2d(array)[None])[0])
        return actions[0] if array.ndim == 1 else actions


def last_snapshot(run: AnyPath, population: int) -> Location:
    """The newest snapshot of a population.

    Raises:
        UserError: there is none yet.
    """
    snapshots = list(Location.parse(run / "snapshots" / f"population-{population}").glob("*.safetensors"))
    if not snapshots:
        raise UserError(f"{run} has no snapshot of its students yet; go on with: cqlray resume {run}")
    return snapshots[-1]


def load_policy(run: str | Path, member: int | str = "best") -> LoadedPolicy:
    """The newest policy of one student of a run.

    Args:
        run: the run directory.
        member: its index, or "best": the highest mean return at its last test.
    Raises:
        UserError: not a run, no such member, no snapshot or (for "best") no test yet.
    """
    directory = RunDirectory.open(any_path(run))
    manifest = directory.manifest()
    populations: list[list[int]] = manifest.get("plan", {}).get("populations", [])
    index = _best_member(directory) if member == "best" else member
    for population, own in enumerate(populations):
        if index in own:
            path = last_snapshot(directory.path, population)
            arrays, metadata = checkpoint.decode(path.read_bytes(), str(path))
            environment = manifest["environment"]
            bounds = [np.array(environment[name], np.float32) for name in ("action_low", "action_high")]
            policy = Policy(arrays).member(own.index(int(index)))
            return LoadedPolicy(policy, ActionScaling(*bounds), int(index), metadata["updates"])
    count = sum(len(own) for own in populations)
    raise UserError(f"{run} has no member {member!r}; its members are 0 to {count - 1}, or 'best'")


def _best_member(directory: RunDirectory) -> int:
    newest: dict[int, dict[str, Any]] = {}
    for row in directory.rows("evaluations.jsonl"):
        if row["policy"] == "student" and row["updates"] >= newest.get(row["member"], row)["updates"]:
            newest[row["member"]] = row
    if not newest:
        raise UserError(f"{directory.path} has no test of its students yet; name a member by its index")
    return max(newest, key=lambda member: float(np.mean(newest[member]["returns"])))
