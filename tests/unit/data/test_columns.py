"""Columns filled in place, and what is computed from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data import columns, moments, normalizer
from cqlray.data.columns import Columns, discounted_returns, fill_columns, join_shards
from cqlray.data.episode import Array, Shard
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from tests.unit.data.test_shards import random_shard


def concatenated(shards: list[Shard]) -> Columns:
    """The columns by numpy alone."""

    def joined(name: str) -> Array:
        return np.concatenate([getattr(shard, name) for shard in shards])

    lengths = joined("lengths")
    ends = np.zeros(int(lengths.sum()), bool)
    ends[np.cumsum(lengths) - 1] = True
    return Columns(
        observations=joined("observations"),
        rows=np.arange(len(ends)) + np.repeat(np.arange(len(lengths)), lengths),
        actions=joined("actions"),
        rewards=joined("rewards"),
        terminations=joined("terminations"),
        ends=ends,
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_filled_columns_are_the_joined_ones(lengths: list[list[int]]) -> None:
    shards = [random_shard(of_shard, seed) for seed, of_shard in enumerate(lengths)]
    filled = fill_columns(iter(shards), sum(map(sum, lengths)), sum(map(len, lengths)), 3, 2)
    joined = concatenated(shards)
    for found in (filled, join_shards(shards)):
        for field in dataclasses.fields(joined):
            one, other = getattr(found, field.name), getattr(joined, field.name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_shards_that_do_not_fit_are_said() -> None:
    shards = [random_shard([3, 2]), random_shard([4])]
    for transitions, episodes in ((8, 3), (9, 2), (10, 3), (9, 4)):
        with pytest.raises(
            UserError,
            match=f"says {transitions} transitions in {episodes} episodes, the shards hold 9 in 3",
        ):
            fill_columns(shards, transitions, episodes, 3, 2)
    with pytest.raises(UserError, match="have 4 and 2 dimensions, other shards' have 3 and 2"):
        fill_columns([random_shard([3]), random_shard([3], observation_dim=4)], 6, 2, 3, 2)
    with pytest.raises(UserError, match="do not fit in this machine's memory"):
        fill_columns(shards, 10**15, 3, 3, 2)


def test_columns_keep_episodes_apart() -> None:
    shards = [random_shard([3, 1], 0), random_shard([2], 1)]
    data = join_shards(shards)
    episodes = [episode for shard in shards for episode in shard.episodes()]
    np.testing.assert_array_equal(
        data.observations[data.rows], np.concatenate([e.observations[:-1] for e in episodes])
    )
    np.testing.assert_array_equal(
        data.observations[data.rows + 1], np.concatenate([e.observations[1:] for e in episodes])
    )
    np.testing.assert_array_equal(
        data.terminations, np.concatenate([e.terminations for e in episodes])
    )
    assert data.ends.tolist() == [False, False, True, True, False, True]


def test_discounted_returns_by_hand() -> None:
    rewards, ends = np.array([1.0, 2.0, 4.0, 8.0], np.float32), np.array([False, True, False, True])
    np.testing.assert_allclose(discounted_returns(rewards, ends, 0.5), [2.0, 2.0, 8.0, 8.0])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 1000),
)
def test_discounted_returns_are_those_of_a_loop_to_the_bit(
    lengths: list[int], discount: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rewards = (rng.standard_normal(sum(lengths)) * rng.integers(0, 2, sum(lengths))).astype("f4")
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum(lengths, dtype=int) - 1] = True
    expected, following = np.zeros(len(rewards), np.float32), 0.0
    for step in reversed(range(len(rewards))):
        following = float(rewards[step]) + (0.0 if ends[step] else discount * following)
        expected[step] = following
    found = discounted_returns(rewards, ends, discount)
    assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()


def test_in_place_is_what_a_copy_gives_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    rows = moments.BLOCK_ROWS * 2 + 17
    observations, actions = (rng.normal(3, 2, (rows, width)).astype(np.float32) for width in (5, 2))
    mean, std = normalizer.fit([observations])
    scaling = ActionScaling(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
    normalised, unit = (observations - mean) / std, scaling.to_unit(actions)
    columns.normalize_in_place(observations, mean, std)
    columns.scale_in_place(actions, scaling.to_unit)
    np.testing.assert_array_equal(observations, normalised)
    np.testing.assert_array_equal(actions, unit)
