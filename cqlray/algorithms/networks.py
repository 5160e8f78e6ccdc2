"""Policy and critics of all members in one set of tensors.

A `Stack` is E multilayer perceptrons of one shape, their parameters in one flat tensor [E, P]: the optimiser and Polyak
averaging are a few operations on that tensor, while `layers` holds the views that a forward pass multiplies by,
[E, in, out] and [E, 1, out]. The policy's stack has E = M members, the critics' E = M * N, a member's critics together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOG_STD_MAX = 2.0


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

    def __init__(self, shape: Shape, flat: Tensor) -> None:
        self.shape = shape
        self.flat = flat
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
        """The same parameters for a pass that gives them no gradient."""
        return {name: view.detach() for name, view in self.views.items()}

    def flatten(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients in the leaves' order -> [E, P]."""
        return torch.cat([g.reshape(len(self.flat), -1) for g in gradients], dim=1)

    def forward(self, inputs: Tensor, views: dict[str, Tensor] | None = None) -> Tensor:
        """[E, rows, in] -> [E, rows, out]."""
        views = self.views if views is None else views
        if self.shape.layer_norm:
            return self._forward_normalized(inputs, views)
        output: Tensor = _Perceptron.apply(inputs, *views.values())  # type: ignore[no-untyped-call]
        return output

    def _forward_normalized(self, inputs: Tensor, views: dict[str, Tensor]) -> Tensor:
        last = len(self.shape.sizes) - 2
        hidden = inputs
        for index in range(last + 1):
            hidden = torch.baddbmm(views[f"{index}.bias"], hidden, views[f"{index}.weight"])
            if index == last:
                break
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
            hidden = torch.addcmul(views[f"{index}.norm_shift"], hidden, views[f"{index}.norm_scale"])
            hidden = torch.relu_(hidden)
        return hidden


class _Perceptron(torch.autograd.Function):
    """Stacked ReLU perceptrons with a backward pass of their own.

    The matrix products are what there is to compute; all else is memory traffic, and autograd's relu costs two more
    passes over activations that fill the cache. Here the relu overwrites its input, and its gradient the incoming one.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> Tensor:
        """inputs [E, rows, in]; parameters weight [E, in, out] and bias [E, 1, out] of each layer in turn."""
        activations, hidden = [inputs], inputs
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
            activations.append(hidden)
        ctx.save_for_backward(*activations, *parameters)
        return torch.baddbmm(parameters[-1], hidden, parameters[-2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 3
        activations, parameters = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        (gradient,) = gradients
        of_parameters: list[Tensor | None] = [None] * (2 * layers)
        for index in reversed(range(layers)):
            weight, hidden = parameters[2 * index], activations[index]
            if ctx.needs_input_grad[1 + 2 * index]:
                of_parameters[2 * index] = torch.bmm(hidden.transpose(1, 2), gradient)
                of_parameters[2 * index + 1] = gradient.sum(1, keepdim=True)
            if index:
                gradient = torch.bmm(gradient, weight.transpose(1, 2))
                torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)
        of_inputs = torch.bmm(gradient, parameters[0].transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return of_inputs, *of_parameters


def policy_distribution(output: Tensor, log_std_min: Tensor) -> tuple[Tensor, Tensor]:
    """The policy network's output [M, B, 2A] -> mean and log standard deviation, [M, B, A] each; log_std_min [M]."""
    mean, log_std = output.chunk(2, dim=-1)
    lowest = log_std_min.reshape(-1, 1, 1)
    return mean, torch.maximum(log_std, lowest).clamp(max=LOG_STD_MAX)


def critic_values(critics: Stack, inputs: Tensor, num_critics: int, views: dict[str, Tensor] | None = None) -> Tensor:
    """Q_i of each member's own critics: inputs [M, rows, observation + action] -> [M, N, rows]."""
    members, rows, width = inputs.shape
    shared = inputs.unsqueeze(1).expand(members, num_critics, rows, width).reshape(-1, rows, width)
    return critics.forward(shared, views).view(members, num_critics, rows)
