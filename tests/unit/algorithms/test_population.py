"""How updates are run many times: independence of members, positions of streams, checkpoints,
frozen members.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from cqlray.algorithms import agent as agents
from cqlray.algorithms import cql, sac
from cqlray.algorithms.agent import Adam, AgentState, Batch
from cqlray.algorithms.networks import Stack
from cqlray.algorithms.population import BLOCK, Gather, NoiseStream, Population
from cqlray.config.members import Member
from cqlray.config.schema import CQLConfig, SACConfig, TeacherConfig
from cqlray.data.episode import Episode, Shard
from cqlray.envs.scaling import ActionScaling
from cqlray.storage import checkpoint
from cqlray.workers.learner import Learner, LearnerSpec
from tests.unit.algorithms import helpers
from tests.unit.algorithms.helpers import ACTION_DIM, CPU, OBSERVATION_DIM, TINY

FAST = dataclasses.replace(
    TINY,
    hidden_units=8,
    batch_size=8,
    policy_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    lagrange=True,
)


def settings_of(member: int) -> CQLConfig:
    """A setting of its own for each member."""
    return dataclasses.replace(
        FAST,
        conservative_weight=0.5 + member,
        discount=0.9 + 0.01 * member,
        critic_learning_rate=1e-3 * (1 + member),
        initial_temperature=0.1 * (1 + member),
        reward_scale=1.0 + member,
        bc_warmup_updates=member,
        target_entropy=None if member % 2 else -1.5,
    )


def advanced(
    configs: Sequence[CQLConfig], seeds: Sequence[int], updates: Sequence[int]
) -> tuple[Population, list[dict[str, list[float]]]]:
    """A population after calls of advance with these numbers of updates, and their metrics."""
    population, scalars = helpers.fresh_population(configs, seeds)
    table = helpers.random_table(members=len(configs), dtype=torch.float32)
    gather = table.gather(scalars)
    return population, [population.advance(count, gather) for count in updates]


def states(population: Population) -> dict[str, Tensor]:
    return helpers.by_member(helpers.copy_tensors(population.agent), population.agent.num_members)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name


# -- members side by side --------------------------------------------------------------------------

ORDER = [5, 2, 7, 0, 3, 6, 1, 4]


@pytest.fixture(scope="module")
def eight() -> dict[str, Tensor]:
    return states(advanced([settings_of(m) for m in range(8)], list(range(100, 108)), [20])[0])


@pytest.mark.parametrize("member", range(8))
def test_a_member_alone_is_the_member_in_a_stack(eight: dict[str, Tensor], member: int) -> None:
    alone = states(advanced([settings_of(member)], [100 + member], [20])[0])
    for name, values in alone.items():
        torch.testing.assert_close(
            values[0], eight[name][member], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_another_order_of_members_permutes_the_results(eight: dict[str, Tensor]) -> None:
    permuted = states(advanced([settings_of(m) for m in ORDER], [100 + m for m in ORDER], [20])[0])
    for name, values in permuted.items():
        torch.testing.assert_close(values, eight[name][ORDER], rtol=1e-3, atol=2e-5)


def test_members_differ_and_equal_seeds_are_paired() -> None:
    population, _ = helpers.fresh_population(
        [settings_of(0), settings_of(1), settings_of(0)], [4, 4, 5]
    )
    networks = population.agent.policy.flat
    assert torch.equal(networks[0], networks[1]) and not torch.equal(networks[0], networks[2])
    for update in (0, BLOCK):
        noise, positions = population.noise.at(update)
        for values in [*noise.values(), positions]:
            assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


# -- the position of the streams -------------------------------------------------------------------


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_advance_is_the_sum_of_its_parts(parts: list[int]) -> None:
    configs = [settings_of(0), settings_of(1)]
    whole, [metrics] = advanced(configs, [1, 2], [sum(parts)])
    pieces, by_piece = advanced(configs, [1, 2], parts)
    assert whole.agent.updates == pieces.agent.updates == sum(parts)
    assert_equal(states(whole), states(pieces))
    for name, values in metrics.items():
        for member, value in enumerate(values):
            mean = sum(
                m[name][member] * count for m, count in zip(by_piece, parts, strict=True)
            ) / sum(parts)
            assert value == pytest.approx(mean, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "parts", [[4, 6], [BLOCK - 1, 2], [BLOCK, 1], [1, BLOCK], [2 * BLOCK + 3, 5]]
)
def test_advance_in_two_calls_is_one_call_to_the_bit(parts: list[int]) -> None:
    configs = [settings_of(0), settings_of(1)]
    assert_equal(
        states(advanced(configs, [1, 2], parts)[0]),
        states(advanced(configs, [1, 2], [sum(parts)])[0]),
    )


def test_noise_depends_on_seed_and_update_alone() -> None:
    shapes = cql.noise_shapes(FAST, ACTION_DIM)
    together = NoiseStream([11, 12], shapes, FAST.batch_size, CPU)
    alone = NoiseStream([12], shapes, FAST.batch_size, CPU)
    seen: list[Tensor] = []
    for update in (0, 70, 3, 31, 32, 0):  # forwards and back again
        noise, positions = together.at(update)
        other, other_positions = alone.at(update)
        for name, values in noise.items():
            assert torch.equal(values[1], other[name][0])
        assert torch.equal(positions[1], other_positions[0])
        seen.append(positions.clone())
    assert torch.equal(seen[0], seen[-1])
    assert all(not torch.equal(seen[0], other) for other in seen[1:-1])


@pytest.mark.parametrize("at", [5, BLOCK, 40])
def test_a_saved_population_goes_on_to_the_bit(at: int) -> None:
    configs = [settings_of(0), settings_of(1)]
    undisturbed, _ = advanced(configs, [1, 2], [at, 50 - at])
    saved, _ = advanced(configs, [1, 2], [at])
    data = checkpoint.encode(
        {n: t.numpy() for n, t in saved.agent.tensors().items()}, {"updates": saved.agent.updates}
    )
    arrays, metadata = checkpoint.decode(data, "test")
    resumed, scalars = helpers.fresh_population(configs, [1, 2])
    resumed.agent.policy.flat.add_(1.0)  # whatever it held before
    resumed.agent.load({n: torch.from_numpy(a) for n, a in arrays.items()}, metadata["updates"])
    resumed.advance(50 - at, helpers.random_table(members=2, dtype=torch.float32).gather(scalars))
    assert_equal(states(resumed), states(undisturbed))


def test_a_checkpoint_of_another_shape_is_refused_unharmed() -> None:
    population, _ = helpers.fresh_population([FAST], [1])
    other, _ = helpers.fresh_population([dataclasses.replace(FAST, hidden_units=9)], [1])
    before = states(population)
    with pytest.raises(ValueError, match="other networks"):
        population.agent.load(other.agent.tensors(), 3)
    assert_equal(states(population), before)
    assert population.agent.updates == 0


# -- batches ---------------------------------------------------------------------------------------


def test_gather_looks_up_what_the_positions_say() -> None:
    table = helpers.random_table(members=2)
    scalars = {
        "reward_scale": torch.tensor([2.0, 0.5]).double(),
        "reward_shift": torch.tensor([1.0, -3.0]).double(),
    }
    positions = torch.rand(
        (2, 400), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    positions[:, 0], positions[:, 1] = 0.0, math.nextafter(1.0, 0.0)
    batch = table.gather(scalars)(positions)
    for m in range(2):
        expected = helpers.reference_batch(table, positions[m].numpy(), m)
        expected["rewards"] = expected["rewards"] * float(scalars["reward_scale"][m]) + float(
            scalars["reward_shift"][m]
        )
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(batch, name)[m].numpy(), values, err_msg=name)
    seen = {tuple(action.tolist()) for action in batch.actions[0]}
    assert len(seen) == len(table.rows), (
        "every transition can be drawn, the first and the last included"
    )


def test_next_observations_never_cross_into_another_episode() -> None:
    table = helpers.random_table(transitions=20, members=1)
    numbered = dataclasses.replace(
        table, observations=torch.arange(24, dtype=torch.float64).unsqueeze(1)
    )
    scalars = {"reward_scale": torch.ones(1), "reward_shift": torch.zeros(1)}
    batch = numbered.gather(scalars)((torch.arange(20) / 20 + 0.01).unsqueeze(0).double())
    assert torch.equal(
        batch.next_observations - batch.observations, torch.ones(1, 20, 1, dtype=torch.float64)
    )
    # Episodes of five steps hold six rows each, so no transition starts at rows 5, 11, 17 and 23.
    assert not set(batch.observations.flatten().int().tolist()) & {5, 11, 17, 23}


# -- members that fail -----------------------------------------------------------------------------


def poisoned(gather: Gather, member: int, at: int, value: float) -> Gather:
    """Gives one member a bad reward in the batch of the `at`-th call from now."""
    calls = 0

    def batch(positions: Tensor) -> Batch:
        nonlocal calls
        found = gather(positions)
        if calls == at:
            found.rewards[member, 0] = value
        calls += 1
        return found

    return batch


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_bad_member_is_frozen_at_its_last_good_state(value: float) -> None:
    configs = [settings_of(m) for m in range(3)]
    good, scalars = helpers.fresh_population(configs, [1, 2, 3])
    bad, _ = helpers.fresh_population(configs, [1, 2, 3])
    gather = helpers.random_table(members=3, dtype=torch.float32).gather(scalars)
    good.advance(6, gather)
    bad.advance(6, gather)
    last_good = states(bad)
    good.advance(5, gather)
    bad.advance(5, poisoned(gather, 1, 2, value))
    good.advance(5, gather)
    bad.advance(5, gather)
    assert good.frozen == {} and bad.frozen == {1: 6}
    for name, values in states(bad).items():
        assert torch.equal(values[1], last_good[name][1]), name
        assert torch.equal(values[[0, 2]], states(good)[name][[0, 2]]), name
        assert bool(values.isfinite().all())


def test_a_diverging_learning_rate_freezes_its_member_alone() -> None:
    configs = [
        settings_of(0),
        dataclasses.replace(settings_of(1), critic_learning_rate=1e30),
        settings_of(2),
    ]
    population, _ = advanced(configs, [1, 2, 3], [10, 5])
    tame, _ = advanced([settings_of(m) for m in range(3)], [1, 2, 3], [10, 5])
    assert population.frozen == {1: 0} and tame.frozen == {}
    start, _ = helpers.fresh_population(configs, [1, 2, 3])
    for name, values in states(population).items():
        assert torch.equal(values[1], states(start)[name][1]), name
        assert torch.equal(values[[0, 2]], states(tame)[name][[0, 2]]), name


def test_a_non_finite_parameter_is_reported_and_does_not_spread() -> None:
    configs = [settings_of(m) for m in range(3)]
    population, scalars = helpers.fresh_population(configs, [1, 2, 3])
    population.agent.critics.flat.view(3, -1)[2, 7] = math.nan
    clean, _ = advanced(configs, [1, 2, 3], [8])
    metrics = population.advance(
        8, helpers.random_table(members=3, dtype=torch.float32).gather(scalars)
    )
    assert population.frozen == {2: 0}
    assert math.isnan(metrics["td_loss"][2]) and all(
        math.isfinite(v) for name in metrics for v in metrics[name][:2]
    )
    for name, values in states(population).items():
        assert torch.equal(values[:2], states(clean)[name][:2]), name


# -- no waiting for the device ---------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Counts the operations whose outcome the host would have to wait for, or that leave the
    device.
    """

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "is_nonzero",
        "equal.default",
        "item",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = str(func)
        if any(name.startswith(f"aten.{word}") for word in self.FORBIDDEN):
            self.found.append(name)
        if name.startswith(("aten._to_copy", "aten._pin_memory")) and "device" in (kwargs or {}):
            self.found.append(f"{name} to {(kwargs or {})['device']}")
        masks = args[1] if name.startswith(("aten.index.", "aten.index_put")) else ()
        if any(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks):
            self.found.append(f"{name} by a mask")
        if name.startswith("aten.lift_fresh"):
            self.found.append(
                f"{name}: a tensor made of host values is copied to the device at every update"
            )
        return func(*args, **(kwargs or {}))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every option": {
        "entropy_backup": True,
        "calibrated": True,
        "layer_norm": True,
        "lagrange": True,
        "gradient_clip": 1.0,
        "difference_clip_max": 5.0,
        "bc_warmup_updates": 1,
    },
    "max backup": {"max_target_backup": True},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_update_of_cql_never_waits_for_the_device(case: str) -> None:
    config = dataclasses.replace(TINY, **OPTIONS[case])
    population, scalars = helpers.fresh_population([config, config], [1, 2])
    gather, chosen = (
        helpers.random_table(dtype=torch.float32).gather(scalars),
        cql.PopulationConfig.of([config, config]),
    )
    for update in range(2):
        noise, positions = population.noise.at(update)
        with HostReads() as reads:
            cql.update(population.agent, gather(positions), noise, scalars, chosen)
        assert reads.found == []


