"""bf16 products: close to float32's, float32 in all that is kept, and as deterministic."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cqlray.algorithms import forward_backward
from cqlray.algorithms.forward_backward import TILE_SIZE, differentiate, forward_pass
from cqlray.algorithms.networks import Shape, Stack
from cqlray.algorithms.population import Population
from cqlray.benchmarks.learner import WORKLOADS, Workload, make_population

CPU = torch.device("cpu")
BF16_ERROR = 0.1  # relative, after three layers and back; 8 bits of mantissa in each
SMALL = dataclasses.replace(
    WORKLOADS["P"].config, hidden_units=32, batch_size=32, num_action_samples=3
)


def stack_and_inputs(
    layer_norm: bool, dtype: torch.dtype | None, rows: int, width: int
) -> tuple[Stack, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = Shape((5, width, width, 2), layer_norm)
    flat = torch.stack([shape.initial(generator) for _ in range(3)])
    return Stack(shape, flat, dtype), torch.randn(3, rows, 5, generator=generator)


def outputs_and_gradients(stack: Stack, inputs: Tensor) -> list[Tensor]:
    taken = forward_pass(stack, inputs)
    assert torch.equal(taken.outputs, forward_backward.outputs(stack, inputs))
    of_outputs = 2.0 * taken.outputs  # of their squares' sum
    return [taken.outputs, taken.input_gradient(of_outputs), taken.gradient(of_outputs)]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bf16_products_are_near_float32s_and_come_back_as_float32(layer_norm: bool) -> None:
    exact, short = (
        outputs_and_gradients(*stack_and_inputs(layer_norm, d, 64, 48))
        for d in (None, torch.bfloat16)
    )
    for one, other in zip(exact, short, strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).norm() < BF16_ERROR * one.norm()


def test_each_pass_takes_the_fastest_way() -> None:
    wide, narrow = Shape((5, 256, 1)), Shape((5, 64, 1))
    rows = forward_backward.TILED_FROM // 256
    for shape, count, device, expected in (
        (wide, rows, "cpu", "TiledPass"),
        (wide, rows - 1, "cpu", "BatchedPass"),
        (narrow, rows, "cpu", "BatchedPass"),
        (wide, rows, "meta", "BatchedPass"),  # as on a GPU
        (dataclasses.replace(wide, layer_norm=True), rows, "cpu", "AutogradPass"),
    ):
        stack = Stack(shape, torch.empty(2, shape.num_parameters(), device=device))
        inputs = torch.empty(2, count, 5, device=device)
        assert forward_backward.way_for(stack, inputs).__name__ == expected


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 256])
def test_tiles_of_rows_are_the_whole(dtype: torch.dtype | None, width: int) -> None:
    """More rows than one tile holds, and not a multiple of it, against autograd in float64."""
    stack, inputs = stack_and_inputs(False, dtype, TILE_SIZE // width * 2 + 77, width)
    found = outputs_and_gradients(stack, inputs)
    double = Stack(stack.shape, stack.flat.double())
    x, (w0, b0, w1, b1, w2, b2) = inputs.double().requires_grad_(), double.parameters()
    output = torch.relu(torch.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2
    of_inputs, *of_parameters = torch.autograd.grad(
        output.square().sum(), [x, *double.parameters()]
    )
    tolerance = 1e-5 if dtype is None else BF16_ERROR
    for one, other in zip(
        [output.detach(), of_inputs, double.flatten(tuple(of_parameters))], found, strict=True
    ):
        assert (one - other).norm() < tolerance * one.norm()


@pytest.mark.parametrize("rows", [64, TILE_SIZE // 64 * 2 + 77])
def test_a_backward_pass_from_the_first_rows_alone(rows: int) -> None:
    """As if the other rows had no part in the loss, also where they are in other tiles."""
    stack, inputs = stack_and_inputs(False, None, rows, 64)
    taken = forward_pass(stack, inputs)
    for count in (rows // 3, rows // 2, rows):
        of_outputs = torch.zeros_like(taken.outputs)
        of_outputs[:, :count] = taken.outputs[:, :count]
        torch.testing.assert_close(
            taken.gradient(of_outputs[:, :count]), taken.gradient(of_outputs), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_tile_by_tile_is_all_forward_and_then_all_backward(
    layer_norm: bool, dtype: torch.dtype | None
) -> None:
    """Two members of three networks each; groups of 30 rows, the last tile smaller, no group
    parted.
    """
    width, group = 64, 30
    rows = TILE_SIZE // width // group * group * 2 + 4 * group
    generator = torch.Generator().manual_seed(0)
    shape = Shape((5, width, width, 2), layer_norm)
    stack = Stack(shape, torch.stack([shape.initial(generator) for _ in range(6)]), dtype)
    inputs = torch.randn(2, rows, 5, generator=generator)
    seen = []

    def derivative(network: int | None, part: slice, outputs: Tensor) -> Tensor:
        assert outputs.shape == (6 if network is None else 1, part.stop - part.start, 2)
        assert part.start % group == part.stop % group == 0
        seen.append((network, part.start))
        return 2.0 * outputs * torch.arange(part.start, part.stop).view(1, -1, 1)

    outputs, gradient = differentiate(stack, inputs, group, derivative)
    assert seen == (
        [(None, 0)]
        if layer_norm
        else [(e, r) for e in range(6) for r in (0, (rows - 120) // 2, rows - 120)]
    )
    double = Stack(shape, stack.flat.double())
    whole = forward_pass(double, inputs.double())
    expected = whole.outputs
    tolerance = 1e-5 if dtype is None else BF16_ERROR
    of_parameters = whole.gradient(2.0 * expected * torch.arange(rows).view(1, -1, 1))
    for one, other in ((expected, outputs), (of_parameters, gradient)):
        assert other.dtype == torch.float32
        assert (one - other).norm() < tolerance * one.norm()


def trained(precision: str, count: int) -> Population:
    population, gather = make_population(Workload(3, 1, SMALL), 2, CPU, precision)  # type: ignore[arg-type]
    population.advance(count, gather)
    return population


def test_updates_in_bf16_are_the_same_bits_each_time_and_near_float32s() -> None:
    exact, short, again = trained("float32", 20), trained("bf16", 20), trained("bf16", 20)
    start = trained("float32", 1).agent.critics.flat
    for name, tensor in short.agent.tensors().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, again.agent.tensors()[name]), name
    moved = (exact.agent.critics.flat - start).norm()
    assert 0 < (exact.agent.critics.flat - short.agent.critics.flat).norm() < 0.3 * moved


def test_tf32_is_float32_where_there_is_no_gpu() -> None:
    for one, other in zip(
        trained("float32", 3).agent.tensors().values(),
        trained("tf32", 3).agent.tensors().values(),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_the_graph_on_a_gpu_makes_the_same_updates() -> None:
    device = torch.device("cuda")
    graphed, gather = make_population(Workload(3, 1, SMALL), 2, device)
    plain, plain_gather = make_population(Workload(3, 1, SMALL), 2, device)
    graphed.advance(40, gather)
    for _ in range(40):
        plain.noise.prepare(plain.agent.updates)
        plain.on_device(plain_gather)
        plain.agent.updates += 1
    assert graphed.graphed is not None and graphed.graphed[1].graph is not None
    for one, other in zip(
        graphed.agent.tensors().values(), plain.agent.tensors().values(), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
