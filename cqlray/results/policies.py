"""Load a student's policy from a run, finished or not, for use outside cqlray: it takes raw
observations and gives actions in the environment's bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cqlray.algorithms.policy import Array, Arrays, Policy
from cqlray.data.dataset import DESCRIPTION, are_columns
from cqlray.data.missing import ObservationFill
from cqlray.data.source import number_names
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.storage import checkpoint
from cqlray.storage.locations import Location, any_path
from cqlray.storage.outside import read_file, read_json
from cqlray.storage.row_index import is_of_student
from cqlray.storage.row_types import require
from cqlray.storage.rows import DatasetFacts, MemberEntry, Swept
from cqlray.storage.run_directory import DATASET, EVALUATIONS, FITTED_Q, MEMBERS, RunDirectory

MOST_LISTED = 24  # update counts in a message

Row = dict[str, Any]
Columns = Mapping[str, str | Sequence[str]]


class LoadedPolicy:
    """A student's deterministic policy, with its observation normaliser and action scaling. Needs
    only numpy.
    """

    def __init__(
        self,
        policy: Policy,
        scaling: ActionScaling,
        member: int,
        updates: int,
        chosen_by: str | None = None,
        swept: Swept | None = None,
        fill: ObservationFill | None = None,
        columns: Columns | None = None,
    ) -> None:
        """`chosen_by` is "return" or "fqe" where it was chosen as the best member; `swept` is what
        the sweep chose for it; `fill` does with missing values what was done in the data; `columns`
        has the names of its observations and actions.
        """
        self.fill = fill
        sizes = {"observation": self._size(policy), "action": len(scaling.low)}
        self.observation_names, self.action_names = (
            number_names(columns or {}, option, size) for option, size in sizes.items()
        )
        self.swept = dict(swept or {})
        self.algorithm = str(self.swept.pop("algorithm", "cql"))  # cql, sac or bc
        self.policy, self.scaling = policy, scaling
        self.member, self.updates, self.chosen_by = member, updates, chosen_by

    def __repr__(self) -> str:
        setting = "".join(f", {name} {value}" for name, value in self.swept.items())
        chosen = f", the best by {self.chosen_by}" if self.chosen_by else ""
        return (
            f"<policy of member {self.member}{chosen}: {self.algorithm}{setting}, after"
            f" {self.updates:,} updates>"
        )

    def reset(self) -> None:
        """Begin an episode, which matters where missing values hold the one before."""
        if self.fill is not None:
            self.fill.reset()

    def __call__(self, observations: Any) -> Array:
        """[observation_dim] -> [A], or [E, observation_dim] -> [E, A]: actions in the environment's
        bounds, float32.

        Where the data's missing values were filled, a single observation is filled likewise, NaN
        standing for a missing value: call it step after step, and `reset` between episodes. It may
        be without the indicators. Several at once must be filled already.

        Raises:
            ValueError: observations that are not flat, of another size, or with a value that is
                missing or not finite.
        """
        array = _as_array(observations)
        if self.fill is not None and array.shape == (len(self.fill.names),):
            array = self.fill(array)
        expected = self._size(self.policy)
        if array.ndim not in (1, 2) or array.shape[-1] != expected:
            raise ValueError(
                f"observations have shape {array.shape}; they should be [{expected}] or [episodes,"
                f" {expected}]"
            )
        if not np.isfinite(array).all():
            where = sorted({int(index) for index in np.argwhere(~np.isfinite(array))[:, -1]})
            raise ValueError(
                f"observations have values that are missing or not finite, in dimensions {where};"
                " an action for them would mean nothing"
            )
        actions = self.scaling.to_environment(self.policy.act(np.atleast_2d(array)[None])[0])
        return actions[0] if array.ndim == 1 else actions

    @staticmethod
    def _size(policy: Policy) -> int:
        return int(policy.arrays["policy.0.weight"].shape[1])


def _as_array(observations: Any) -> Array:
    """Raises ValueError for what is not an array of numbers, such as a dictionary."""
    try:
        return np.asarray(observations, np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f"observations are a {type(observations).__name__} that is no array of numbers; flatten"
            " each as in training: gymnasium.spaces.flatten(env.observation_space, observation),"
            " or wrap the environment in gymnasium.wrappers.FlattenObservation"
        ) from None


def load_policy(
    run: str | Path, member: int | str = "best", by: str | None = None, updates: int | None = None
) -> LoadedPolicy:
    """Load the policy of one student of a run from one of its snapshots.

    Args:
        run: the run directory.
        member: its index, or "best": the member whose newest judged snapshot scores highest.
        by: how "best" judges: "return", by the mean return of a test in the environment, or "fqe",
            by what fitted Q evaluation estimates from the data alone. By default the return, and
            fitted Q evaluation where nothing was tested.
        updates: the snapshot after this many updates; by default the newest, and for "best" the
            one that was judged. With "best", members are compared after this many updates.

    Raises:
        UserError: not a run, no such member, no such snapshot, or (for "best") nothing to choose by
            yet.
    """
    if by not in (None, "return", "fqe"):
        raise UserError(f"by is {by!r}; it should be 'return' or 'fqe'")
    directory = RunDirectory.open(any_path(run))
    index, chosen_by = member, None
    if member == "best":
        row, chosen_by = _best_row(directory, by, updates)
        # A run under way may have newer snapshots than this one, not judged yet.
        index, updates = row["member"], row["updates"]
    manifest = directory.manifest()
    populations: list[list[int]] = manifest.get("plan", {}).get("populations", [])
    for population, members in enumerate(populations):
        if index in members:
            path = _snapshot(directory, population, int(index), updates)
            arrays, metadata = _decoded(path)
            scaling = _action_scaling(directory, manifest)
            policy = _policy(arrays, members.index(int(index)), len(scaling.low), path)
            after = metadata.get("updates", int(path.stem))
            swept = _swept(directory, int(index))
            fill, columns = _fill(directory), _columns(directory, manifest)
            return LoadedPolicy(policy, scaling, int(index), after, chosen_by, swept, fill, columns)
    count = sum(map(len, populations))
    raise UserError(f"{run} has no member {member!r}; its members are 0 to {count - 1}, or 'best'")


def _columns(directory: RunDirectory, manifest: dict[str, Any]) -> Columns:
    """The names of the numbers: the data's columns, else the keys of the environment's dictionary
    as the run noted them.
    """
    noted = {"observation": manifest.get("observation_names") or []}
    description: Any = {}
    if directory.has(f"{DATASET}/{DESCRIPTION}"):
        description = read_json(directory / DATASET / DESCRIPTION)
    of_data = description.get("columns") if isinstance(description, dict) else None
    return next((found for found in (of_data, noted) if found and are_columns(found)), {})


def _decoded(path: Location) -> tuple[Arrays, dict[str, Any]]:
    """A snapshot's arrays and metadata. Raises UserError: it is damaged, or a link to nothing."""
    try:
        return checkpoint.decode(read_file(path), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: a link to a file that is not there") from None


def _swept(directory: RunDirectory, member: int) -> Swept:
    """What the sweep chose for a member; nothing where the run has no list of its members."""
    try:
        path = directory / MEMBERS
        entries = require(read_json(path), list[MemberEntry], str(path))
    except FileNotFoundError:
        return {}
    return next((entry["swept"] for entry in entries if entry["member"] == member), {})


def _fill(directory: RunDirectory) -> ObservationFill | None:
    """What is to be done with missing values, where the run's data says so."""
    try:
        path = directory / DATASET / DESCRIPTION
        missing = require(read_json(path), DatasetFacts, str(path)).get("missing")
    except FileNotFoundError:
        return None
    return None if missing is None else ObservationFill(missing)


def _policy(arrays: Arrays, place: int, actions: int, path: Location) -> Policy:
    """A member's policy.

    Raises:
        UserError: the snapshot's arrays are not those of a policy of so many actions.
    """
    try:
        policy = Policy(arrays).member(place)
        observations = np.zeros((1, 1, arrays["policy.0.weight"].shape[1]), np.float32)
        sound = policy.act(observations).shape == (1, 1, actions)
    except (KeyError, IndexError, ValueError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path}: its arrays are not those of policies of {actions} actions; the file is"
            " damaged or of another run"
        )
    return policy


