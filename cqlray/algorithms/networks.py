"""Policy and critics of all members in one set of tensors.

A `Stack` is E multilayer perceptrons of one shape, their parameters in one flat tensor [E, P]: the
optimiser and Polyak averaging are a few operations on that tensor, while `views` are its weights
and biases, [E, in, out] and [E, 1, out]. The policy's stack has E = M members, the critics' E = M *
N, a member's critics together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cqlray.config.schema import Precision

# From a piece's network, or None for all, its rows, and their outputs, to the derivative of the
# loss by these.
Derivative: TypeAlias = Callable[[int | None, slice, Tensor], Tensor]

LOG_STD_MAX = 2.0
# Floats of one hidden layer of a piece for each thread: half a MB, so that all of its layers stay
# in a core's cache.
PIECE_SIZE = 2**17
# Fewer than this go through their layers at once, all networks in one product: calls cost more than
# the cache saves.
SMALLEST = 2**16
# numbers after a row of activations: the rows of a power of two would share few of a cache's sets
PADDING = 16


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
                named += [
                    (f"{index}.norm_scale", (1, columns)),
                    (f"{index}.norm_shift", (1, columns)),
                ]
        return named

    def num_parameters(self) -> int:
        return sum(rows * columns for _, (rows, columns) in self.parameters())

    def initial(self, generator: torch.Generator) -> Tensor:
        """One network's flat parameters [P] on the CPU: U(-1/sqrt(fan in), 1/sqrt(fan in)), norms
        at identity.
        """
        parts = []
        for name, (rows, columns) in self.parameters():
            if name.endswith("norm_scale"):
                parts.append(torch.ones(columns))
            elif name.endswith("norm_shift"):
                parts.append(torch.zeros(columns))
            else:
                fan_in = self.sizes[int(name.split(".")[0])]
                parts.append(
                    (torch.rand(rows * columns, generator=generator) * 2.0 - 1.0)
                    / math.sqrt(fan_in)
                )
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
            # A detached view shares the flat tensor's memory, and is a leaf of its own for
            # autograd.
            view = flat[:, start : start + rows * columns].view(-1, rows, columns).detach()
            self.views[name] = view.requires_grad_()
            start += rows * columns

    def parameters(self) -> list[Tensor]:
        """The leaves, in the flat tensor's order."""
        return list(self.views.values())

    def flatten(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients in the leaves' order -> [E, P]."""
        return torch.cat([g.reshape(len(self.flat), -1) for g in gradients], dim=1)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """[M, rows, in], each for E / M networks in a row -> [E, rows, out]; nothing is kept for a
        way back.
        """
        return Pass(self, inputs, kept=False).outputs

    def differentiate(
        self, inputs: Tensor, group: int, derivative: Derivative
    ) -> tuple[Tensor, Tensor]:
        """Outputs, and the gradient of a loss whose derivative by the outputs is known in closed
        form.

        On a CPU a piece of rows goes forth and back before the next one begins, in the same memory:
        it is in a core's cache throughout.

        Args:
            inputs: [M, rows, in], each for E / M networks in a row.
            group: rows that are never parted; `rows` is a multiple of it.
            derivative: from a piece's network (None: all), its rows, and its outputs
                [1 or E, those rows, out], to the derivative of the loss by these, as large.
        Returns:
            [E, rows, out] and [E, P].
        """
        networks, (members, count, _) = len(self.flat), inputs.shape
        pieces = (
            [] if self.shape.layer_norm else _pieces(inputs, networks, self.shape.sizes[1], group)
        )
        if not pieces:
            whole = Pass(self, inputs)
            return whole.outputs, whole.gradient(derivative(None, slice(0, count), whole.outputs))
        dtype, gradient = self.dtype or inputs.dtype, torch.zeros_like(self.flat)
        each = [_Network(own) for own in _layers(self.shape, self.flat, dtype)]
        of_layers = _layers(self.shape, gradient, gradient.dtype)
        outputs = inputs.new_empty(networks, count, self.shape.sizes[-1])
        room = _Room(self.shape, pieces[0][1].stop, dtype)
        for network, rows in pieces:
            output = outputs[network : network + 1, rows]
            output[0] = room.forth(inputs[network * members // networks, rows], each[network])
            room.back(derivative(network, rows, output)[0], each[network], of_layers[network])
        return outputs, gradient

    def regress(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`differentiate` of the mean squared difference from target [E, rows], of networks with
        one output.
        """

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
            bias, weight = (
                views[f"{index}.{name}"].to(self.dtype or inputs.dtype)
                for name in ("bias", "weight")
            )
            hidden = torch.baddbmm(bias, hidden.to(weight.dtype), weight).to(inputs.dtype)
            if index == last:
                break
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
            hidden = torch.addcmul(
                views[f"{index}.norm_shift"], hidden, views[f"{index}.norm_scale"]
            )
            hidden = torch.relu_(hidden)
        return hidden


class Pass:
    """A forward pass of a stack, and the ways back through it.

    The matrix products are what there is to compute; all else is memory traffic. Here the relu
    overwrites its input and its gradient the incoming one, and on a CPU the rows pass through all
    layers in pieces that fit a core's cache. Products are in the stack's dtype; parameters, their
    gradients and the outputs keep their type.
    """

    def __init__(self, stack: Stack, inputs: Tensor, kept: bool = True) -> None:
        """inputs [M, rows, in], each for E / M networks in a row; `outputs` are [E, rows, out].

        `kept` for a way back.
        """
        self.stack, self.inputs = stack, inputs
        networks, members = len(stack.flat), len(inputs)
        if stack.shape.layer_norm:
            with torch.set_grad_enabled(kept):
                self.inputs = _for_each(inputs, networks).detach().requires_grad_(kept)
                self.followed = stack.forward_normalized(self.inputs)
            self.outputs = self.followed.detach()
            return
        dtype = stack.dtype or inputs.dtype
        self.pieces = _pieces(inputs, networks, stack.shape.sizes[1])
        if not self.pieces:
            self.parameters = _products_of(stack.parameters(), dtype)
            *self.read, outputs = _forth(_for_each(inputs, networks).to(dtype), self.parameters)
            self.outputs = outputs.to(inputs.dtype)
            return
        self.each, self.rooms = (
            [_Network(own) for own in _layers(stack.shape, stack.flat, dtype)],
            list[_Room](),
        )
        self.outputs = inputs.new_empty(networks, inputs.shape[1], stack.shape.sizes[-1])
        for network, rows in self.pieces:
            if kept or not self.rooms:
                # The first piece is the longest, and one piece goes back at a time.
                spare = self.rooms[0].spare if self.rooms else None
                self.rooms.append(_Room(stack.shape, rows.stop - rows.start, dtype, spare))
            self.outputs[network, rows] = self.rooms[-1].forth(
                inputs[network * members // networks, rows], self.each[network]
            )

    def gradient(self, of_outputs: Tensor) -> Tensor:
        """A loss's gradient by the parameters [E, P], from that by the outputs [E, n, out] of the
        first n rows.
        """
        if self.stack.shape.layer_norm:
            with torch.enable_grad():
                followed = self.followed[:, : of_outputs.shape[1]]
            return self.stack.flatten(
                torch.autograd.grad(
                    followed, self.stack.parameters(), of_outputs, retain_graph=True
                )
            )
        if not self.pieces:
            of_parameters: list[Tensor] = []
            _back(of_outputs.to(self.read[0].dtype), self.read, self.parameters, of_parameters)
            return self.stack.flatten(tuple(value.to(of_outputs.dtype) for value in of_parameters))
        gradient = torch.zeros_like(self.stack.flat)
        of_layers = _layers(self.stack.shape, gradient, gradient.dtype)
        for (network, rows), room in zip(self.pieces, self.rooms, strict=True):
            room.back(of_outputs[network, rows], self.each[network], of_layers[network])
        return gradient

    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        """A loss's gradient by the inputs [E, rows, in], from that by the outputs
        [E, rows, out].
        """
        if self.stack.shape.layer_norm:
            (found,) = torch.autograd.grad(
                self.followed, self.inputs, of_outputs, retain_graph=True
            )
            return found
        if not self.pieces:
            return _back(of_outputs.to(self.read[0].dtype), self.read, self.parameters, None).to(
                of_outputs.dtype
            )
        found = of_outputs.new_empty(*of_outputs.shape[:2], self.stack.shape.sizes[0])
        for (network, rows), room in zip(self.pieces, self.rooms, strict=True):
            found[network, rows] = room.back(of_outputs[network, rows], self.each[network])
        return found


class _Network:
    """One network's layers, and their weights alone, turned."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self.layers = layers
        self.turned = [layer[:-1].mT for layer in layers]


def _layers(shape: Shape, flat: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
    """Of each network its layers, a weight with its bias as one more row [in + 1, out]; views of
    `flat` in its own dtype.
    """
    found, start = [], 0
    for rows, columns in itertools.pairwise(shape.sizes):
        size = (rows + 1) * columns
        found.append(flat[:, start : start + size].view(-1, rows + 1, columns).to(dtype))
        start += size
    return [list(own) for own in zip(*found, strict=True)]


class _Room:
    """Memory for a piece of rows on its way through one network on a CPU, forth and back.

    A bias is the weight of a unit that is always 1. Every layer reads that unit, too, so that one
    product adds the bias, and one gives its gradient beside the weight's: on their own both are
    passes over all activations.
    """

    def __init__(
        self, shape: Shape, rows: int, dtype: torch.dtype, spare: list[Tensor] | None = None
    ) -> None:
        """Room for so many rows; `spare` is another room's of as many or more, to go back by."""
        sizes = shape.sizes[:-1]
        self.all = [torch.empty(rows, size + PADDING, dtype=dtype) for size in sizes]
        for read, size in zip(self.all, sizes, strict=True):
            read[:, size] = 1.0
        self.spare = spare or [
            torch.empty(rows, max(sizes) + PADDING, dtype=dtype) for _ in range(2)
        ]
        self.sizes = sizes
        self.taken = 0

    def _take(self, rows: int) -> None:
        """Look at so many rows; a view costs microseconds where the products have emptied the
        caches, so it is made once.
        """
        if rows == self.taken:
            return
        self.taken = rows
        self.read = [own[:rows, : size + 1] for own, size in zip(self.all, self.sizes, strict=True)]
        self.turned = [read.mT for read in self.read]
        self.units = [read[:, :-1] for read in self.read]
        self.back_to = [
            self.spare[index % 2][:rows, :size] for index, size in enumerate(self.sizes)
        ]

    def forth(self, inputs: Tensor, network: _Network) -> Tensor:
        """[n, in] -> [n, out]; what each layer read is kept until the next time."""
        self._take(len(inputs))
        *hidden, last = network.layers
        self.units[0].copy_(inputs)
        for layer, read, units in zip(hidden, self.read[:-1], self.units[1:], strict=True):
            torch.mm(read, layer, out=units).relu_()
        return torch.mm(self.read[-1], last)

    def back(
        self, of_outputs: Tensor, network: _Network, of_layers: Sequence[Tensor] | None = None
    ) -> Tensor:
        """From a loss's gradient by the outputs [n, out] of the first n rows that went forth to
        that by their inputs.

        It is a view of the spare memory, in the products' dtype, until the next way back. With
        `of_layers` the layers' gradients are added to these, and the way ends at the first layer's
        outputs.
        """
        self._take(len(of_outputs))
        gradient = of_outputs.to(self.spare[0].dtype)
        for index in reversed(range(len(self.sizes))):
            if of_layers is not None:
                _add_product(of_layers[index], self.turned[index], gradient)
                if index == 0:
                    break
            # One output: its product is an outer one, which BLAS takes 15 times as long for.
            product = torch.mul if gradient.shape[1] == 1 else torch.mm
            gradient = product(gradient, network.turned[index], out=self.back_to[index])
            if index:
                torch.ops.aten.threshold_backward.grad_input(
                    gradient, self.units[index], 0, grad_input=gradient
                )
        return gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """In one call where the products are in the total's dtype, which bf16's are not."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


def _for_each(inputs: Tensor, networks: int) -> Tensor:
    """[M, rows, in] -> [E, rows, in], a member's inputs for each of its networks in a row."""
    members, count, width = inputs.shape
    return (
        inputs.unsqueeze(1)
        .expand(members, networks // members, count, width)
        .reshape(-1, count, width)
    )


def _products_of(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Parameters as the products take them: on a GPU apart from the flat tensor, whose rows begin
    at odd addresses.
    """
    if not parameters[0].is_cuda:
        return [p.detach().to(dtype) for p in parameters]
    return [
        p.detach().to(dtype, memory_format=torch.contiguous_format, copy=True) for p in parameters
    ]


def _forth(inputs: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What each layer of all networks reads, and the last one's output: [E, rows, ...]."""
    found = [inputs]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if len(found) > 1:
            found[-1].relu_()
        found.append(torch.baddbmm(bias, found[-1], weight))
    return found


def _back(
    gradient: Tensor,
    read: Sequence[Tensor],
    parameters: Sequence[Tensor],
    of_parameters: list[Tensor] | None,
) -> Tensor:
    """As `_Room.back` for all networks: of the first n rows, [E, n, ...]; the parameters' gradients
    go to an empty list.
    """
    for index in reversed(range(len(read))):
        hidden = read[index][:, : gradient.shape[1]]
        if of_parameters is not None:
            of_parameters[:0] = [torch.bmm(hidden.mT, gradient), gradient.sum(1, keepdim=True)]
            if index == 0:
                break
        gradient = torch.bmm(gradient, parameters[2 * index].mT)
        if index:
            torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)
    return gradient


def _pieces(inputs: Tensor, networks: int, width: int, group: int = 1) -> list[tuple[int, slice]]:
    """Network and rows of [M, rows, ...] to take at a time: groups that fit a core's cache `width`
    units wide.

    None at all on a GPU, and where there are so few that all go at once.
    """
    count = inputs.shape[1]
    if inputs.device.type != "cpu" or count * width < SMALLEST:
        return []
    block = max(1, PIECE_SIZE * torch.get_num_threads() // width // group) * group
    return [
        (e, slice(r, min(r + block, count)))
        for e in range(networks)
        for r in range(0, count, block)
    ]


def product_dtype(precision: Precision) -> torch.dtype | None:
    """Type of the matrix products; None is the parameters' own.

    TF32 is no type but torch's switch for float32 products.
    """
    return torch.bfloat16 if precision == "bf16" else None


def policy_distribution(output: Tensor, log_std_min: Tensor) -> tuple[Tensor, Tensor]:
    """The policy network's output [M, B, 2A] -> mean and log standard deviation, [M, B, A] each;
    log_std_min [M].
    """
    mean, log_std = output.chunk(2, dim=-1)
    lowest = log_std_min.reshape(-1, 1, 1)
    return mean, torch.maximum(log_std, lowest).clamp(max=LOG_STD_MAX)


def policy_output_gradient(
    log_std: Tensor, log_std_min: Tensor, by_mean: Tensor, by_log_std: Tensor
) -> Tensor:
    """Derivatives by mean and log_std of `policy_distribution` -> that by the policy network's
    output, [M, B, 2A].
    """
    inside = (log_std > log_std_min.reshape(-1, 1, 1)) & (log_std < LOG_STD_MAX)
    return torch.cat([by_mean, by_log_std * inside], dim=-1)


def critic_values(critics: Stack, inputs: Tensor, num_critics: int) -> Tensor:
    """Q_i of each member's own critics: inputs [M, rows, observation + action] -> [M, N, rows]."""
    return critics.forward(inputs).view(len(inputs), num_critics, inputs.shape[1])
