"""One tile (some rows of one network) forward and backward on a CPU, within a core's cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from cqlray.algorithms.networks import Shape

# Unused numbers after each row of activations. If rows were a power of two apart, they would
# compete for the same few sets of the cache.
PADDING = 16


class Layers:
    """One network's layers (see `layer_views`), and their weights alone, transposed."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self.layers = layers
        self.transposed = [layer[:-1].mT for layer in layers]


def all_layers(shape: Shape, flat: Tensor, dtype: torch.dtype) -> list[Layers]:
    return [Layers(layers) for layers in layer_views(shape, flat, dtype)]


def layer_views(shape: Shape, flat: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
    """Each network's layers, a weight with its bias below it as one more row: [in + 1, out]. Views
    of `flat` where that is of this dtype.
    """
    found, start = [], 0
    for rows, columns in itertools.pairwise(shape.sizes):
        size = (rows + 1) * columns
        found.append(flat[:, start : start + size].view(-1, rows + 1, columns).to(dtype))
        start += size
    return [list(layers) for layers in zip(*found, strict=True)]


class TileBuffers:
    """Memory in which a tile goes forward and backward through one network.

    Each layer's input has one more unit, which is always 1, and the layer's bias is that unit's row
    of weights. So the product that applies the weights also adds the bias, and the product that
    gives the weights' gradient also gives the bias's. Done separately, each would be another pass
    over all activations.
    """

    def __init__(
        self, shape: Shape, rows: int, dtype: torch.dtype, spare: list[Tensor] | None = None
    ) -> None:
        """`rows` is the most that a tile has. `spare` is the memory for gradients, shared with the
        buffers of a tile at least as large.
        """
        self.sizes = shape.sizes[:-1]
        self.inputs = [torch.empty(rows, size + PADDING, dtype=dtype) for size in self.sizes]
        for read, size in zip(self.inputs, self.sizes, strict=True):
            read[:, size] = 1.0
        self.spare = spare or [
            torch.empty(rows, max(self.sizes) + PADDING, dtype=dtype) for _ in range(2)
        ]
        self.rows = 0

    def _use(self, rows: int) -> None:
        """Make the views of so many rows, unless they are there: while the products keep emptying
        the caches, making a view takes microseconds.
        """
        if rows == self.rows:
            return
        self.rows = rows
        self.read = [
            layer[:rows, : size + 1] for layer, size in zip(self.inputs, self.sizes, strict=True)
        ]
        self.transposed = [read.mT for read in self.read]
        self.units = [read[:, :-1] for read in self.read]
        self.gradients = [
            self.spare[index % 2][:rows, :size] for index, size in enumerate(self.sizes)
        ]

    def forward(self, inputs: Tensor, network: Layers) -> Tensor:
        """[n, in] -> [n, out]; what each layer read stays here until the next call."""
        self._use(len(inputs))
        *hidden, last = network.layers
        self.units[0].copy_(inputs)
        for layer, read, units in zip(hidden, self.read[:-1], self.units[1:], strict=True):
            torch.mm(read, layer, out=units).relu_()
        return torch.mm(self.read[-1], last)

    def backward(
        self, of_outputs: Tensor, network: Layers, of_layers: Sequence[Tensor] | None = None
    ) -> Tensor:
        """From the derivative of the first n rows' outputs [n, out] to that of their inputs [n, in]
        (in memory that the next call overwrites, and in the products' dtype); or, with `of_layers`,
        only as far as the first layer, each layer's gradient being added to these.
        """
        self._use(len(of_outputs))
        gradient = of_outputs.to(self.spare[0].dtype)
        for index in reversed(range(len(self.sizes))):
            if of_layers is not None:
                _add_product_(of_layers[index], self.transposed[index], gradient)
                if index == 0:
                    break
            # With one output the product is an outer product, and BLAS is 15 times slower at it.
            product = torch.mul if gradient.shape[1] == 1 else torch.mm
            gradient = product(gradient, network.transposed[index], out=self.gradients[index])
            if index:
                relu_backward_(gradient, self.units[index])
        return gradient


def relu_backward_(gradient: Tensor, activations: Tensor) -> None:
    """Zero, in place, the gradient of units that the ReLU set to zero."""
    torch.ops.aten.threshold_backward.grad_input(gradient, activations, 0, grad_input=gradient)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; one call unless the product is in another dtype (bf16)."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))