def _action_scaling(directory: RunDirectory, manifest: dict[str, Any]) -> ActionScaling:
    """From [-1, 1] to the bounds of the environment that the manifest describes."""
    environment = manifest.get("environment", {})
    if environment.get("action_low") is None or environment.get("action_high") is None:
        raise UserError(f"{directory.path}: its manifest has no bounds of the actions")
    low, high = (np.array(environment[name], np.float32) for name in ("action_low", "action_high"))
    if low.ndim != 1 or low.shape != high.shape:
        raise UserError(f"{directory.path}: its manifest's bounds of the actions differ in length")
    return ActionScaling(low, high)


def _snapshot(
    directory: RunDirectory, population: int, member: int, updates: int | None
) -> Location:
    """The member's snapshot after this many updates, or its newest.

    Raises UserError where there is none.
    """
    if updates is None:
        return directory.last_snapshot(population)[1]
    found = directory.snapshots(population)
    if not found:
        raise directory.no_snapshots()
    if updates not in found:
        raise UserError(
            f"{directory.path} has no snapshot of member {member} after {updates:,} updates; it has"
            f" those after {_listed(found)}"
        )
    return found[updates]


def _best_row(directory: RunDirectory, by: str | None, updates: int | None) -> tuple[Row, str]:
    """The row that makes a member the best, and what it was chosen by. With `updates`, only rows
    after that many updates are compared.

    Raises:
        UserError: there is nothing to choose by.
    """
    judged: set[int] = set()
    for way in _SCORES if by is None else (by,):
        file, score = _SCORES[way]
        newest = newest_rows(
            row for row in _of_students(directory, file) if updates in (None, row["updates"])
        )
        scores = {
            member: found for member, row in newest.items() if (found := score(row)) is not None
        }
        if scores:
            return newest[max(scores, key=lambda member: scores[member])], way
        judged |= {
            row["updates"] for row in _of_students(directory, file) if score(row) is not None
        }
    raise _nothing_to_choose_by(directory, by, updates, judged)