def test_an_update_of_sac_never_waits_for_the_device() -> None:
    config = SACConfig(hidden_units=5, batch_size=4, gradient_clip=1.0, layer_norm=True)
    agent = helpers.random_agent([config])
    scalars, noise, batch = (
        helpers.double_scalars([config]),
        helpers.random_noise(config, 1, 0),
        helpers.batch_of(config, 1),
    )
    with HostReads() as reads:
        sac.update(agent, batch, noise, scalars, config)
    assert reads.found == []


@pytest.mark.parametrize("case", OPTIONS)
def test_an_update_recorded_once_goes_on_when_replayed(case: str) -> None:
    """What a CUDA graph needs: the recorded operations, replayed, make every further update, to the
    bit.

    The recording is made by torch's tracer on the CPU, which keeps each tensor that an update
    touches, as a CUDA graph does, and bakes in every number that Python computed: one that changes
    between updates would show.
    """
    config = dataclasses.replace(FAST, **{**OPTIONS[case], "bc_warmup_updates": 3})
    (recorded, scalars), (plain, _) = (
        helpers.fresh_population([config, config], [1, 2]) for _ in range(2)
    )
    gather = helpers.random_table(dtype=torch.float32).gather(scalars)
    for population in (recorded, plain):
        population.advance(1, gather)

    def one_update(start: Tensor) -> Tensor:
        recorded.on_device(gather)
        return start

    before = {name: tensor.clone() for name, tensor in recorded.agent.tensors().items()}
    replay = make_fx(one_update)(torch.zeros(()))
    recorded.agent.load(before, 1)  # the tracer computes while it records
    for update in range(1, BLOCK + 5):
        recorded.noise.prepare(update)
        with torch.no_grad():
            replay(torch.zeros(()))
    plain.advance(BLOCK + 4, gather)
    for name, tensor in plain.agent.tensors().items():
        assert torch.equal(recorded.agent.tensors()[name], tensor), name
    assert recorded.agent.step == plain.agent.step == plain.agent.updates == BLOCK + 5


