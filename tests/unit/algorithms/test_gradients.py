"""Each closed derivative against autograd's of its equation, found by name: `X_gradient`, or the
class `XGradient`, belongs to `X`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cqlray.algorithms import losses, tanh_gaussian
from cqlray.algorithms.shapes import shaped

DOUBLE = torch.float64
MEMBERS, CRITICS, BATCH, SAMPLES, ACTIONS = 3, 2, 7, 5, 2

# What has no derivative beside it, and why.
NOT_DIFFERENTIATED = {
    "per_member": "no equation",
    "log_one_minus_tanh_squared": "inside the log densities; policy_loss_gradient has it",
    "sample_tanh_gaussian": "policy_loss_gradient goes through it",
    "bellman_target": "a constant of the loss",
    "soft_value": "a constant of the loss",
    "max_backup_value": "a constant of the loss",
    "conservative_gap": "inside critic_loss",
    "mean_gap": "inside critic_loss",
    "conservative_loss": "inside critic_loss",
    "multiplier": "inside multiplier_loss",
    "lagrange_loss": "inside multiplier_loss, and tested with critic_loss's derivative",
}


def equations() -> dict[str, Callable[..., Any]]:
    """Everything public that the two pages define, classes in a function's spelling."""
    found = {}
    for page in (losses, tanh_gaussian):
        for name, value in vars(page).items():
            if getattr(value, "__module__", "") == page.__name__ and not name.startswith("_"):
                spelt = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
                assert spelt not in found
                found[spelt] = value
    return found


def draw(generator: torch.Generator) -> dict[str, Any]:
    """Arguments of every equation by name, in float64; members differ in all their numbers."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=DOUBLE) * 3.0 + 0.2

    m, n, b, s, a = MEMBERS, CRITICS, BATCH, SAMPLES, ACTIONS
    weight = positive(m)
    weight[1] = 0.0
    return {
        "output": 4.0 * normal(m, b, 2 * a),
        "log_std_min": -positive(m),
        "mean": normal(m, b, a),
        "log_std": 0.5 * normal(m, b, a),
        "noise": normal(m, b, a),
        "actions": torch.tanh(1.5 * normal(m, b, a)),
        "slope": normal(m, b, a),
        "q_data": normal(m, n, b),
        "q": 2.0 * normal(m, n, b, 1 + s),
        "target": normal(m, b),
        "data_returns": normal(m, b),
        "log_density_samples": normal(m, b, s),
        "log_density": normal(m, b),
        "weight": weight,
        "temperature": positive(m),
        "log_temperature": normal(m),
        "target_entropy": normal(m),
        "gap_mean": normal(m, n),
        # the last member's multiplier is beyond its bound
        "log_multiplier": torch.cat([normal(m - 1), torch.tensor([20.0], dtype=DOUBLE)]),
        "target_gap": normal(m),
        "clip": (-0.5 * positive(m), positive(m) + 1.0),
    }


def of(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Autograd's derivative of a sum."""
    return torch.autograd.grad(loss.sum(), leaves)


def followed(x: dict[str, Any], *names: str) -> list[Tensor]:
    return [x[name].requires_grad_() for name in names]


# Each gives pairs of autograd's derivative and the closed one, of arguments that `draw` gave.
Pairs = list[tuple[Sequence[Tensor], Sequence[Tensor]]]


def policy_distribution(x: dict[str, Any]) -> Pairs:
    (output,) = followed(x, "output")
    mean, log_std = tanh_gaussian.policy_distribution(output, x["log_std_min"])
    clamped = (log_std == x["log_std_min"][:, None, None]) | (log_std == 2.0)
    assert bool(clamped.any()) and not bool(clamped.all())
    expected = of(mean * x["slope"] + log_std * x["noise"], output)
    found = tanh_gaussian.policy_distribution_gradient(
        log_std.detach(), x["log_std_min"], x["slope"], x["noise"]
    )
    return [(expected, [found])]


def tanh_gaussian_log_density(x: dict[str, Any]) -> Pairs:
    mean, log_std = followed(x, "mean", "log_std")
    x["actions"][0, 0, 0] = 1.0  # on its bound
    log_density = tanh_gaussian.tanh_gaussian_log_density(mean, log_std, x["actions"])
    expected = of(log_density, mean, log_std)
    found = tanh_gaussian.tanh_gaussian_log_density_gradient(
        mean.detach(), log_std.detach(), x["actions"]
    )
    return [(expected, found)]


def lowest_value(x: dict[str, Any]) -> Pairs:
    (q,) = followed(x, "q_data")
    with torch.no_grad():
        q[0, 1, 0] = q[0, 0, 0]  # critics that are equally low
    lowest = losses.lowest_value(q)
    return [(of(lowest, q), [losses.lowest_value_gradient(q.detach(), lowest.detach())])]


def calibrated_values(x: dict[str, Any]) -> Pairs:
    (q,) = followed(x, "q")
    calibrated = losses.calibrated_values(q, x["data_returns"], 2)
    assert 0 < int((calibrated != q).sum()) < q[..., 2:].numel()
    of_calibrated = torch.cos(torch.arange(q.numel(), dtype=DOUBLE)).view(q.shape)
    found = losses.calibrated_values_gradient(q.detach(), calibrated.detach(), of_calibrated)
    return [(of(calibrated * of_calibrated, q), [found])]


