"""Every option of a run: frozen dataclasses, with the standard library alone.

The docstring below a field is its text on the help page. A field's bounds stand in its metadata
under pydantic's names (gt, ge, lt, le); `models` enforces them where a config comes from outside.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

INFINITY = float("inf")
Precision = Literal["float32", "tf32", "bf16"]
Baseline = Literal["bc", "sac"]
NO_ENVIRONMENT = "none"  # env.id of data that was logged without one
TIERS = ("replay", "random", "medium", "expert")


def _bounded(default: Any, **bounds: Any) -> Any:
    return field(default=default, metadata=bounds)


def _per_member(default: Any, **bounds: Any) -> Any:
    """A number of the update that each member of one population may have for itself."""
    return field(default=default, metadata={**bounds, "per_member": True})


@dataclass(frozen=True)
class EnvConfig:
    """The environment: any Gymnasium id with a one-dimensional Box of actions; observations are
    flattened to vectors.
    """

    id: str = "Pendulum-v1"
    """Gymnasium id; `package.module:Name-v0` imports the module that registers it; `none` for
    logged data without one.
    """
    max_episode_steps: int | None = _bounded(None, ge=1)
    """Time limit of an episode, in steps; by default the environment's own."""
    kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments for gymnasium.make."""


@dataclass(frozen=True)
class SACConfig:
    """What teacher and student share: Soft Actor-Critic (Haarnoja et al. 2018, arXiv
    1812.05905).
    """

    hidden_units: int = _bounded(256, ge=1)
    """Width of every hidden layer."""
    policy_layers: int = _bounded(2, ge=1)
    """Hidden layers of the policy."""
    critic_layers: int = _bounded(2, ge=1)
    """Hidden layers of each critic."""
    num_critics: int = _bounded(2, ge=1)
    """Critics in the ensemble; the target is their minimum."""
    layer_norm: bool = False
    """Layer normalisation before each activation of the critics."""
    batch_size: int = _bounded(256, ge=1)
    """Transitions in a batch."""
    discount: float = _per_member(0.99, ge=0.0, lt=1.0)
    """Discount factor, gamma."""
    target_update_rate: float = _per_member(0.005, gt=0.0, le=1.0)
    """Polyak's tau: how far the target critics move after every update."""
    policy_learning_rate: float = _per_member(3e-4, ge=0.0)
    """Adam's rate for the policy."""
    critic_learning_rate: float = _per_member(3e-4, ge=0.0)
    """Adam's rate for the critics."""
    temperature_learning_rate: float = _per_member(3e-4, ge=0.0)
    """Adam's rate for log temperature; 0 keeps the temperature as it starts."""
    initial_temperature: float = _per_member(0.1, gt=0.0)
    """SAC's alpha at the start."""
    target_entropy: float | None = _per_member(None)
    """Entropy that the temperature is tuned for, in nats; by default minus the number of action
    dimensions.
    """
    entropy_backup: bool = True
    """Subtract temperature * log pi(a'|s') in the target."""
    reward_scale: float = _per_member(1.0, gt=0.0)
    """Rewards are trained on as reward_scale * r + reward_shift."""
    reward_shift: float = _per_member(0.0)
    """See reward_scale."""
    gradient_clip: float = _per_member(INFINITY, gt=0.0)
    """Largest norm of a member's gradient, for its policy and for its critics."""
    log_std_min: float = _per_member(-5.0, lt=2.0)
    """Lower clamp of the policy's log standard deviation; the upper one is 2."""


@dataclass(frozen=True)
class TeacherConfig(SACConfig):
    """The teacher: SAC, trained online from episodes that the rollout workers bring in rounds."""

    batch_size: int = _bounded(128, ge=1)
    """Transitions in a batch."""
    rounds: int = _bounded(200, ge=1)
    """Rounds at most; each collects episodes and then makes updates."""
    episodes_per_round: int = _bounded(4, ge=1)
    """Episodes that the workers bring in one round."""
    updates_per_step: float = _bounded(1.0, gt=0.0)
    """Updates for each environment step that the round brought."""
    warmup_rounds: int = _bounded(1, ge=0)
    """First rounds, played with uniform actions."""
    pool_capacity: int = _bounded(1_000_000, ge=1)
    """Transitions that the first-in-first-out pool holds."""
    evaluation_interval: int = _bounded(10, ge=1)
    """Rounds between two tests; each test also keeps a snapshot."""
    evaluation_episodes: int = _bounded(20, ge=1)
    """Episodes in each test."""
    stop_return: float = INFINITY
    """Stop once `stop_tests` tests in a row have reached this mean return."""
    stop_tests: int = _bounded(1, ge=1)
    """See stop_return."""


