"""Fitted Q evaluation of snapshots as a plain object, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray.algorithms.fqe import FQEConfig
from cqlray.algorithms.policy import Arrays
from cqlray.data.episode import Array, Episode, Shard
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.storage import checkpoint
from cqlray.workers import fitted_q
from cqlray.workers.files import StoredData
from cqlray.workers.fitted_q import FittedQ
from tests.unit.data.test_dataset import write_dataset

SCALING = ActionScaling(np.array([-2.0], np.float32), np.array([2.0], np.float32))
DISCOUNT = 0.9
SETTINGS = FQEConfig(hidden_units=16, batch_size=64, num_updates=800, learning_rate=3e-3)
SHORT = FQEConfig(hidden_units=8, batch_size=16, num_updates=60)
NUMBERS = ("fqe_return", "fqe_return_held_out", "fqe_bellman_error", "fqe_value")


def shard(seed: int, terminations: bool = False, episodes: int = 10, length: int = 8) -> Shard:
    """Uniform actions in [-2, 2], each earning half of itself wherever it is taken; one in four
    steps may terminate.
    """
    generator = np.random.default_rng(seed)

    def episode() -> Episode:
        steps = min(length, int(generator.geometric(0.25))) if terminations else length
        actions = generator.uniform(-2.0, 2.0, (steps, 1)).astype(np.float32)
        ends = np.arange(steps) == steps - 1
        done = ends & terminations
        observations = generator.normal(size=(steps + 1, 2)).astype(np.float32)
        return Episode(observations, actions, actions[:, 0] / 2, done, ends & ~done)

    return Shard.of([episode() for _ in range(episodes)], "random")


def snapshot(*actions: float, scale: float = 1.0, shift: float = 0.0, updates: int = 7) -> bytes:
    """Members that do the same everywhere, `actions` in [-1, 1]; member i has the index 10 + i."""
    count = len(actions)
    bias = np.stack(
        [np.arctanh(np.array(actions, np.float32)), np.zeros(count, np.float32)], axis=-1
    )
    arrays: Arrays = {
        "policy.0.weight": np.zeros((count, 2, 2), np.float32),
        "policy.0.bias": bias[:, None],
        "observation_mean": np.zeros(2, np.float32),
        "observation_std": np.ones(2, np.float32),
        "log_std_min": np.full(count, -5.0, np.float32),
        "reward_scale": np.full(count, scale, np.float32),
        "reward_shift": np.full(count, shift, np.float32),
    }
    return checkpoint.encode(
        arrays, {"members": [10 + i for i in range(count)], "updates": updates}
    )


def role(*data: Shard | StoredData, settings: FQEConfig = SHORT) -> FittedQ:
    return FittedQ(0, SCALING, DISCOUNT, 1, settings, *data)


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_estimates_are_the_returns_that_the_policies_would_have() -> None:
    """Always doing `a` earns a at each step: a / (1 - gamma) for ever, since no episode
    terminates.
    """
    actions = (-0.8, -0.3, 0.2, 0.7)
    rows = role(*map(shard, range(8)), settings=SETTINGS).evaluate(
        snapshot(*actions, scale=0.1, shift=2.0)
    )
    assert [(row["member"], row["updates"]) for row in rows] == [(10, 7), (11, 7), (12, 7), (13, 7)]
    for row, action in zip(rows, actions, strict=True):
        assert row["fqe_return"] == pytest.approx(action / (1.0 - DISCOUNT), abs=0.8)
        assert row["fqe_return"] == pytest.approx(np.mean(row["fqe_fits"]))
        assert row["fqe_return_held_out"] == pytest.approx(row["fqe_return"], abs=0.5)
        assert row["fqe_value"] == pytest.approx(0.1 * row["fqe_return"] + 2.0 / (1.0 - DISCOUNT))
        assert 0.0 < row["fqe_bellman_error"] < 0.5 and row["seconds"] > 0.0


def test_terminations_shorten_what_is_earned() -> None:
    """Each step is the last with probability 1/4, whatever is done (length 40 cuts nothing that
    matters).
    """
    shards = [shard(seed, terminations=True, episodes=40, length=40) for seed in range(8)]
    (row,) = role(*shards, settings=SETTINGS).evaluate(snapshot(0.7))
    assert row["fqe_return"] == pytest.approx(0.7 / (1.0 - 0.75 * DISCOUNT), abs=0.4)
    assert row["fqe_value"] == row["fqe_return"]
    (shifted,) = role(*shards).evaluate(snapshot(0.7, shift=1.0))
    assert shifted["fqe_value"] is None and shifted["fqe_return"] is not None


def test_the_same_numbers_twice_alone_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = snapshot(-0.8, 0.2), snapshot(0.7, 0.1, updates=8)
    judge = role(shard(0), shard(1))
    together = without_seconds(judge.evaluate(first, second))
    assert together == without_seconds(judge.evaluate(first, second))
    assert together == without_seconds(role(shard(0), shard(1)).evaluate(first, second))
    monkeypatch.setattr(fitted_q, "POLICIES_AT_ONCE", 1)
    alone = judge.evaluate(first) + judge.evaluate(second)
    for name in NUMBERS:
        np.testing.assert_allclose(
            [row[name] for row in alone], [row[name] for row in together], rtol=1e-3, atol=1e-3
        )


def test_a_member_that_is_not_finite_gets_none_and_harms_no_other() -> None:
    judge = role(shard(0))
    good = judge.evaluate(snapshot(-0.8, 0.2, 0.7))
    bad = judge.evaluate(snapshot(-0.8, float("nan"), 0.7))
    assert [bad[1][name] for name in NUMBERS] == [None] * 4
    assert bad[1]["fqe_fits"] == [None] * fitted_q.FITS
    assert without_seconds([bad[0], bad[2]]) == without_seconds([good[0], good[2]])


def test_a_stored_dataset_gives_what_its_shards_give(tmp_path: Path) -> None:
    shards = [shard(0), shard(1)]
    write_dataset(tmp_path, shards)
    stored = role(StoredData(tmp_path)).evaluate(snapshot(0.3))
    assert without_seconds(stored) == without_seconds(role(*shards).evaluate(snapshot(0.3)))


def test_of_a_large_dataset_whole_episodes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_q, "MOST_TRANSITIONS", 160)
    shards = [shard(seed) for seed in range(8)]  # 640 transitions
    judge = role(*shards)
    starts = np.concatenate([s.observations[:: 8 + 1] for s in shards])
    drawn = judge.observations[judge.initial]
    assert 10 <= len(drawn) <= 30 and np.isin(drawn, starts).all()
    assert len(judge.observations) == 9 * len(drawn)
    np.testing.assert_array_equal(role(*shards).observations, judge.observations)


def test_held_out_episodes_are_whole_and_not_fitted_on() -> None:
    judge = role(shard(0), shard(1))

    def episodes(rows: Array) -> set[int]:
        return set((rows // 9).tolist())

    assert judge.checked_on is not None
    fitted, checked = (
        episodes(judge.fitted_on.rows.numpy()),
        episodes(judge.checked_on.rows.numpy()),
    )
    assert checked == set(np.flatnonzero(judge.held_out).tolist()) and len(checked) == 3
    assert fitted | checked == set(range(20)) and not fitted & checked


def test_a_single_episode_is_fitted_on_and_nothing_is_held_out() -> None:
    (row,) = role(shard(0, episodes=1)).evaluate(snapshot(0.3))
    assert row["fqe_return"] is not None
    assert row["fqe_return_held_out"] is None and row["fqe_bellman_error"] is None


def test_what_is_no_snapshot_is_told() -> None:
    with pytest.raises(UserError, match="snapshot: not a readable"):
        role(shard(0)).evaluate(b"junk")
