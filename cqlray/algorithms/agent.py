"""AgentState, all that a checkpoint holds of a population, and the two steps that change it: Adam
and Polyak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cqlray.algorithms.networks import Shape, Stack
from cqlray.config.schema import SACConfig

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8

Scalars = dict[str, Tensor]


class Batch(NamedTuple):
    """A batch of transitions for each member; actions in [-1, 1], observations and rewards as
    trained on.
    """

    observations: Tensor  # [M, B, observation_dim]
    actions: Tensor  # [M, B, A]
    rewards: Tensor  # [M, B]
    next_observations: Tensor  # [M, B, observation_dim]
    terminations: Tensor  # [M, B] float, 1 at a termination
    data_returns: Tensor | None = None  # [M, B] discounted return from here in the data, for Cal-QL


@dataclass
class Adam:
    """Moments of one flat parameter tensor [M, P] (Kingma & Ba 2015), each member with its own
    learning rate.
    """

    first: Tensor
    second: Tensor

    @staticmethod
    def zeros(parameters: Tensor) -> Adam:
        return Adam(torch.zeros_like(parameters), torch.zeros_like(parameters))

    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor, step: Tensor) -> None:
        """Descend in place; parameters and gradient [M, P], rate [M]; `step` counts this step too
        (float64, no dimensions).
        """
        if parameters.device.type != "cpu":
            self.step_together(parameters, gradient, rate, step)
        else:
            # a member at a time, so that none of its bits depend on the others, and in one pass
            # over memory
            gradient = gradient.contiguous()  # as the others are: it is read as it lies in memory
            rows = (
                tensor.unbind() for tensor in (parameters, gradient, self.first, self.second, rate)
            )
            for own, of_loss, first, second, lr in zip(*rows, strict=True):
                torch._fused_adam_(
                    [own],
                    [of_loss],
                    [first],
                    [second],
                    [],
                    [step],
                    lr=lr,
                    beta1=ADAM_BETAS[0],
                    beta2=ADAM_BETAS[1],
                    weight_decay=0.0,
                    eps=ADAM_EPSILON,
                    amsgrad=False,
                    maximize=False,
                )

    def step_together(
        self, parameters: Tensor, gradient: Tensor, rate: Tensor, step: Tensor
    ) -> None:
        """`step` of all members at once: few kernels for a GPU."""
        first_bias = (1.0 - ADAM_BETAS[0] ** step).reciprocal()
        second_bias = (1.0 - ADAM_BETAS[1] ** step).rsqrt()
        self.first.lerp_(gradient, 1.0 - ADAM_BETAS[0])
        self.second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - ADAM_BETAS[1])
        scale = self.second.sqrt().mul_(second_bias).add_(ADAM_EPSILON)
        direction = torch.div(self.first, scale, out=scale)
        parameters.sub_(direction.mul_((rate * first_bias).unsqueeze(1)))


@dataclass
class AgentState:
    """M members: policy, critics, target critics, temperature and Lagrange multiplier, with their
    optimisers.
    """

    policy: Stack
    critics: Stack
    targets: Stack
    log_temperature: Tensor  # [M]
    log_multiplier: Tensor  # [M]
    policy_adam: Adam
    critics_adam: Adam
    temperature_adam: Adam
    multiplier_adam: Adam
    step: (
        Tensor  # float64, no dimensions: updates begun, counted on the device by the update itself
    )
    # the same number, counted here by who runs the updates: nobody waits for the device to know it
    updates: int = 0

    @property
    def num_members(self) -> int:
        return len(self.log_temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an update changes, by name; each tensor's first dimension counts members
        (times critics).
        """
        named = {
            "policy": self.policy.flat,
            "critics": self.critics.flat,
            "targets": self.targets.flat,
            "log_temperature": self.log_temperature,
            "log_multiplier": self.log_multiplier,
        }
        for name in ("policy", "critics", "temperature", "multiplier"):
            adam: Adam = getattr(self, f"{name}_adam")
            named[f"{name}_adam.first"] = adam.first
            named[f"{name}_adam.second"] = adam.second
        return named

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Take over what `tensors` of an equal agent held.

        Raises:
            ValueError: names or shapes differ.
        """
        own = self.tensors()
        if own.keys() != tensors.keys() or any(
            own[name].shape != tensors[name].shape for name in own
        ):
            raise ValueError(
                "the checkpoint was made with other networks or another number of members"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.set_updates(updates)

    def set_updates(self, updates: int) -> None:
        """Stand after so many updates."""
        self.updates = updates
        self.step.fill_(updates)


def network_shapes(config: SACConfig, observation_dim: int, action_dim: int) -> tuple[Shape, Shape]:
    """Shapes of the policy's and of each critic's network."""
    hidden = config.hidden_units
    policy = Shape((observation_dim, *[hidden] * config.policy_layers, 2 * action_dim))
    critic = Shape(
        (observation_dim + action_dim, *[hidden] * config.critic_layers, 1), config.layer_norm
    )
    return policy, critic


def initial_state(
    configs: Sequence[SACConfig],
    seeds: Sequence[int],
    observation_dim: int,
    action_dim: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> AgentState:
    """Fresh members; `seeds` are their initialisation seeds, `configs` their settings of one
    structure.

    `dtype` is that of the networks' matrix products, by default float32 as parameters and optimiser
    are.
    """
    policy_shape, critic_shape = network_shapes(configs[0], observation_dim, action_dim)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    policy = torch.stack([policy_shape.initial(g) for g in generators])
    critics = torch.stack(
        [critic_shape.initial(g) for g in generators for _ in range(configs[0].num_critics)]
    )
    policy, critics = policy.to(device), critics.to(device)
    log_temperature = torch.tensor([c.initial_temperature for c in configs]).log().to(device)
    log_multiplier = (
        torch.tensor([getattr(c, "initial_multiplier", 1.0) for c in configs]).log().to(device)
    )
    by_member = critics.view(len(configs), -1)
    return AgentState(
        policy=Stack(policy_shape, policy, dtype),
        critics=Stack(critic_shape, critics, dtype),
        targets=Stack(critic_shape, critics.clone(), dtype),
        log_temperature=log_temperature,
        log_multiplier=log_multiplier,
        policy_adam=Adam.zeros(policy),
        critics_adam=Adam.zeros(by_member),
        temperature_adam=Adam.zeros(log_temperature.unsqueeze(1)),
        multiplier_adam=Adam.zeros(log_multiplier.unsqueeze(1)),
        step=torch.zeros((), dtype=torch.float64, device=device),
    )


def member_scalars(configs: Sequence[SACConfig], action_dim: int, device: torch.device) -> Scalars:
    """The numbers that members have for themselves, [M] each, under their config names."""
    scalars = {}
    for field in dataclasses.fields(configs[0]):
        if "per_member" in field.metadata:
            values = [getattr(config, field.name) for config in configs]
            scalars[field.name] = torch.tensor(
                [-float(action_dim) if v is None else float(v) for v in values], device=device
            )
    return scalars


def clip_gradient(gradient: Tensor, largest_norm: Tensor) -> Tensor:
    """Scale each member's gradient [M, P] to at most its norm [M]."""
    norm = gradient.norm(dim=1)
    return gradient * torch.clamp(largest_norm / (norm + 1e-12), max=1.0).unsqueeze(1)


def polyak(targets: Stack, critics: Stack, rate: Tensor) -> None:
    """target += rate * (critic - target), rate [M]."""
    members = len(rate)
    targets.flat.view(members, -1).lerp_(critics.flat.view(members, -1), rate.unsqueeze(1))
