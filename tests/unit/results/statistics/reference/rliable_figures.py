# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["rliable==1.2.0", "pandas<3", "setuptools<81"]
# ///
"""Writes rliable_figures.json: what rliable says of random score matrices, for tests/evaluation to
compare with.

rliable 1.2 needs arch < 8, which cannot be imported beside pandas 3, so it runs in an environment
of its own:

    uv run tests/unit/results/statistics/reference/rliable_figures.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

REPETITIONS = 20_000
IMPROVEMENT_REPETITIONS = 3_000
PROFILE_REPETITIONS = 5_000
METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "iqm": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "optimality_gap": metrics.aggregate_optimality_gap,  # below its own default threshold, 1
}


def matrices() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two groups' scores [members, environments], in shapes and of kinds that differ."""
    draw = np.random.default_rng(0)
    skewed = draw.gamma(1.0, 0.6, (10, 8)), draw.gamma(1.2, 0.6, (6, 8))
    few = draw.normal(0.5, 0.3, (3, 7)), draw.normal(0.6, 0.3, (4, 7))
    tied = draw.integers(0, 4, (8, 5)) / 2.0, draw.integers(0, 4, (8, 5)) / 2.0
    one_environment = draw.normal(0.0, 1.0, (12, 1)), draw.normal(0.5, 1.0, (9, 1))
    pairs = {"skewed": skewed, "few members": few, "tied": tied, "one environment": one_environment}
    return {name: (first.round(3), second.round(3)) for name, (first, second) in pairs.items()}


def figures(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """rliable's estimates and 95% intervals: [point, low, high]."""
    points, ends = library.get_interval_estimates(
        {"first": first},
        lambda x: np.array([metric(x) for metric in METRICS.values()]),
        reps=REPETITIONS,
    )
    improvement, improvement_ends = library.get_interval_estimates(
        {"pair": [first, second]},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=IMPROVEMENT_REPETITIONS,
    )
    thresholds = np.quantile(first, [0.1, 0.3, 0.5, 0.7, 0.9]).round(2)
    profile, band = library.create_performance_profile(
        {"first": first}, thresholds, reps=PROFILE_REPETITIONS
    )
    rows = np.vstack([points["first"], ends["first"]]).T
    return {
        "first": first.tolist(),
        "second": second.tolist(),
        "estimates": dict(zip(METRICS, rows.tolist(), strict=True)),
        "improvement": [float(improvement["pair"][0]), *improvement_ends["pair"][:, 0].tolist()],
        "thresholds": thresholds.tolist(),
        "profile": [profile["first"].tolist(), *band["first"].tolist()],
    }


if __name__ == "__main__":
    np.random.seed(1)  # rliable draws from numpy's global generator
    results = {name: figures(*pair) for name, pair in matrices().items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(results) + "\n")
