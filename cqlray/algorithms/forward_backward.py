"""Forward and backward passes through a stack of networks, each in the fastest of three ways.

The matrix products are the work that has to be done; everything else is memory traffic. Where the
gradient's formulas are simple (a ReLU after each layer) the passes are written out here, without
autograd: the ReLU overwrites its input, and a gradient overwrites the one that it was computed
from. `way_for` chooses once for each pass:

    AutogradPass  layer norm: autograd goes backward
    BatchedPass   on a GPU, or few rows: one product for each layer of all networks together
    TiledPass     many rows on a CPU: tile by tile, so that activations stay in a core's cache

Products are in the stack's dtype; parameters, their gradients and the outputs keep theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from cqlray.algorithms.losses import td_loss_gradient
from cqlray.algorithms.networks import Stack
from cqlray.algorithms.tiles import TileBuffers, all_layers, layer_views, relu_backward_

# The loss's derivative with respect to some outputs, as large as these. Arguments: the network that
# they belong to, or None for all networks; their rows; the outputs [1 or E, those rows, out].
Derivative: TypeAlias = Callable[[int | None, slice, Tensor], Tensor]

# Activations of one hidden layer in a tile, for each thread: half a MB of float32, so that all of a
# tile's layers fit in a core's cache.
TILE_SIZE = 2**17
# Below so many activations in a layer a pass is batched: the calls for separate tiles would cost
# more than the cache saves.
TILED_FROM = 2**16


def forward_pass(stack: Stack, inputs: Tensor) -> Pass:
    """A forward pass that backward passes can follow: inputs [M, rows, in]."""
    return way_for(stack, inputs)(stack, inputs)


@torch.no_grad()
def outputs(stack: Stack, inputs: Tensor) -> Tensor:
    """A forward pass alone: [M, rows, in], a member's for each of its E / M networks ->
    [E, rows, out].
    """
    return way_for(stack, inputs)(stack, inputs, keep=False).outputs


def differentiate(
    stack: Stack, inputs: Tensor, group: int, derivative: Derivative
) -> tuple[Tensor, Tensor]:
    """The outputs [E, rows, out] of inputs [M, rows, in], and a loss's gradient with respect to the
    parameters [E, P], where the loss's derivative with respect to the outputs is known in closed
    form.

    Tiles go forward and backward one after another. So many consecutive rows, a `group`, always
    share a tile; the number of rows is a multiple of it.
    """
    return way_for(stack, inputs).differentiate(stack, inputs, group, derivative)


def regress(stack: Stack, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`differentiate` for losses.td_loss: inputs [M, B, in], targets [M, B] that a member's
    networks share; one output.
    """
    networks = len(stack.flat) // len(target)

    def derivative(network: int | None, rows: slice, values: Tensor) -> Tensor:
        q = values.view(-1, networks if network is None else 1, values.shape[1])
        return td_loss_gradient(
            q, target[members_of(network, networks), rows], target.shape[1]
        ).view(values.shape)

    return differentiate(stack, inputs, 1, derivative)


def members_of(network: int | None, networks_each: int) -> slice:
    """The members whose outputs a Derivative is asked about."""
    if network is None:
        return slice(None)
    member = network // networks_each
    return slice(member, member + 1)


class Pass(ABC):
    """A forward pass and the backward passes that follow it.

    `outputs` are [E, rows, out]. Backward passes start from a loss's derivative with respect to
    the outputs.
    """

    outputs: Tensor

    @abstractmethod
    def __init__(self, stack: Stack, inputs: Tensor, keep: bool = True) -> None:
        """inputs [M, rows, in], a member's for each of its E / M networks. `keep` what a backward
        pass needs.
        """

    @abstractmethod
    def gradient(self, of_outputs: Tensor) -> Tensor:
        """The loss's gradient with respect to the parameters, [E, P], from the derivative of the
        first n rows' outputs, [E, n, out]; the other rows have no part in the loss.
        """

    @abstractmethod
    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        """The loss's gradient with respect to the inputs: [E, rows, out] -> [E, rows, in]."""

    @classmethod
    def differentiate(
        cls, stack: Stack, inputs: Tensor, group: int, derivative: Derivative
    ) -> tuple[Tensor, Tensor]:
        """All rows forward, then all backward; see the function of the same name."""
        whole = cls(stack, inputs)
        of_outputs = derivative(None, slice(0, inputs.shape[1]), whole.outputs)
        return whole.outputs, whole.gradient(of_outputs)