@dataclass(frozen=True)
class CollectionConfig:
    """The dataset: which tiers, and how many episodes of each.

    replay is what the teacher saw last while it learnt; random acts uniformly; medium is the
    teacher's first snapshot past one third of the way from random to its best (D4RL's rule); expert
    is its best snapshot.
    """

    tiers: tuple[str, ...] = ("replay", "medium", "random")
    """Tiers to mix: replay, random, medium, expert."""
    episodes: tuple[int, ...] = _bounded((100,), min_length=1)
    """Episodes of each tier; one number stands for all."""
    episodes_per_shard: int = _bounded(10, ge=1)
    """Episodes that a rollout worker plays side by side in one call."""

    def episodes_by_tier(self) -> dict[str, int]:
        """Episodes of each tier, in the tiers' order."""
        counts = self.episodes * len(self.tiers) if len(self.episodes) == 1 else self.episodes
        return dict(zip(self.tiers, counts, strict=True))


@dataclass(frozen=True)
class CQLConfig(SACConfig):
    """The student: Conservative Q-Learning, CQL(H) of Kumar et al. 2020 (arXiv 2006.04779).

    Our name                 paper CORL                    d3rlpy              RLlib
    conservative_weight      alpha cql_alpha               conservative_weight min_q_weight
    num_action_samples       -     cql_n_actions           n_action_samples    num_actions
    conservative_temperature -     cql_temp                -                   temperature
    lagrange                 -     cql_lagrange            -                   lagrangian
    target_gap               tau   target_action_gap       alpha_threshold     lagrangian_thresh
    multiplier_learning_rate -     qf_lr                   alpha_learning_rate -
    initial_temperature      -     1.0                     initial_temperature initial_alpha
    target_update_rate       -     soft_target_update_rate tau                 tau
    entropy_backup           -     backup_entropy          soft_q_backup       deterministic_backup
    bc_warmup_updates        -     bc_steps                -                   bc_iters

    The Lagrange form multiplies conservative_weight * (gap - target_gap), as CORL and d3rlpy do;
    the authors' threshold is conservative_weight * target_gap.
    """

    entropy_backup: bool = False
    """Subtract temperature * log pi(a'|s') in the target."""
    num_updates: int = _bounded(100_000, ge=1)
    """Updates of each member."""
    conservative_weight: float = _per_member(5.0, ge=0.0)
    """The paper's alpha: weight of the conservative term; 0 is plain offline SAC."""
    num_action_samples: int = _bounded(10, ge=1)
    """K: uniform actions, actions from pi(.|s) and from pi(.|s'), K of each, in the conservative
    term.
    """
    conservative_temperature: float = _per_member(1.0, gt=0.0)
    """Temperature of the logsumexp."""
    lagrange: bool = False
    """Learn a multiplier that holds the gap at target_gap."""
    target_gap: float = _per_member(5.0)
    """The Lagrange form's threshold, tau."""
    initial_multiplier: float = _per_member(1.0, gt=0.0)
    """The Lagrange multiplier at the start."""
    multiplier_learning_rate: float = _per_member(3e-4, ge=0.0)
    """Adam's rate for the log multiplier."""
    difference_clip_min: float = _per_member(-INFINITY)
    """Lower clip of each state's gap, before the mean."""
    difference_clip_max: float = _per_member(INFINITY)
    """Upper clip of each state's gap, before the mean."""
    max_target_backup: bool = False
    """Back up the best of K next actions (of the critics' minimum) in place of one."""
    calibrated: bool = False
    """Cal-QL (arXiv 2303.05479): policy actions' values are not pushed below the data's return."""
    bc_warmup_updates: int = _per_member(0, ge=0)
    """First updates, in which the policy is trained by behaviour cloning."""
    observation_normalization: bool = True
    """Shift and scale observations by the dataset's mean and standard deviation."""


if TYPE_CHECKING:
    SweepConfig = Any
