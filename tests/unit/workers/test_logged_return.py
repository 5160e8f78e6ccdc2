"""What the log's policy earned, against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cqlray.algorithms.fqe import FQEConfig
from cqlray.data.columns import join_shards
from cqlray.data.episode import Episode, Shard
from cqlray.workers.fitted_q import FittedQ
from cqlray.workers.logged_return import has_successor, logged_returns, next_logged, standard_error
from tests.unit.workers.test_fitted_q import DISCOUNT, SCALING, SETTINGS, shard, snapshot


class Constant:
    """A Q that is 10 everywhere."""

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.full((1, len(observations)), 10.0)


def episode(rewards: list[float], terminated: bool) -> Episode:
    steps = len(rewards)
    last = np.arange(steps) == steps - 1
    observations = np.zeros((steps + 1, 2), np.float32)
    actions = np.arange(steps, dtype=np.float32)[:, None] / 4
    kind = np.float32
    return Episode(
        observations, actions, np.array(rewards, kind), last & terminated, last & (not terminated)
    )


def test_returns_are_discounted_and_what_a_time_limit_cut_off_is_fitted() -> None:
    """1 + 0.5 * 2 where the episode ended; 1 + 0.5 * 10 where it was cut after two steps, Q taking
    the last step's place; 10 alone where it was cut after one.
    """
    episodes = [episode([1.0, 2.0], True), episode([1.0, 2.0], False), episode([7.0], False)]
    data = join_shards([Shard.of(episodes, "log")])
    assert has_successor(data).tolist() == [True, True, True, False, False]
    found = logged_returns(
        data,
        torch.from_numpy(data.observations),
        torch.from_numpy(data.actions),
        [Constant()],  # type: ignore[list-item]
        0.5,
    )
    assert found.returns.tolist() == [2.0, 6.0, 10.0] and found.fitted.tolist() == [10.0] * 3
    assert found.tail_weight == pytest.approx((0.0 + 0.25 + 0.5) / 3)


def test_the_next_logged_action() -> None:
    assert next_logged(np.array([[1.0], [2.0], [3.0]])).tolist() == [[2.0], [3.0], [3.0]]


def test_the_standard_error_of_a_mean() -> None:
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert standard_error(np.array([1.0])) is None


def test_a_row_holds_the_estimate_against_the_log() -> None:
    """Uniform actions earn nothing on average; always 0.7 earns 0.7 a step for ever."""
    role = FittedQ(0, SCALING, DISCOUNT, 1, SETTINGS, *map(shard, range(8)))
    (row,) = role.evaluate(snapshot(0.7))
    gains = row["gain_fits"]
    assert np.mean(gains) == pytest.approx(row["fqe_return"] - row["log_return"], abs=1e-5)
    assert np.mean(gains) == pytest.approx(7.0, abs=1.0)
    assert row["log_return"] == pytest.approx(0.0, abs=0.6)
    assert row["log_return_fitted"] == pytest.approx(row["log_return"], abs=0.5)
    assert row["log_tail_weight"] == pytest.approx(DISCOUNT**8) and row["log_episodes"] == 80
    assert row["gain_error"] > 0.0 and 0.0 < row["log_return_error"] < 0.5


def test_a_log_without_a_successor_of_any_action_has_no_return() -> None:
    short = FQEConfig(hidden_units=8, batch_size=16, num_updates=20)
    cut = Shard.of([episode([1.0], False), episode([2.0], False)], "log")
    (row,) = FittedQ(0, SCALING, DISCOUNT, 1, short, cut).evaluate(snapshot(0.3))
    assert "log_return" not in row and row["fqe_return"] is not None