def td_loss(x: dict[str, Any]) -> Pairs:
    (q,) = followed(x, "q_data")
    (expected,) = of(losses.td_loss(q, x["target"]), q)
    parts = [slice(0, BATCH), slice(2, 5)]
    return [
        (
            [expected[..., part]],
            [losses.td_loss_gradient(q.detach()[..., part], x["target"][:, part], BATCH)],
        )
        for part in parts
    ]


def critic_loss(x: dict[str, Any]) -> Pairs:
    """With and without clips, plain and in the Lagrange form; of all members and states, and of
    some.
    """
    (q,) = followed(x, "q")
    arguments = x["log_density_samples"], x["target"]
    pairs: Pairs = []
    for clip in (None, x["clip"]):
        gap = losses.conservative_gap(q[..., 1:], arguments[0], q[..., 0], x["temperature"])
        if clip is not None:
            inside = (gap > clip[0][:, None, None]) & (gap < clip[1][:, None, None])
            assert 0 < int(inside.sum()) < gap.numel()
        plain = losses.critic_loss(q, *arguments, x["weight"], x["temperature"], clip)
        multiplied = losses.td_loss(q[..., 0], x["target"]) + losses.lagrange_loss(
            losses.mean_gap(gap, clip), x["weight"], x["log_multiplier"], x["target_gap"]
        )
        for loss, weight in (
            (plain, x["weight"]),
            (multiplied, x["weight"] * losses.multiplier(x["log_multiplier"])),
        ):
            (expected,) = of(loss, q)
            closed = losses.CriticLossGradient(*arguments, weight, x["temperature"], clip)
            for members in (slice(0, MEMBERS), slice(1, 2)):
                for states in (slice(0, BATCH), slice(2, 5)):
                    part = members, slice(None), states
                    pairs.append(([expected[part]], [closed(q.detach()[part], members, states)]))
    return pairs


def multiplier_loss(x: dict[str, Any]) -> Pairs:
    (log_multiplier,) = followed(x, "log_multiplier")
    before, after = (x["gap_mean"], x["weight"]), (x["target_gap"],)
    expected = of(losses.multiplier_loss(*before, log_multiplier, *after), log_multiplier)
    found = losses.multiplier_loss_gradient(*before, log_multiplier.detach(), *after)
    assert found[-1] == 0.0, "beyond its bound"
    return [(expected, [found])]


def policy_loss(x: dict[str, Any]) -> Pairs:
    """Through sampled actions and their density, with values that are a function of the actions."""
    mean, log_std = followed(x, "mean", "log_std")
    actions, density = tanh_gaussian.sample_tanh_gaussian(mean, log_std, x["noise"])
    values = (x["slope"] * actions.square()).sum(-1)
    expected = of(losses.policy_loss(density, values, x["temperature"]), mean, log_std)
    drawn = actions.detach()
    of_values = 2.0 * x["slope"] * drawn
    found = losses.policy_loss_gradient(
        log_std.detach(), x["noise"], drawn, of_values, x["temperature"]
    )
    return [(expected, found)]


def temperature_loss(x: dict[str, Any]) -> Pairs:
    (log_temperature,) = followed(x, "log_temperature")
    rest = x["log_density"], x["target_entropy"]
    expected = of(losses.temperature_loss(log_temperature, *rest), log_temperature)
    return [(expected, [losses.temperature_loss_gradient(*rest)])]


CASES = {
    case.__name__: case
    for case in (
        policy_distribution,
        tanh_gaussian_log_density,
        lowest_value,
        calibrated_values,
        td_loss,
        critic_loss,
        multiplier_loss,
        policy_loss,
        temperature_loss,
    )
}


def test_every_equation_has_its_derivative_and_every_derivative_its_equation() -> None:
    names = set(equations())
    gradients = {name for name in names if name.endswith("_gradient")}
    pairs = {name.removesuffix("_gradient") for name in gradients}
    assert pairs <= names, f"derivatives of no equation: {pairs - names}"
    assert names - gradients - pairs == set(NOT_DIFFERENTIATED), "equations without a derivative"
    assert pairs == set(CASES), "pairs that no case here tests"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_the_closed_derivative_is_autograds(name: str, seed: int) -> None:
    for expected, found in CASES[name](draw(torch.Generator().manual_seed(seed))):
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype == DOUBLE
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)


def test_every_equation_asserts_its_shapes() -> None:
    without = {"per_member", "log_one_minus_tanh_squared", "calibrated_values_gradient"}
    # these three are elementwise; soft_value's and multiplier_loss's parts assert theirs
    for name, equation in equations().items():
        assert ("shaped(" in inspect.getsource(equation)) != (
            name in without | {"multiplier_loss"}
        ), name


def test_shapes_that_do_not_agree_are_named() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 4)
    assert shaped("MNB MB", a, b) and shaped("*B *1", a, b[:, :1]) and shaped("*B B", b, b[0])
    for letters, tensors in (("MNB NB", (a, b)), ("MB MB", (a, b)), ("MNB M1", (a, b))):
        with pytest.raises(AssertionError, match=r"expected .*, got \(2, 3, 4\) \(2, 4\)"):
            shaped(letters, *tensors)
    with pytest.raises(AssertionError, match=r"expected MNB MB, got \(2, 3, 4\) \(4, 2\)"):
        losses.td_loss(a, b.T)