def test_advance_reads_once_for_a_call_and_not_for_an_update() -> None:
    population, scalars = helpers.fresh_population([FAST, FAST], [1, 2])
    gather = helpers.random_table(dtype=torch.float32).gather(scalars)
    population.advance(1, gather)
    found = []
    for count in (2, 20):
        with HostReads() as reads:
            population.advance(count, gather)
        found.append(reads.found)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.sum() > 0),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.to("meta"),
        lambda t: torch.tensor(1.0) * t,
        lambda t: float(t.max()),
    ],
)
def test_the_check_above_notices(read: Callable[[Tensor], Any]) -> None:
    with HostReads() as reads:
        read(torch.ones(3))
    assert reads.found


@pytest.mark.parametrize(
    "reads", [lambda t: t.sum().item(), lambda t: t.cpu(), lambda t: t.tolist(), lambda t: t[t > 0]]
)
def test_the_check_below_notices(reads: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        reads(torch.ones(3, device="meta"))


def on_meta(agent: AgentState) -> AgentState:
    """The agent on torch's device without values: whatever would read one fails."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(agent):
        value = getattr(agent, field.name)
        if isinstance(value, Stack):
            moved[field.name] = Stack(value.shape, value.flat.to("meta"))
        elif isinstance(value, Adam):
            moved[field.name] = Adam(value.first.to("meta"), value.second.to("meta"))
        elif isinstance(value, Tensor):
            moved[field.name] = value.to("meta")
    return dataclasses.replace(agent, **moved)


@pytest.mark.parametrize("case", [*OPTIONS, "sac"])
def test_an_update_runs_on_a_device_without_values(case: str) -> None:
    config: Any = (
        SACConfig(hidden_units=5, batch_size=4)
        if case == "sac"
        else dataclasses.replace(TINY, **OPTIONS[case])
    )
    agent = on_meta(helpers.random_agent([config, config]))
    scalars = {n: t.to("meta") for n, t in helpers.double_scalars([config, config]).items()}
    noise = {n: t.to("meta") for n, t in helpers.random_noise(config, 2, 0).items()}
    batch = Batch(*[None if t is None else t.to("meta") for t in helpers.batch_of(config, 2)])  # type: ignore[arg-type]
    if case == "sac":
        metrics = sac.update(agent, batch, noise, scalars, config)
    else:
        metrics = cql.update(
            agent, batch, noise, scalars, cql.PopulationConfig.of([config, config])
        )
    assert {tuple(value.shape) for value in metrics.values()} == {(2,)}
    assert all(value.device.type == "meta" for value in metrics.values())


# -- metrics ---------------------------------------------------------------------------------------

SAC_METRICS = {"td_loss", "policy_loss", "q_data", "entropy", "temperature"}


def test_names_and_values_of_the_metrics() -> None:
    _, [metrics] = advanced([settings_of(0), settings_of(1)], [1, 2], [1])
    assert set(metrics) == SAC_METRICS | {"conservative_gap", "q_target", "multiplier"}
    assert metrics["temperature"] == pytest.approx([0.1, 0.2])
    assert metrics["multiplier"] == pytest.approx([1.0, 1.0])
    config = TeacherConfig(hidden_units=5, batch_size=4)
    agent = helpers.random_agent([config])
    batch, noise = helpers.batch_of(config, 1), helpers.random_noise(config, 1, 0)
    assert (
        set(sac.update(agent, batch, noise, helpers.double_scalars([config]), config))
        == SAC_METRICS
    )


# -- no option is dead -----------------------------------------------------------------------------

PER_MEMBER: dict[str, Any] = {  # another value of each number that members have for themselves
    "discount": 0.5,
    "target_update_rate": 0.5,
    "policy_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-2,
    "initial_temperature": 0.7,
    "target_entropy": 3.0,
    "reward_scale": 3.0,
    "reward_shift": 2.0,
    "gradient_clip": 1e-3,
    "log_std_min": 0.5,
    "conservative_weight": 0.0,
    "conservative_temperature": 0.5,
    "target_gap": -4.0,
    "initial_multiplier": 3.0,
    "multiplier_learning_rate": 0.1,
    "difference_clip_min": 50.0,
    "difference_clip_max": -50.0,
    "bc_warmup_updates": 2,
}
STRUCTURAL: dict[str, Any] = {
    "hidden_units": 9,
    "policy_layers": 2,
    "critic_layers": 1,
    "num_critics": 3,
    "layer_norm": True,
    "batch_size": 9,
    "entropy_backup": True,
    "num_action_samples": 3,
    "lagrange": False,
    "max_target_backup": True,
    "calibrated": True,
    "observation_normalization": False,
}


def small_shard() -> Shard:
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return generator.normal(1.0, 2.0, shape).astype(np.float32)

    ends = np.arange(6) == 5
    return Shard.of(
        [
            Episode(
                normal(7, 3),
                np.tanh(normal(6, 2)),
                normal(6) * 3.0,
                ends & (e % 2 == 0),
                ends & (e % 2 == 1),
            )
            for e in range(8)
        ],
        "replay",
    )


def learnt(*configs: CQLConfig) -> dict[str, Any]:
    """What a whole Learner of these members, all of one seed, holds after three updates."""
    members = [Member(index, 0, config, {}) for index, config in enumerate(configs)]
    scaling = ActionScaling(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
    learner = Learner(LearnerSpec(members, 0, scaling, 3, "cpu", 1, "float32"), None, small_shard())
    report = learner.advance(60.0, True)
    assert report.updates == 3 and report.frozen == {} and report.saved is not None
    return checkpoint.decode(report.saved, "test")[0]


BASE = dataclasses.replace(FAST, num_updates=3)
FIELDS = {f.name: f for f in dataclasses.fields(CQLConfig)}


def test_the_two_tables_name_every_option() -> None:
    assert set(PER_MEMBER) == {
        name for name, field in FIELDS.items() if "per_member" in field.metadata
    }
    assert set(STRUCTURAL) | {"num_updates"} == set(FIELDS) - set(PER_MEMBER)


@pytest.mark.parametrize("name", PER_MEMBER)
def test_every_number_of_a_member_changes_its_update_and_nobody_elses(name: str) -> None:
    changed = dataclasses.replace(BASE, **{name: PER_MEMBER[name]})
    arrays, alone = learnt(BASE, changed, BASE), learnt(BASE, BASE, BASE)
    differs = set()
    for key, array in arrays.items():
        rows, others = array.reshape(3, -1), alone[key].reshape(3, -1)
        np.testing.assert_allclose(rows[[0, 2]], others[[0, 2]], rtol=1e-4, atol=1e-6, err_msg=key)
        if not np.allclose(rows[1], others[1], rtol=1e-3, atol=1e-7):
            differs.add(key)
    assert differs, f"{name} has no effect"


@pytest.mark.parametrize("name", STRUCTURAL)
def test_every_structural_option_changes_the_update(name: str) -> None:
    arrays, others = learnt(BASE), learnt(dataclasses.replace(BASE, **{name: STRUCTURAL[name]}))
    if all(arrays[key].shape == others[key].shape for key in arrays):
        assert any(
            not np.allclose(arrays[key], others[key], rtol=1e-3, atol=1e-7) for key in arrays
        ), f"{name} has no effect"


def test_target_entropy_defaults_to_minus_the_action_dimensions() -> None:
    given_one = dataclasses.replace(BASE, target_entropy=-2.0)
    arrays = learnt(BASE, given_one)
    for key, array in arrays.items():
        np.testing.assert_allclose(*array.reshape(2, -1), rtol=1e-4, atol=1e-7, err_msg=key)
    scalars = agents.member_scalars([BASE, given_one], 5, CPU)
    assert scalars["target_entropy"].tolist() == [-5.0, -2.0]


def test_calibration_needs_returns_in_trained_units() -> None:
    """Cal-QL's returns are each member's own: of its discount, reward scale and shift."""
    calibrated = dataclasses.replace(BASE, calibrated=True)
    shifted = dataclasses.replace(calibrated, reward_scale=0.5, reward_shift=1.0, discount=0.5)
    scaling = ActionScaling(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
    members = [Member(0, 0, calibrated, {}), Member(1, 0, shifted, {})]
    learner = Learner(LearnerSpec(members, 0, scaling, 3, "cpu", 1, "float32"), None, small_shard())
    steps = small_shard().num_transitions
    positions = ((torch.arange(steps) + 0.5) / steps).double().expand(2, steps)
    returns = learner.gather(positions).data_returns
    assert returns is not None
    for m, config in enumerate((calibrated, shifted)):
        expected: list[float] = []
        for episode in small_shard().episodes():
            rewards = [
                config.reward_scale * float(r) + config.reward_shift for r in episode.rewards
            ]
            expected += [
                sum(r * config.discount**k for k, r in enumerate(rewards[t:]))
                for t in range(len(rewards))
            ]
        np.testing.assert_allclose(returns[m].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_observation_dim_of_helpers_is_that_of_the_shard() -> None:
    assert (
        small_shard().observations.shape[1] == OBSERVATION_DIM
        and small_shard().actions.shape[1] == ACTION_DIM
    )
