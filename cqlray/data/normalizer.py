"""Observation statistics, fitted on the dataset and saved with the policy."""

from __future__ import annotations

import numpy as np

from cqlray.data.episode import Array

# A column that hardly moves must not be blown up to unit variance.
SMALLEST_STD = 1e-3


def fit(observations: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of [R, observation_dim], float32 each; computed in float64."""
    mean = observations.mean(0, dtype=np.float64)
    std = observations.std(0, dtype=np.float64)
    return mean.astype(np.float32), np.maximum(std, SMALLEST_STD).astype(np.float32)


def identity(observation_dim: int) -> tuple[Array, Array]:
    """Mean 0 and standard deviation 1."""
    return np.zeros(observation_dim, np.float32), np.ones(observation_dim, np.float32)