class AutogradPass(Pass):
    """Networks with layer norm."""

    def __init__(self, stack: Stack, inputs: Tensor, keep: bool = True) -> None:
        self.stack = stack
        with torch.set_grad_enabled(keep):
            self.inputs = _for_each(inputs, len(stack.flat)).detach().requires_grad_(keep)
            self.followed = self._layers()
        self.outputs = self.followed.detach()

    def _layers(self) -> Tensor:
        """[E, rows, in] -> [E, rows, out], followed by autograd."""
        views, dtype = self.stack.views, self.stack.dtype or self.inputs.dtype
        last = len(self.stack.shape.sizes) - 2
        hidden = self.inputs
        for index in range(last + 1):
            bias, weight = (views[f"{index}.{name}"].to(dtype) for name in ("bias", "weight"))
            hidden = torch.baddbmm(bias, hidden.to(dtype), weight).to(self.inputs.dtype)
            if index == last:
                break
            hidden = layer_norm(hidden, hidden.shape[-1:])
            hidden = torch.addcmul(
                views[f"{index}.norm_shift"], hidden, views[f"{index}.norm_scale"]
            )
            hidden = torch.relu_(hidden)
        return hidden

    def gradient(self, of_outputs: Tensor) -> Tensor:
        with torch.enable_grad():
            followed = self.followed[:, : of_outputs.shape[1]]
        leaves = self.stack.parameters()
        return self.stack.flatten(
            torch.autograd.grad(followed, leaves, of_outputs, retain_graph=True)
        )

    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(self.followed, self.inputs, of_outputs, retain_graph=True)
        return found


class BatchedPass(Pass):
    """One batched product for each layer of all networks."""

    def __init__(self, stack: Stack, inputs: Tensor, keep: bool = True) -> None:
        self.stack = stack
        dtype = stack.dtype or inputs.dtype
        self.parameters = _contiguous(stack.parameters(), dtype)
        self.read = [_for_each(inputs, len(stack.flat)).to(dtype)]  # what each layer read
        for weight, bias in zip(self.parameters[::2], self.parameters[1::2], strict=True):
            if len(self.read) > 1:
                self.read[-1].relu_()
            self.read.append(torch.baddbmm(bias, self.read[-1], weight))
        self.outputs = self.read.pop().to(inputs.dtype)

    def gradient(self, of_outputs: Tensor) -> Tensor:
        found: list[Tensor] = []
        self._backward(of_outputs.to(self.read[0].dtype), found)
        return self.stack.flatten(tuple(value.to(of_outputs.dtype) for value in found))

    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        return self._backward(of_outputs.to(self.read[0].dtype), None).to(of_outputs.dtype)

    def _backward(self, gradient: Tensor, of_parameters: list[Tensor] | None) -> Tensor:
        """From the derivative of the first n rows' outputs to that of their inputs; or, with
        `of_parameters`, only as far as the first layer's parameters, whose gradients this list
        takes up.
        """
        for index in reversed(range(len(self.read))):
            hidden = self.read[index][:, : gradient.shape[1]]
            if of_parameters is not None:
                of_parameters[:0] = [torch.bmm(hidden.mT, gradient), gradient.sum(1, keepdim=True)]
                if index == 0:
                    break
            gradient = torch.bmm(gradient, self.parameters[2 * index].mT)
            if index:
                relu_backward_(gradient, hidden)
        return gradient


