"""The presets: complete configs to start from; a YAML file and flags change what they name."""

from __future__ import annotations

from typing import Any

from cqlray.config.schema import (
    CollectionConfig,
    CQLConfig,
    EvaluationConfig,
    RunConfig,
    TeacherConfig,
)

# Every number here was chosen by measurement on two cores; README shows the results over five run
# seeds.
_SMALL_AND_FAST: dict[str, Any] = {
    "hidden_units": 64,
    "batch_size": 128,
    "policy_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-3,
    "target_update_rate": 0.01,
    "reward_scale": 0.1,
}
_PENDULUM = RunConfig(
    teacher=TeacherConfig(
        **_SMALL_AND_FAST,
        rounds=20,
        episodes_per_round=2,
        evaluation_interval=2,
        initial_temperature=0.2,
    ),
    collection=CollectionConfig(tiers=("replay", "medium", "random"), episodes=(25,)),
    cql=CQLConfig(
        **_SMALL_AND_FAST, num_updates=10_000, num_action_samples=5, conservative_weight=1.0
    ),
    evaluation=EvaluationConfig(interval=500, episodes=20),
)

# The textbook's own numbers (DESIGN section 6); rewards become (r + 8) / 8.
_TEXTBOOK: dict[str, Any] = {
    "hidden_units": 128,
    "policy_layers": 1,
    "critic_layers": 2,
    "batch_size": 64,
    "policy_learning_rate": 3e-4,
    "critic_learning_rate": 3e-3,
    "temperature_learning_rate": 3e-4,
    "initial_temperature": 0.01,
    "target_entropy": -1.0,
    "reward_scale": 0.125,
    "reward_shift": 1.0,
    "entropy_backup": True,
}
_TUTORIAL = RunConfig(
    num_seeds=1,
    teacher=TeacherConfig(
        **_TEXTBOOK,
        rounds=100,
        episodes_per_round=1,
        warmup_rounds=0,
        pool_capacity=10_000,
        evaluation_interval=10,
        evaluation_episodes=10,
    ),
    collection=CollectionConfig(tiers=("replay",), episodes=(50,)),
    cql=CQLConfig(
        **_TEXTBOOK,
        num_updates=50_000,
        num_action_samples=5,
        conservative_weight=5.0,
        observation_normalization=False,
    ),
    evaluation=EvaluationConfig(interval=2_000, episodes=10, video=True),
)

PRESETS: dict[str, RunConfig] = {
    "general": RunConfig(),
    "pendulum": _PENDULUM,
    "tutorial": _TUTORIAL,
}


def preset_for(env_id: str) -> str:
    """The preset for an environment, where the user names none."""
    return "pendulum" if env_id == "Pendulum-v1" else "general"
