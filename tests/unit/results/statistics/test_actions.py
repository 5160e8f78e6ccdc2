"""A policy's actions beside the log's: shares by hand, and each warning by a policy made for it."""

from __future__ import annotations

import numpy as np
import pytest

from cqlray.results.statistics.actions import Comparison, compare_actions
from cqlray.results.statistics.resampling import Floats

LOW, HIGH = np.array([-2.0]), np.array([2.0])


def compared(policy: Floats, logged: Floats) -> Comparison:
    observations = np.arange(len(logged), dtype=np.float64)[:, None]
    return compare_actions(
        observations, logged[:, None], lambda _: policy[:, None], LOW, HIGH, ["dose"]
    )


def test_shares_and_distances_by_hand() -> None:
    logged = np.array([0.0, 0.0, 1.0, 1.0])
    found = compared(np.array([0.5, 0.0, 2.0, -1.0]), logged)
    (one,) = found.dimensions
    assert (one.name, found.states) == ("dose", 4)
    assert one.distance == pytest.approx((0.5 + 0.0 + 1.0 + 2.0) / 4)
    assert one.outside_range == 0.5 and one.at_bound == 0.25 and one.logged_at_bound == 0.0
    assert sum(one.policy_counts) == sum(one.logged_counts) == 4
    assert [state.observation.tolist() for state in found.furthest] == [[3.0], [2.0], [0.0]]
    assert found.furthest[0].policy == [-1.0] and found.furthest[0].logged == [1.0]


def test_a_policy_that_does_what_the_log_does_is_not_warned_of() -> None:
    logged = np.random.default_rng(0).uniform(-2.0, 2.0, 1_000)
    assert compared(logged + 0.01, logged).warnings == []
    assert compared(np.where(logged > 0, 2.0, -2.0), np.where(logged > 0, 2.0, -2.0)).warnings == []


def test_collapse_onto_a_bound() -> None:
    logged = np.random.default_rng(0).uniform(-2.0, 2.0, 1_000)
    policy = np.where(np.arange(1_000) % 10 < 7, 2.0, logged)
    words = compared(policy, logged).warnings[0]
    assert words.startswith("dose: 70% of its actions lie on a bound, of the log's ")


def test_a_pump_without_its_boluses() -> None:
    """The issue's own case: a dose of 0.005 where the log has 0.021 on average and boluses."""
    generator = np.random.default_rng(0)
    logged = np.where(generator.random(2_000) < 0.02, 0.5, 0.011)
    (words,) = compared(np.full(2_000, 0.005), logged).warnings[:1]
    assert words == f"dose: it hardly varies (standard deviation 0, the log's {logged.std():.3g})"


def test_drift() -> None:
    logged = np.random.default_rng(0).normal(0.0, 0.2, 1_000)
    outside, shifted = compared(logged + 1.0, logged).warnings
    assert "99% of its actions lie outside the log's usual range" in outside
    assert shifted.startswith("dose: its mean is ")
