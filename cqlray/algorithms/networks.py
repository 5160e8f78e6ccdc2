"""Policy and critics of all members in one set of tensors.

A `Stack` is E multilayer perceptrons of one shape, their parameters in one flat tensor [E, P]: the optimiser and Polyak
averaging are a few operations on that tensor, while `layers` holds the views that a forward pass multiplies by,
[E, in, out] and [E, 1, out]. The policy's stack has E = M members, the critics' E = M * N, a member's critics together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cqlray.config import Precision

# From a piece's network, or None for all, its rows, and their outputs, to the derivative of the loss by these.
Derivative: TypeAlias = Callable[[int | None, slice, Tensor], Tensor]

LOG_STD_MAX = 2.0
# Floats of a piece's hidden activations for each thread: 1 MB, so that what a layer wrote is still in a core's cache when the
# next reads it.
PIECE_SIZE = 2**18


@dataclass(frozen=True)
class Shape:
    """Shape of one multilayer perceptron: sizes (input, hidden ..., output)."""

    sizes: tuple[int, ...]
    layer_norm: bool = False

    def parameters(self) -> list[tuple[str, tuple[int, int]]]:
        """Name and two-dimensional shape of each parameter, in the flat tensor's order."""
        named = []
        for index, (rows, columns) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            named += [(f"{index}.weight", (rows, columns)), (f"{index}.bias", (1, columns))]
            if self.layer_norm and index < len(self.sizes) - 2:
                named += [(f"{index}.norm_scale", (1, columns)), (f"{index}.norm_shift", (1, columns))]
        return named

    def num_parameters(self) -> int:
        return sum(rows * columns for _, (rows, columns) in self.parameters())

    def initial(self, generator: torch.Generator) -> Tensor:
        """One network's flat parameters [P] on the CPU: U(-1/sqrt(fan in), 1/sqrt(fan in)), norms at identity."""
        parts = []
        for name, (rows, columns) in self.parameters():
            if name.endswith("norm_scale"):
                parts.append(torch.ones(columns))
            elif name.endswith("norm_shift"):
                parts.append(torch.zeros(columns))
            else:
                fan_in = self.sizes[int(name.split(".")[0])]
                parts.append((torch.rand(rows * columns, generator=generator) * 2.0 - 1.0) / math.sqrt(fan_in))
        return torch.cat(parts)


