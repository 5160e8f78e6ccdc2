"""The shape and the parameters of networks: those of all members in one set of tensors.

A `Stack` is E multilayer perceptrons of one shape, their parameters in one flat tensor [E, P]: the
optimiser and Polyak averaging are a few operations on that tensor, while `views` are its weights
and biases, [E, in, out] and [E, 1, out]. The policy's stack has E = M members; the critics' has
E = M * N, a member's N critics next to each other. forward_backward computes with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cqlray.config.schema import Precision


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
        self.dtype = dtype  # of the matrix products; None: that of the parameters
        self.views: dict[str, Tensor] = {}
        start = 0
        for name, (rows, columns) in shape.parameters():
            # A detached view shares the flat tensor's memory, and autograd sees it as a leaf.
            view = flat[:, start : start + rows * columns].view(-1, rows, columns).detach()
            self.views[name] = view.requires_grad_()
            start += rows * columns

    def parameters(self) -> list[Tensor]:
        """The leaves, in the flat tensor's order."""
        return list(self.views.values())

    def flatten(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients in the leaves' order -> [E, P]."""
        return torch.cat([g.reshape(len(self.flat), -1) for g in gradients], dim=1)


def product_dtype(precision: Precision) -> torch.dtype | None:
    """Type of the matrix products; None: that of the parameters.

    TF32 is no type but torch's switch for float32 products.
    """
    return torch.bfloat16 if precision == "bf16" else None