else:
    _SWEPT = {
        "int": tuple[int, ...],
        "float": tuple[float, ...],
        "bool": tuple[bool, ...],
        "float | None": tuple[float, ...],
    }
    SweepConfig = dataclasses.make_dataclass(
        "SweepConfig",
        [
            (f.name, _SWEPT[f.type], field(default=(), metadata={"item_bounds": f.metadata}))
            for f in dataclasses.fields(CQLConfig)
            if f.name != "num_updates"
        ],
        frozen=True,
        namespace={
            "__doc__": "Values of the student's options to try: lists multiply into members.",
            "__module__": __name__,
        },
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """Tests of the students while they learn: deterministic policy, the same episode seeds for
    every member.
    """

    interval: int = _bounded(5_000, ge=1)
    """Updates between two snapshots; each snapshot is tested, and so is the last update."""
    episodes: int = _bounded(20, ge=0)
    """Episodes for each member and snapshot; 0 tests nothing (no environment needed)."""
    fitted_q: bool | None = None
    """Judge each snapshot by fitted Q evaluation, from the data alone; by default where there is no
    environment.
    """
    bootstrap_samples: int = _bounded(2_000, ge=100)
    """Resamples for the intervals."""
    video: bool = False
    """Record an episode of the best member at the end, for the report (needs cqlray[video])."""


@dataclass(frozen=True)
class ResourcesConfig:
    """Who runs where. By default all that the cluster has is used."""

    rollout_workers: int | None = _bounded(None, ge=1)
    """Rollout workers; by default one per core, 64 at most."""
    evaluators: int | None = _bounded(None, ge=1)
    """Evaluators; by default one per learner, 16 at most."""
    learners: int | None = _bounded(None, ge=1)
    """Learners; by default one per GPU, or per core without a GPU; never more than members."""
    gpus: int | None = _bounded(None, ge=0)
    """GPUs for the learners; by default all."""
    data: Literal["auto", "memory", "disk"] = "auto"
    """Where learners have the data; auto: in memory, or on disk where it exceeds that."""
    scratch: str | None = None
    """Directory for data on disk; by default the run's, or the machine's temporary one."""
    call_timeout: float | None = _bounded(None, gt=0.0)
    """Seconds after which a process that does not answer is replaced; by default never."""
    threads_per_learner: int | None = _bounded(None, ge=1)
    """CPU threads of each learner, by default one; several pay on a quiet machine only."""


@dataclass(frozen=True)
class ColumnsConfig:
    """What the columns of a log are (Parquet, CSV or a data frame); names, or patterns such as
    'sensor_*'.
    """

    observation: tuple[str, ...] = ("observation*",)
    """Columns of an observation; patterns keep the file's order."""
    action: tuple[str, ...] = ("action*",)
    """Columns of an action."""
    reward: str = "reward"
    """Column of the reward, or an expression of columns."""
    episode: str = "episode"
    """Column that tells episodes apart; FILE+NAME where each file counts its own."""
    step: str | None = None
    """Column that counts or times an episode's steps; rows are sorted by it."""
    terminated: str | None = None
    """Column that is true where the environment itself ended the episode, such as the one of that
    name.
    """
    truncated: str | None = None
    """Column that is true where a time limit cut it; by default the one of that name, if any."""
    next_observation: tuple[str, ...] = ()
    """Columns of the observation after the row's action, where the log has them."""
    categorical: tuple[str, ...] = ()
    """Observations that are categories (one-hot)."""
    missing: tuple[str, ...] = ()
    """Missing values, as lab=forward:3 x=0 '*=split'."""
    action_low: tuple[float, ...] = ()
    """Lower bounds of the actions where nothing else says them; one number for all."""
    action_high: tuple[float, ...] = ()
    """Upper bounds."""


@dataclass(frozen=True)
class RunConfig:
    """One run: teacher, dataset, students, evaluation, report."""

    out: str | None = None
    """Run directory to make; by default runs/ENVIRONMENT-DATE-TIME."""
    seed: int = _bounded(0, ge=0)
    """Seed that every random stream of the run is derived from."""
    num_seeds: int = _bounded(4, ge=1)
    """Students with different seeds, for each setting of the sweep."""
    baselines: tuple[Baseline, ...] = ()
    """Trained beside CQL, with the same seeds and data: bc (behaviour cloning), sac (offline SAC:
    no conservative term).
    """
    non_finite: Literal["freeze", "fail"] = "freeze"
    """A student whose numbers are no longer finite: freeze it at its last good state, or fail the
    run.
    """
    precision: Precision = "tf32"
    """Matrix products of the students' networks; tf32 is float32 on a CPU, bf16 is for GPUs and
    CPUs with AMX.
    """
    dataset: str | None = None
    """Train on this: a dataset or run directory, minari:ID, a D4RL or Minari file, a log.

    There is no teacher then.
    """
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    cql: CQLConfig = field(default_factory=CQLConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries and lists, fit for YAML."""
    plain = dataclasses.asdict(config)

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: listed(v) for k, v in value.items()}
        return [listed(v) for v in value] if isinstance(value, tuple) else value

    result: dict[str, Any] = listed(plain)
    return result