class Stack:
    """E networks of one shape over a flat tensor [E, P]; see the module's docstring."""

    def __init__(self, shape: Shape, flat: Tensor, dtype: torch.dtype | None = None) -> None:
        self.shape = shape
        self.flat = flat
        self.dtype = dtype  # of the matrix products; None is the parameters' own
        self.views: dict[str, Tensor] = {}
        start = 0
        for name, (rows, columns) in shape.parameters():
            # A detached view shares the flat tensor's memory, and is a leaf of its own for autograd.
            view = flat[:, start : start + rows * columns].view(-1, rows, columns).detach()
            self.views[name] = view.requires_grad_()
            start += rows * columns

    def parameters(self) -> list[Tensor]:
        """The leaves, in the flat tensor's order."""
        return list(self.views.values())

    def frozen(self) -> dict[str, Tensor]:
        """The same parameters, detached."""
        return {name: view.detach() for name, view in self.views.items()}

    def flatten(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients in the leaves' order -> [E, P]."""
        return torch.cat([g.reshape(len(self.flat), -1) for g in gradients], dim=1)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """[M, rows, in], each for E / M networks in a row -> [E, rows, out]; nothing is kept for a way back."""
        return Pass(self, inputs, kept=False).outputs

    def differentiate(self, inputs: Tensor, group: int, derivative: Derivative) -> tuple[Tensor, Tensor]:
        """Outputs, and the gradient of a loss whose derivative by the outputs is known in closed form.

        On a CPU a piece of rows goes forth and back before the next one begins: what its layers wrote is in a core's cache
        when it is read again, and is not kept (H and P of `cqlray benchmark learner` gain 6 to 10 % by it).

        Args:
            inputs: [M, rows, in], each for E / M networks in a row.
            group: rows that are never parted; `rows` is a multiple of it.
            derivative: from a piece's network (None: all), its rows, and its outputs [1 or E, those rows, out], to the
                derivative of the loss by these, as large.
        Returns:
            [E, rows, out] and [E, P].
        """
        networks, (members, count, _) = len(self.flat), inputs.shape
        pieces = _pieces(inputs, networks, self.shape.sizes[1], group)
        if self.shape.layer_norm or pieces[0][0] is None:
            whole = Pass(self, inputs)
            return whole.outputs, whole.gradient(derivative(None, slice(0, count), whole.outputs))
        dtype = self.dtype or inputs.dtype
        used = _products_of(self.parameters(), dtype)
        gradient = torch.zeros_like(self.flat)
        totals = _Totals(list(Stack(self.shape, gradient).frozen().values()))
        outputs = inputs.new_empty(networks, count, self.shape.sizes[-1])
        for network, rows in pieces:
            assert network is not None
            own = [parameter[network] for parameter in used]
            activations = _forth(inputs[network * members // networks, rows].to(dtype), own)
            outputs[network, rows] = output = activations.pop().to(inputs.dtype)
            of_output = derivative(network, rows, output.unsqueeze(0)).squeeze(0).to(dtype)
            _back(of_output, activations, own, totals, network, inputs_wanted=False)
            del activations  # so that the next piece is written where this one was
        return outputs, gradient

    def regress(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`differentiate` of the mean squared difference from target [E, rows], of networks with one output."""

        def derivative(network: int | None, rows: slice, outputs: Tensor) -> Tensor:
            own = slice(None) if network is None else slice(network, network + 1)
            return (outputs - target[own, rows].unsqueeze(2)) * (2.0 / target.shape[1])

        return self.differentiate(inputs, 1, derivative)

    def forward_normalized(self, inputs: Tensor) -> Tensor:
        """[E, rows, in] -> [E, rows, out] of networks with layer norm, for autograd to follow."""
        views = self.views
        last = len(self.shape.sizes) - 2
        hidden = inputs
        for index in range(last + 1):
            bias, weight = (views[f"{index}.{name}"].to(self.dtype or inputs.dtype) for name in ("bias", "weight"))
            hidden = torch.baddbmm(bias, hidden.to(weight.dtype), weight).to(inputs.dtype)
            if index == last:
                break
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
            hidden = torch.addcmul(views[f"{index}.norm_shift"], hidden, views[f"{index}.norm_scale"])
            hidden = torch.relu_(hidden)
        return hidden


class Pass:
    """A forward pass of a stack, and the ways back through it.

    The matrix products are what there is to compute; all else is memory traffic. Here the relu overwrites its input and
    its gradient the incoming one, and on a CPU the rows pass through all layers in pieces that fit a core's cache.
    Products are in the stack's dtype; parameters, their gradients and the outputs keep their type.
    """

    def __init__(self, stack: Stack, inputs: Tensor, kept: bool = True) -> None:
        """inputs [M, rows, in], each for E / M networks in a row; `outputs` are [E, rows, out]. `kept` for a way back."""
        self.stack, self.inputs = stack, inputs
        networks, members = len(stack.flat), len(inputs)
        self.pieces = _pieces(inputs, networks, stack.shape.sizes[1])
        self.kept: list[list[Tensor]] = []  # what each layer read, of each piece
        if stack.shape.layer_norm:
            with torch.set_grad_enabled(kept):
                self.inputs = _for_each(inputs, networks).detach().requires_grad_(kept)
                self.followed = stack.forward_normalized(self.inputs)
            self.outputs = self.followed.detach()
            return
        self.dtype = stack.dtype or inputs.dtype
        self.used = _products_of(stack.parameters(), self.dtype)
        outputs = []
        for network, rows in self.pieces:
            own = _for_each(inputs, networks) if network is None else inputs[network * members // networks, rows]
            *before, output = _forth(own.to(self.dtype), self._parameters(network))
            if kept:
                self.kept.append(before)
            outputs.append(output)
        self.outputs = _joined(outputs, networks).to(inputs.dtype)

    def gradient(self, of_outputs: Tensor) -> Tensor:
        """A loss's gradient by the parameters [E, P], from that by the outputs [E, n, out] of the first n rows."""
        if self.stack.shape.layer_norm:
            with torch.enable_grad():
                followed = self.followed[:, : of_outputs.shape[1]]
            return self.stack.flatten(torch.autograd.grad(followed, self.stack.parameters(), of_outputs, retain_graph=True))
        flat, totals = None, _Totals([None] * len(self.used))
        if self.pieces[0][0] is not None:
            flat = torch.zeros_like(self.stack.flat)
            totals = _Totals(list(Stack(self.stack.shape, flat).frozen().values()))
        for network, gradient, kept in self._taken(of_outputs):
            _back(gradient, kept, self._parameters(network), totals, network, inputs_wanted=False)
        return self.stack.flatten(tuple(value.to(of_outputs.dtype) for value in totals.values)) if flat is None else flat

    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        """A loss's gradient by the inputs [E, rows, in], from that by the outputs [E, rows, out]."""
        if self.stack.shape.layer_norm:
            (found,) = torch.autograd.grad(self.followed, self.inputs, of_outputs, retain_graph=True)
            return found
        of_inputs = [
            _back(gradient, kept, self._parameters(network), None, network, inputs_wanted=True)
            for network, gradient, kept in self._taken(of_outputs)
        ]
        return _joined(of_inputs, len(of_outputs)).to(of_outputs.dtype)

    def _parameters(self, network: int | None) -> Sequence[Tensor]:
        return self.used if network is None else [parameter[network] for parameter in self.used]

    def _taken(self, of_outputs: Tensor) -> Iterator[tuple[int | None, Tensor, list[Tensor]]]:
        """Network, derivative and what the layers read, of each piece that has any of the rows."""
        of_outputs = of_outputs.to(self.dtype)
        for (network, rows), kept in zip(self.pieces, self.kept, strict=True):
            own = of_outputs[:, rows] if network is None else of_outputs[network, rows]
            if own.shape[-2] > 0:
                yield network, own, [read[..., : own.shape[-2], :] for read in kept]


def _for_each(inputs: Tensor, networks: int) -> Tensor:
    """[M, rows, in] -> [E, rows, in], a member's inputs for each of its networks in a row."""
    members, count, width = inputs.shape
    return inputs.unsqueeze(1).expand(members, networks // members, count, width).reshape(-1, count, width)


def _products_of(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Parameters as the products take them: on a GPU apart from the flat tensor, whose rows begin at odd addresses."""
    if not parameters[0].is_cuda:
        return [p.detach().to(dtype) for p in parameters]
    return [p.detach().to(dtype, memory_format=torch.contiguous_format, copy=True) for p in parameters]


def _forth(inputs: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What each layer reads, and the last one's output: [rows, ...] of one network or [E, rows, ...] of all."""
    affine = torch.addmm if inputs.dim() == 2 else torch.baddbmm
    found = [inputs]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if len(found) > 1:
            found[-1].relu_()
        found.append(affine(bias, found[-1], weight))
    return found


def _back(
    gradient: Tensor,
    activations: Sequence[Tensor],
    parameters: Sequence[Tensor],
    totals: _Totals | None,
    network: int | None,
    inputs_wanted: bool,
) -> Tensor:
    """From the gradient of the outputs: those of the parameters go to `totals`, that of the inputs is given if wanted."""
    for index in reversed(range(len(activations))):
        hidden = activations[index]
        if totals is not None:
            totals.add(2 * index, network, hidden, gradient)
        if index or inputs_wanted:
            gradient = torch.matmul(gradient, parameters[2 * index].mT)
        if index:
            torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)
    return gradient


class _Totals:
    """Gradients of the parameters in turn, each the sum over the pieces, or None before there is one for all networks."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def add(self, place: int, network: int | None, inputs: Tensor, gradient: Tensor) -> None:
        """A layer's weight and bias, at `place` and the next, get what its inputs and the gradient of its outputs give."""
        if network is None:
            self.values[place], self.values[place + 1] = torch.bmm(inputs.mT, gradient), gradient.sum(1, keepdim=True)
            return
        of_weight, of_bias = self.values[place][network], self.values[place + 1][network]
        if inputs.dtype == of_weight.dtype:
            of_weight.addmm_(inputs.mT, gradient)
        else:
            of_weight.add_(torch.mm(inputs.mT, gradient))
        of_bias.add_(gradient.sum(0, keepdim=True))


def _pieces(inputs: Tensor, networks: int, width: int, group: int = 1) -> list[tuple[int | None, slice]]:
    """Network and rows of [M, rows, ...] to take at a time: groups that fit a core's cache `width` units wide, or all."""
    count = inputs.shape[1]
    if inputs.device.type != "cpu" or count * width < PIECE_SIZE // 4:
        return [(None, slice(0, count))]
    block = max(1, PIECE_SIZE * torch.get_num_threads() // width // group) * group
    return [(e, slice(r, min(r + block, count))) for e in range(networks) for r in range(0, count, block)]


def _joined(pieces: Sequence[Tensor], networks: int) -> Tensor:
    """The pieces' rows, [rows, ...] of a network or [E, rows, ...] of all, as [E, rows, ...]."""
    if pieces[0].dim() == 3:
        return pieces[0]
    return torch.cat(list(pieces)).view(networks, -1, pieces[0].shape[-1])


def product_dtype(precision: Precision) -> torch.dtype | None:
    """Type of the matrix products; None is the parameters' own. TF32 is no type but torch's switch for float32 products."""
    return torch.bfloat16 if precision == "bf16" else None


def policy_distribution(output: Tensor, log_std_min: Tensor) -> tuple[Tensor, Tensor]:
    """The policy network's output [M, B, 2A] -> mean and log standard deviation, [M, B, A] each; log_std_min [M]."""
    mean, log_std = output.chunk(2, dim=-1)
    lowest = log_std_min.reshape(-1, 1, 1)
    return mean, torch.maximum(log_std, lowest).clamp(max=LOG_STD_MAX)


def policy_output_gradient(log_std: Tensor, log_std_min: Tensor, by_mean: Tensor, by_log_std: Tensor) -> Tensor:
    """Derivatives by mean and log_std of `policy_distribution` -> that by the policy network's output, [M, B, 2A]."""
    inside = (log_std > log_std_min.reshape(-1, 1, 1)) & (log_std < LOG_STD_MAX)
    return torch.cat([by_mean, by_log_std * inside], dim=-1)


def critic_values(critics: Stack, inputs: Tensor, num_critics: int) -> Tensor:
    """Q_i of each member's own critics: inputs [M, rows, observation + action] -> [M, N, rows]."""
    return critics.forward(inputs).view(len(inputs), num_critics, inputs.shape[1])
