"""AgentState: everything about a population that a checkpoint holds, and the two steps that change
it, Adam and Polyak averaging.
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
    """A batch of transitions for each member; actions in [-1, 1], observations normalised and
    rewards scaled.
    """

    observations: Tensor  # [M, B, observation_dim]
    actions: Tensor  # [M, B, A]
    rewards: Tensor  # [M, B]
    next_observations: Tensor  # [M, B, observation_dim]
    terminations: Tensor  # [M, B] float, 1 at a termination
    data_returns: Tensor | None = None  # [M, B] discounted return of the data, for Cal-QL


@dataclass
class Adam:
    """Adam's moments of one flat parameter tensor [M, P] (Kingma & Ba 2015, arXiv 1412.6980,
    algorithm 1); learning rates differ between members.
    """

    first: Tensor
    second: Tensor

    @staticmethod
    def zeros(parameters: Tensor) -> Adam:
        return Adam(torch.zeros_like(parameters), torch.zeros_like(parameters))

    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor, step: Tensor) -> None:
        """Descend in place: parameters and gradient [M, P], rate [M]. `step` is the number of steps
        including this one (float64, no dimensions).
        """
        if parameters.device.type != "cpu":
            self.step_together(parameters, gradient, rate, step)
        else:
            # One member after another, so that a member's bits do not depend on the others; and
            # each in a single pass over memory, for which the gradient must lie as the rest does.
            gradient = gradient.contiguous()
            rows = (
                tensor.unbind() for tensor in (parameters, gradient, self.first, self.second, rate)
            )
            for values, of_loss, first, second, lr in zip(*rows, strict=True):
                torch._fused_adam_(
                    [values],
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
        """`step` for all members at once: few kernels, for a GPU."""
        first_bias = (1.0 - ADAM_BETAS[0] ** step).reciprocal()
        second_bias = (1.0 - ADAM_BETAS[1] ** step).rsqrt()
        self.first.lerp_(gradient, 1.0 - ADAM_BETAS[0])
        self.second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - ADAM_BETAS[1])
        scale = self.second.sqrt().mul_(second_bias).add_(ADAM_EPSILON)
        direction = torch.div(self.first, scale, out=scale)
        parameters.sub_(direction.mul_((rate * first_bias).unsqueeze(1)))


@dataclass
class AgentState:
    """M members: policies, critics, target critics, temperatures and Lagrange multipliers, with
    their optimisers.
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
    # Updates begun, float64 without dimensions: counted on the device, by the update itself.
    step: Tensor
    # The same number, counted by whoever runs the updates, so that nobody waits for the device.
    updates: int = 0

    @property
    def num_members(self) -> int:
        return len(self.log_temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an update changes, by name; the first dimension of each tensor is M or
        M * N.
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
        """Copy what `tensors` gave of an agent with the same networks and members.

        Raises:
            ValueError: names or shapes differ.
        """
        mine = self.tensors()
        if mine.keys() != tensors.keys() or any(
            mine[name].shape != tensors[name].shape for name in mine
        ):
            raise ValueError(
                "the checkpoint was made with other networks or another number of members"
            )
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
        self.set_updates(updates)

    def set_updates(self, updates: int) -> None:
        """Count from so many updates on."""
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
    """Members before their first update: their settings, which have one structure, and the seeds of
    their initial parameters.

    `dtype` is that of the networks' matrix products; by default it is float32, as that of
    parameters and optimiser always is.
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
    """The settings that may differ between members, [M] each, under their names in the config."""
    scalars = {}
    for field in dataclasses.fields(configs[0]):
        if "per_member" in field.metadata:
            values = [getattr(config, field.name) for config in configs]
            scalars[field.name] = torch.tensor(
                [-float(action_dim) if v is None else float(v) for v in values], device=device
            )
    return scalars


def clip_gradient(gradient: Tensor, largest_norm: Tensor) -> Tensor:
    """Scale down a member's gradient, of [M, P], that is longer than its largest norm, of [M]
    (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).
    """
    norm = gradient.norm(dim=1)
    return gradient * torch.clamp(largest_norm / (norm + 1e-12), max=1.0).unsqueeze(1)


def polyak(targets: Stack, critics: Stack, rate: Tensor) -> None:
    """target += rate * (critic - target), rate [M] (Lillicrap et al. 2016, arXiv 1509.02971,
    algorithm 1).
    """
    members = len(rate)
    targets.flat.view(members, -1).lerp_(critics.flat.view(members, -1), rate.unsqueeze(1))
