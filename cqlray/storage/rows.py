"""The types of the rows in a run's JSON-lines files."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = list[float] | Floats
"""A number for each episode: a list from the file, an array in a run's record. A number that was
not finite is null in the file (None in the list) and NaN in the array.
"""


class Metrics(TypedDict, total=False):
    """Metrics of an algorithm's updates, means over the updates since the previous row; null if not
    finite. Each algorithm has some of these.
    """

    td_loss: float | None
    policy_loss: float | None
    q_data: float | None
    q_target: float | None
    conservative_gap: float | None
    multiplier: float | None
    entropy: float | None
    temperature: float | None


class RoundReport(Metrics):
    """What the teacher reports of a round; steps and updates are those of all rounds so far."""

    environment_steps: int
    updates: int


class TeacherMetrics(RoundReport):
    """A line of metrics.jsonl: one round of the teacher."""

    stage: Literal["teacher"]
    round: int


class TeacherTest(TypedDict):
    """A test of the teacher, in its checkpoint and result."""

    round: int
    environment_steps: int
    updates: int
    mean_return: float


class StudentMetrics(Metrics):
    """A line of metrics.jsonl: one member up to one snapshot."""

    stage: Literal["students"]
    member: int
    updates: int


MetricsRow: TypeAlias = TeacherMetrics | StudentMetrics


class Played(TypedDict):
    """The result of one test in the environment."""

    returns: Numbers
    lengths: NotRequired[list[int]]
    """Steps of each episode; missing where the returns come from a dataset's description."""
    excesses: NotRequired[Numbers]
    """Estimated value of the first state minus the observed return, in rewards as trained on."""
    value: NotRequired[float | None]
    discounted_return: NotRequired[float | None]
    tail_value: NotRequired[float | None]
    tail_weight: NotRequired[float | None]
    seconds: NotRequired[float]


class StudentTest(Played):
    """A line of evaluations.jsonl: one member's snapshot."""

    policy: Literal["student"]
    member: int
    updates: int


class ReferenceTest(Played):
    """A line of evaluations.jsonl: the teacher or the random policy."""

    policy: Literal["teacher", "random"]
    member: None
    updates: None


EvaluationRow: TypeAlias = StudentTest | ReferenceTest


class BesideTheLog(TypedDict, total=False):
    """A snapshot's estimate held against what the logged policy earned from the same first states:
    discounted, in the environment's rewards. An error is a standard error over the episodes.
    """

    fqe_return_error: float | None
    log_return: float | None
    log_return_error: float | None
    log_return_fitted: float | None
    """What fitted Q evaluation estimates for the logged actions themselves."""
    log_tail_weight: float
    """Mean discount of what time limits cut off, which is estimated."""
    log_episodes: int
    gain_fits: list[float | None]
    """For each fit, the mean of the estimate minus the logged return."""
    gain_error: float | None


class FittedQRow(BesideTheLog):
    """A line of fqe.jsonl: one member's snapshot, judged from data alone."""

    member: int
    updates: int
    fqe_return: float | None
    """Mean of Q at the first states: the discounted return, in the environment's rewards."""
    fqe_value: NotRequired[float | None]
    """The same in rewards as trained on; None where it would depend on the episodes' lengths."""
    fqe_fits: NotRequired[list[float | None]]
    fqe_return_held_out: NotRequired[float | None]
    fqe_bellman_error: NotRequired[float | None]
    seconds: NotRequired[float]


ResultRow: TypeAlias = MetricsRow | EvaluationRow | FittedQRow


class Event(TypedDict):
    """A line of events.jsonl: what happened, when, and the details."""

    at: float
    """Unix seconds."""
    event: str
    """session, stage, busy, death, frozen or not shared."""
    what: NotRequired[str]
    host: NotRequired[str]
    stage: NotRequired[str]
    role: NotRequired[str]
    processes: NotRequired[int]
    busy_seconds: NotRequired[float]
    """Summed over the processes."""
    seconds: NotRequired[float]
    member: NotRequired[int]
    updates: NotRequired[int]


Swept: TypeAlias = dict[str, Any]
"""What a sweep chose for a member, by the option's name."""


class MemberEntry(TypedDict):
    """An entry of members.json."""

    member: int
    seed: int
    swept: Swept


class TeacherResult(TypedDict):
    """teacher.json."""

    best_round: int
    best_return: float | None
    tests: list[TeacherTest]


class Environment(TypedDict, total=False):
    """What a manifest or a dataset's description says of its environment."""

    id: str | None
    observation_dim: int
    action_dim: int
    action_low: list[float] | None
    action_high: list[float] | None
    max_episode_steps: int | None
    kwargs: dict[str, Any]


class PlannedRun(TypedDict, total=False):
    """A manifest's plan, as far as it is read again."""

    populations: list[list[int]]


class Manifest(TypedDict, total=False):
    """manifest.json, as far as it is read again."""

    id: str
    command: str
    created: str
    versions: dict[str, str]
    environment: Environment
    plan: PlannedRun
    stages: dict[str, float]
    frozen: dict[str, int]
    seconds: float
    dataset_only: bool
    finished: bool
    dataset_digest: str | None


class TierCounts(TypedDict):
    """A tier in a dataset's description."""

    episodes: int
    transitions: int
    mean_return: float | None


class ReturnsHistogram(TypedDict):
    """The histogram of a dataset's returns."""

    edges: list[float]
    counts: list[int]


class DatasetReturns(TypedDict):
    """A dataset's returns in its description."""

    mean: float | None
    quantiles: dict[str, float | None]
    histogram: ReturnsHistogram


class MissingRules(TypedDict):
    """What was done about missing values of a log; data/missing.py reads the rules."""

    rules: list[str]
    observation: list[str]  # the name of each number before indicators were added


class DatasetFacts(TypedDict, total=False):
    """What people are shown of dataset.json; data/dataset.py checks what loading needs."""

    environment: Environment
    tiers: dict[str, TierCounts]
    returns: DatasetReturns
    action_coverage: list[float] | None
    episodes: int
    transitions: int
    digest: str
    shards: list[dict[str, Any]]
    licence: str | None
    missing: MissingRules
    provenance: list[dict[str, Any]]
