"""Snapshots: from an agent's tensors to the arrays that policy.Policy reads on workers without
torch.
"""

from __future__ import annotations

import numpy as np

from cqlray.algorithms.agent import AgentState, Scalars
from cqlray.algorithms.policy import Array, Arrays

_KEPT_SCALARS = ("log_std_min", "discount", "reward_scale", "reward_shift")


def snapshot_arrays(agent: AgentState, scalars: Scalars, mean: Array, std: Array) -> Arrays:
    """Policies, critics, normaliser, and what else acting and estimating values need of the
    members' settings, on the CPU.
    """
    arrays: Arrays = {"observation_mean": mean, "observation_std": std}
    for network, stack in (("policy", agent.policy), ("critics", agent.critics)):
        for name, view in stack.views.items():
            arrays[f"{network}.{name}"] = np.array(view.detach().cpu().numpy(), order="C")
    for name in _KEPT_SCALARS:
        arrays[name] = scalars[name].detach().cpu().numpy()
    return arrays