class TiledPass(Pass):
    """Tile by tile: the rows of one network that fit in a core's cache."""

    def __init__(self, stack: Stack, inputs: Tensor, keep: bool = True) -> None:
        self.stack = stack
        networks, members, dtype = len(stack.flat), len(inputs), stack.dtype or inputs.dtype
        self.tiles = _tiles(stack, inputs)
        self.layers = all_layers(stack.shape, stack.flat, dtype)
        self.buffers: list[TileBuffers] = []
        self.outputs = inputs.new_empty(networks, inputs.shape[1], stack.shape.sizes[-1])
        for network, rows in self.tiles:
            if keep or not self.buffers:
                # The first tile is the largest, and only one goes backward at a time.
                spare = self.buffers[0].spare if self.buffers else None
                count = rows.stop - rows.start
                self.buffers.append(TileBuffers(stack.shape, count, dtype, spare))
            self.outputs[network, rows] = self.buffers[-1].forward(
                inputs[network * members // networks, rows], self.layers[network]
            )

    def gradient(self, of_outputs: Tensor) -> Tensor:
        gradient = torch.zeros_like(self.stack.flat)
        of_layers = layer_views(self.stack.shape, gradient, gradient.dtype)
        for (network, rows), buffers in zip(self.tiles, self.buffers, strict=True):
            buffers.backward(of_outputs[network, rows], self.layers[network], of_layers[network])
        return gradient

    def input_gradient(self, of_outputs: Tensor) -> Tensor:
        found = of_outputs.new_empty(*of_outputs.shape[:2], self.stack.shape.sizes[0])
        for (network, rows), buffers in zip(self.tiles, self.buffers, strict=True):
            found[network, rows] = buffers.backward(of_outputs[network, rows], self.layers[network])
        return found

    @classmethod
    def differentiate(
        cls, stack: Stack, inputs: Tensor, group: int, derivative: Derivative
    ) -> tuple[Tensor, Tensor]:
        """A tile goes forward and backward before the next one begins, in the same memory: it is in
        a core's cache throughout.
        """
        networks, members, dtype = len(stack.flat), len(inputs), stack.dtype or inputs.dtype
        tiles = _tiles(stack, inputs, group)
        layers, gradient = all_layers(stack.shape, stack.flat, dtype), torch.zeros_like(stack.flat)
        of_layers = layer_views(stack.shape, gradient, gradient.dtype)
        found = inputs.new_empty(networks, inputs.shape[1], stack.shape.sizes[-1])
        buffers = TileBuffers(stack.shape, tiles[0][1].stop, dtype)
        for network, rows in tiles:
            output = found[network : network + 1, rows]
            output[0] = buffers.forward(
                inputs[network * members // networks, rows], layers[network]
            )
            buffers.backward(
                derivative(network, rows, output)[0], layers[network], of_layers[network]
            )
        return found, gradient


def way_for(stack: Stack, inputs: Tensor) -> type[AutogradPass | BatchedPass | TiledPass]:
    """The way that a pass of these inputs [M, rows, in] takes."""
    if stack.shape.layer_norm:
        return AutogradPass
    on_gpu = inputs.device.type != "cpu"
    if on_gpu or inputs.shape[1] * stack.shape.sizes[1] < TILED_FROM:
        return BatchedPass
    return TiledPass


def _tiles(stack: Stack, inputs: Tensor, group: int = 1) -> list[tuple[int, slice]]:
    """Network and rows of each tile, network by network; a tile holds whole groups of rows."""
    count, width = inputs.shape[1], stack.shape.sizes[1]
    size = max(1, TILE_SIZE * torch.get_num_threads() // width // group) * group
    return [
        (network, slice(first, min(first + size, count)))
        for network in range(len(stack.flat))
        for first in range(0, count, size)
    ]


def _for_each(inputs: Tensor, networks: int) -> Tensor:
    """[M, rows, in] -> [E, rows, in], a member's inputs repeated for each of its networks."""
    members, count, width = inputs.shape
    return (
        inputs.unsqueeze(1)
        .expand(members, networks // members, count, width)
        .reshape(-1, count, width)
    )


def _contiguous(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Parameters as batched products take them. On a GPU they are copied out of the flat tensor,
    where their rows begin at odd addresses.
    """
    if not parameters[0].is_cuda:
        return [p.detach().to(dtype) for p in parameters]
    return [
        p.detach().to(dtype, memory_format=torch.contiguous_format, copy=True) for p in parameters
    ]