def _of_students(directory: RunDirectory, file: str) -> Iterator[Row]:
    return filter(is_of_student, directory.each_row(file))


def _nothing_to_choose_by(
    directory: RunDirectory, by: str | None, updates: int | None, judged: set[int]
) -> UserError:
    """Says what is missing, and what there is instead; `judged` are the update counts at which
    something was judged.
    """
    if judged and updates is not None:
        ways = {"return": "test", "fqe": "fitted Q evaluation"}.get(
            by or "", "test or fitted Q evaluation"
        )
        return UserError(
            f"{directory.path} has no {ways} of its students after {updates:,} updates, but after"
            f" {_listed(judged)}"
        )
    if by == "fqe":
        hint = f"make one: cqlray evaluate {directory.path} --fitted-q"
        return UserError(f"{directory.path} has no fitted Q evaluation of its students yet; {hint}")
    file, score = _SCORES["fqe"]
    if by == "return" and any(score(row) is not None for row in directory.each_row(file)):
        return UserError(
            f"{directory.path} has no test of its students, but fitted Q evaluation of them: choose"
            " by 'fqe'"
        )
    return UserError(
        f"{directory.path} has no test of its students yet; name a member by its index"
    )


def _mean_return(row: Row) -> float | None:
    return None if None in row["returns"] else float(np.mean(row["returns"]))


# What the best policy can be chosen by, in order of preference: the file, and the score of one of
# its rows, None where that is not finite.
_SCORES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "return": (EVALUATIONS, _mean_return),
    "fqe": (FITTED_Q, lambda row: row["fqe_return"]),
}


def newest_rows(rows: Iterable[Row]) -> dict[int, Row]:
    """Each member's row with the most updates; of several such rows the last."""
    newest: dict[int, Row] = {}
    for row in rows:
        if row["updates"] >= newest.get(row["member"], row)["updates"]:
            newest[row["member"]] = row
    return newest


def _listed(counts: Iterable[int]) -> str:
    """Update counts on one line; where there are more than MOST_LISTED, the first and the last
    three.
    """
    words = [f"{count:,}" for count in sorted(counts)]
    if len(words) > MOST_LISTED:
        words[3:-3] = ["..."]
    return ", ".join(words)
