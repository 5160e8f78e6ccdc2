"""Policies of finished or running runs, for use outside cqlray: raw observations in, the environment's actions out."""

from __future__ import annotations

from collections.abc import Iterable
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

    def __init__(self, policy: Policy, scaling: ActionScaling, member: int, updates: int, chosen_by: str | None = None) -> None:
        """`chosen_by` is "return" or "fqe" where it was chosen as the best member."""
        self.policy, self.scaling, self.member, self.updates, self.chosen_by = policy, scaling, member, updates, chosen_by

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


def load_policy(run: str | Path, member: int | str = "best", by: str | None = None) -> LoadedPolicy:
    """The newest policy of one student of a run.

    Args:
        run: the run directory.
        member: its index, or "best": the highest of what `by` says, for its newest snapshot that has it.
        by: "return", the mean return of a test in the environment, or "fqe", what fitted Q evaluation estimates from the
            data alone; by default the return, and fitted Q where nothing was tested.
    Raises:
        UserError: not a run, no such member, no snapshot or (for "best") nothing to choose by yet.
    """
    if by not in (None, "return", "fqe"):
        raise UserError(f"by is {by!r}; it should be 'return' or 'fqe'")
    directory = RunDirectory.open(any_path(run))
    manifest = directory.manifest()
    populations: list[list[int]] = manifest.get("plan", {}).get("populations", [])
    index, chosen_by = _best_member(directory, by) if member == "best" else (member, None)
    for population, own in enumerate(populations):
        if index in own:
            path = last_snapshot(directory.path, population)
            arrays, metadata = checkpoint.decode(path.read_bytes(), str(path))
            environment = manifest["environment"]
            bounds = [np.array(environment[name], np.float32) for name in ("action_low", "action_high")]
            policy = Policy(arrays).member(own.index(int(index)))
            return LoadedPolicy(policy, ActionScaling(*bounds), int(index), metadata["updates"], chosen_by)
    count = sum(len(own) for own in populations)
    raise UserError(f"{run} has no member {member!r}; its members are 0 to {count - 1}, or 'best'")


def _best_member(directory: RunDirectory, by: str | None) -> tuple[int, str]:
    """The member, and what it was chosen by."""
    if by != "fqe":
        tests = (row for row in directory.rows("evaluations.jsonl") if row["policy"] == "student")
        means = {m: float(np.mean(row["returns"])) for m, row in _newest(tests).items() if None not in row["returns"]}
        if means:
            return max(means, key=lambda member: means[member]), "return"
    if by != "return":
        estimates = {m: row["fqe_return"] for m, row in _newest(directory.rows("fqe.jsonl")).items()}
        found = {member: value for member, value in estimates.items() if value is not None}
        if found:
            return max(found, key=lambda member: found[member]), "fqe"
    if by == "fqe":
        hint = f"make one: cqlray evaluate {directory.path} --fitted-q"
        raise UserError(f"{directory.path} has no fitted Q evaluation of its students yet; {hint}")
    raise UserError(f"{directory.path} has no test of its students yet; name a member by its index")


def _newest(rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Each member's row of the most updates; of equals the last."""
    newest: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["updates"] >= newest.get(row["member"], row)["updates"]:
            newest[row["member"]] = row
    return newest
