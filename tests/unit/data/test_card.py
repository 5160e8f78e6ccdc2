"""The numbers of a data set's card, against numpy on all of the data at once."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.card import (
    ACTION_BINS,
    COVERAGE_BINS,
    LENGTH_BINS,
    RETURN_BINS,
    Card,
    Histogram,
    card,
)
from cqlray.data.episode import Array, Episode, Shard
from tests.datasets import describe

ENVIRONMENT = {
    "id": "X-v0",
    "observation_dim": 3,
    "action_dim": 2,
    "action_low": [-2.0, -1.0],
    "action_high": [2.0, 1.0],
}


def shard(
    lengths: list[int], seed: int, tier: str = "random", dims: tuple[int, int] = (3, 2)
) -> Shard:
    """Random episodes; those of an even number of steps end by themselves."""
    generator = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        last = np.arange(length) == length - 1
        mixed = generator.standard_normal((length + 1, dims[0])) @ generator.uniform(
            -1, 1, (dims[0], dims[0])
        )
        episode = Episode(
            observations=(mixed * 10.0 ** np.arange(dims[0]) + 5.0).astype(np.float32),
            actions=generator.uniform(-1, 1, (length, dims[1])).astype(np.float32),
            rewards=generator.normal(1.0, 2.0, length).astype(np.float32),
            terminations=last & (length % 2 == 0),
            truncations=last & (length % 2 == 1),
        )
        episodes.append(episode)
    return Shard.of(episodes, tier)


def card_of(shards: list[Shard], **environment: Any) -> Card:
    description = describe(shards, {**ENVIRONMENT, **environment})
    return card(description, lambda: iter(shards))


def everything(shards: list[Shard], name: str) -> Array:
    return np.concatenate([getattr(one, name) for one in shards])


SHARDS = [shard([50, 7, 120], 0), shard([33, 33], 1), shard([10] * 40, 2, "expert")]


def test_histograms_are_numpys() -> None:
    found = card_of(SHARDS)
    assert (found.episodes, found.transitions) == (45, 643)
    returns = np.concatenate([one.returns() for one in SHARDS])
    counts, edges = np.histogram(returns, RETURN_BINS)
    np.testing.assert_array_equal(found.returns.counts, counts)
    np.testing.assert_allclose(found.returns.edges, edges)
    rewards = everything(SHARDS, "rewards")
    np.testing.assert_array_equal(
        found.rewards.counts, np.histogram(rewards, len(found.rewards.counts))[0]
    )
    assert (found.reward_mean, found.reward_std) == pytest.approx(
        (rewards.mean(), rewards.std()), rel=1e-5
    )
    for dimension, (low, high) in enumerate([(-2.0, 2.0), (-1.0, 1.0)]):
        histogram = found.actions[dimension]
        assert (histogram.low, histogram.high) == (low, high)
        expected = np.histogram(
            everything(SHARDS, "actions")[:, dimension], ACTION_BINS, (low, high)
        )[0]
        np.testing.assert_array_equal(histogram.counts, expected)


def test_tiers_by_hand() -> None:
    random, expert = card_of(SHARDS).tiers
    assert (random.name, random.episodes, random.transitions, random.terminated) == (
        "random",
        5,
        243,
        2,
    )
    assert (expert.name, expert.episodes, expert.transitions, expert.terminated) == (
        "expert",
        40,
        400,
        40,
    )
    assert expert.mean_return == pytest.approx(SHARDS[2].returns().mean())
    assert card_of(SHARDS).terminated == 42 / 45
    assert (random.returns.counts.sum(), expert.returns.counts.sum()) == (5, 40)


def test_lengths_have_whole_numbers_of_steps_in_each_bin() -> None:
    lengths = card_of(SHARDS).lengths
    width = (lengths.high - lengths.low) / len(lengths.counts)
    assert width == round(width) and len(lengths.counts) <= LENGTH_BINS
    assert lengths.low == 6.5 and lengths.counts.sum() == 45
    assert lengths.counts[0] == (everything(SHARDS, "lengths") < 6.5 + width).sum()
    same = card_of([shard([200] * 3, 0)]).lengths
    assert same == Histogram(199.5, 200.5, same.counts) and same.counts.tolist() == [3]


def test_coverage_is_the_correlations_first_two_components() -> None:
    found = card_of(SHARDS).coverage
    observations = everything(SHARDS, "observations").astype(np.float64)
    standardised = (observations - observations.mean(axis=0)) / observations.std(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(standardised.T, bias=True))
    np.testing.assert_allclose(found.explained, variances[::-1][:2] / variances.sum(), rtol=1e-6)
    for own, right in zip(found.components, vectors.T[::-1][:2], strict=True):
        assert abs(own @ right) == pytest.approx(1.0)
        assert own[np.abs(own).argmax()] > 0
    positions = standardised @ found.components.T / np.sqrt(variances[::-1][:2])
    expected = np.histogram2d(*positions.T, COVERAGE_BINS, [[-6, 6], [-6, 6]])[0]
    # an observation on the edge of a bin, once in a while
    assert np.abs(found.counts - expected).sum() <= 4
    assert found.counts.sum() + found.outside == len(observations)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 1000))
def test_how_the_shards_are_cut_changes_nothing(cut: int, seed: int) -> None:
    whole = shard([5, 8, 13, 3] * 5, seed)
    episodes = list(whole.episodes())
    parts = [Shard.of(episodes[:cut], "random"), Shard.of(episodes[cut:], "random")]
    one, two = card_of([whole]), card_of(parts)
    np.testing.assert_allclose(one.coverage.explained, two.coverage.explained, rtol=1e-9)
    assert np.abs(one.coverage.counts - two.coverage.counts).sum() <= 4
    for first, second in zip(
        (one.returns, one.rewards, *one.actions),
        (two.returns, two.rewards, *two.actions),
        strict=True,
    ):
        np.testing.assert_array_equal(first.counts, second.counts)


def test_actions_without_bounds_have_the_range_that_occurs() -> None:
    found = card_of(SHARDS, action_low=None, action_high=None)
    actions = everything(SHARDS, "actions")
    assert (
        found.actions[0].low == actions[:, 0].min() and found.actions[1].high == actions[:, 1].max()
    )
    assert [histogram.counts.sum() for histogram in found.actions] == [643, 643]


def test_actions_beyond_their_bounds_are_counted_at_the_edge() -> None:
    found = card_of(SHARDS, action_low=[0.0, -1.0])
    low = everything(SHARDS, "actions")[:, 0]
    assert found.actions[0].counts.sum() == 643
    assert found.actions[0].counts[0] >= (low <= 0).sum()


def test_what_is_not_finite_is_left_out() -> None:
    damaged = shard([40, 40], 5)
    damaged.observations[3, 1] = np.nan
    damaged.actions[7, 0] = np.inf
    damaged.rewards[60] = 3e38
    found = card_of([damaged])
    assert found.coverage.counts.sum() + found.coverage.outside == 81
    assert found.actions[0].counts.sum() == 79 and found.actions[1].counts.sum() == 80
    assert found.rewards.counts.sum() == 80 and np.isfinite(found.coverage.components).all()


@pytest.mark.parametrize("size", [1, 2])
def test_constants_and_one_dimension(size: int) -> None:
    constant = shard([6], 0, dims=(size, 1))
    constant.observations[:] = 3.0
    constant.rewards[:] = 0.0
    bounds = {"action_low": [-1.0], "action_high": [1.0]}
    found = card_of([constant], observation_dim=size, action_dim=1, **bounds)
    assert found.coverage.explained == (0.0, 0.0)
    assert found.coverage.counts[COVERAGE_BINS // 2, COVERAGE_BINS // 2] == 7
    assert found.rewards.counts.sum() == 6 and found.rewards.low < 0.0 < found.rewards.high
    line = card_of([shard([60], 1, dims=(size, 1))], observation_dim=size, action_dim=1, **bounds)
    assert (
        line.coverage.explained[0] == pytest.approx(1.0)
        if size == 1
        else line.coverage.explained[1] > 0
    )


def test_memory_is_that_of_one_shard() -> None:
    one = shard([1000] * 20, 3)
    copies = 40

    def shards() -> Iterator[Shard]:
        for index in range(copies):
            yield dataclasses.replace(one, observations=one.observations + np.float32(index))

    description = describe(shards(), ENVIRONMENT)
    tracemalloc.start()
    found = card(description, shards)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.transitions == 20_000 * copies
    assert peak < 12 * one.observations.nbytes, "all shards together are 40 times that"


def test_of_wide_observations_every_so_many_dimensions_are_looked_at() -> None:
    size = 5_000
    generator = np.random.default_rng(0)
    one = shard([60], 0, dims=(1, 2))
    # of one rank and a phase: two components hold it
    waves = np.sin(np.arange(61)[:, None] / 7.0 + np.arange(size) / 900.0)
    pixels = (waves + 0.01 * generator.standard_normal((61, size))).astype(np.float32)
    found = card_of([dataclasses.replace(one, observations=pixels)], observation_dim=size).coverage
    assert found.every == 5 and sum(found.explained) > 0.99
    assert (
        found.components.shape == (2, size)
        and np.count_nonzero(found.components.any(axis=0)) == size // 5
    )
    assert found.counts.sum() + found.outside == 61


def test_observations_as_wide_as_pictures_fit_in_memory() -> None:
    size = 200_000  # whose covariance would hold 320 GB
    one = shard([3], 0, dims=(1, 2))
    pixels = np.random.default_rng(0).standard_normal((4, size), np.float32)
    tracemalloc.start()
    found = card_of([dataclasses.replace(one, observations=pixels)], observation_dim=size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.coverage.every == 196 and peak < 200 * 2**20
