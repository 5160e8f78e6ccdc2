"""A dataset's card: what is in it, in numbers and histograms that are small enough to draw, however
large the data.

Two passes over the shards: the first finds ranges and the observations' covariance, the second
counts. Each holds one block of rows at a time. Values that are not finite are in no histogram:
validation reports them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cqlray.data.episode import Array, Shard
from cqlray.data.moments import Moments, fits
from cqlray.data.source import number_names

RETURN_BINS, LENGTH_BINS, REWARD_BINS, ACTION_BINS = 40, 40, 60, 40
# Bins of each axis, over so many standard deviations to each side.
COVERAGE_BINS, COVERAGE_RADIUS = 120, 6.0
BLOCK_VALUES = 1 << 22  # float64 values of observations in memory at a time
# The covariance is found of so many dimensions; of wider observations of every second, third, ...
MOST_DIMENSIONS = 1_024
# More products would take minutes; of data that is wide and long, some of the rows are taken.
COVARIANCE_PRODUCTS = 10**11


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width."""

    low: float
    high: float
    counts: Array  # [bins] int64

    @property
    def edges(self) -> Array:
        """[bins + 1] float64."""
        edges: Array = np.linspace(self.low, self.high, len(self.counts) + 1)
        return edges


@dataclass(frozen=True)
class Tier:
    """The episodes of one tier."""

    name: str
    episodes: int
    transitions: int
    mean_return: float
    terminated: int  # episodes that ended by the environment's own end; the others were cut off
    returns: Histogram  # over the same bins in each tier


@dataclass(frozen=True)
class Coverage:
    """Observations, each dimension standardised, on their first two principal components."""

    # [COVERAGE_BINS, COVERAGE_BINS] int64: first and second component, in standard deviations
    counts: Array
    outside: int  # observations further than COVERAGE_RADIUS from the mean on one of the two
    components: Array  # [2, observation_dim] float64: weights of the standardised dimensions
    # Only every such dimension of wide observations was looked at, the others have no weight; or 1.
    every: int
    explained: tuple[float, float]  # share of the standardised variance on each


@dataclass(frozen=True)
class Card:
    """A dataset at a glance."""

    episodes: int
    transitions: int
    tiers: tuple[Tier, ...]
    lengths: Histogram  # steps of an episode
    rewards: Histogram
    reward_mean: float
    reward_std: float
    # For each dimension, over its bounds, or over what occurs where they are not known.
    actions: tuple[Histogram, ...]
    action_names: tuple[str, ...]
    coverage: Coverage

    @property
    def terminated(self) -> float:
        """Share of the episodes that ended by the environment's own end; the others were cut
        off.
        """
        return sum(tier.terminated for tier in self.tiers) / max(self.episodes, 1)

    @property
    def returns(self) -> Histogram:
        """Of all tiers together."""
        first = self.tiers[0].returns
        return Histogram(
            first.low, first.high, np.sum([tier.returns.counts for tier in self.tiers], axis=0)
        )


def card(description: dict[str, Any], shards: Callable[[], Iterable[Shard]]) -> Card:
    """The card of a dataset.

    Args:
        description: what dataset.json holds.
        shards: called twice; the native shards, one by one, at least one.
    """
    extents = _Extents(description)
    for shard in shards():
        extents.add(shard)
    counts = _Counts(description, extents)
    for shard in shards():
        counts.add(shard)
    return counts.finish()


def _rows(values: Array) -> Iterator[Array]:
    """Blocks of rows of [N, width] as float64, without rows that have a value that is not
    finite.
    """
    step = max(1, BLOCK_VALUES // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        block = values[start : start + step]
        yield block[fits(block).all(axis=1)].astype(np.float64)


class _Extents:
    """The first pass: ranges, and mean and covariance of the observations."""

    def __init__(self, description: dict[str, Any]) -> None:
        environment = description["environment"]
        self.size = environment["observation_dim"]
        self.every = -(-self.size // MOST_DIMENSIONS)
        size = -(-self.size // self.every)
        self.returns, self.lengths, self.rewards = Moments(1), Moments(1), Moments(1)
        self.actions = Moments(environment["action_dim"])
        self.step = 1 + description["transitions"] * size * size // COVARIANCE_PRODUCTS
        self.count, self.mean, self.products = 0, np.zeros(size), np.zeros((size, size))

    def add(self, shard: Shard) -> None:
        self.returns.add(shard.returns()[:, None])
        self.lengths.add(shard.lengths[:, None])
        self.rewards.add(shard.rewards[:, None])
        self.actions.add(shard.actions)
        for block in _rows(shard.observations[:: self.step, :: self.every]):
            self._join(block)

    def _join(self, block: Array) -> None:
        """Chan, Golub and LeVeque's update (see moments.Moments), for the products of all pairs of
        dimensions.
        """
        if not len(block):
            return
        mean = block.mean(axis=0)
        total, move, centred = self.count + len(block), mean - self.mean, block - mean
        self.products += centred.T @ centred + np.outer(move, move) * (
            self.count * len(block) / total
        )
        self.mean += move * (len(block) / total)
        self.count = total

    def projection(self) -> tuple[Array, Array, tuple[float, float]]:
        """A matrix [dimensions looked at, 2] that projects centred observations to unit variance on
        each component; the components' weights; the shares of variance they explain.
        """
        std = np.sqrt(np.diag(self.products) / max(self.count, 1))
        # Constant dimensions play no part.
        scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
        variances, vectors = np.linalg.eigh(
            self.products * np.outer(scale, scale) / max(self.count, 1)
        )
        order = np.argsort(variances)[::-1][:2]
        weights, variance = np.zeros((2, len(std))), np.zeros(2)
        weights[: len(order)] = vectors[:, order].T
        variance[: len(order)] = variances[order].clip(0.0)
        # Signs that do not depend on the library.
        largest = weights[np.arange(2), np.abs(weights).argmax(axis=1)]
        weights *= np.where(largest < 0, -1.0, 1.0)[:, None]
        unit = np.divide(1.0, np.sqrt(variance), out=np.zeros(2), where=variance > 1e-12)
        explained = variance / max(variances.sum(), 1e-12)
        components = np.zeros((2, self.size))
        components[:, :: self.every] = weights
        return (
            (weights * unit[:, None] * scale).T,
            components,
            (float(explained[0]), float(explained[1])),
        )


class _Bins:
    """A histogram to add values to; values beyond its range are counted in its outer bins."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        if not (np.isfinite(low) and np.isfinite(high)):  # nothing finite was there
            low, high = 0.0, 1.0
        pad = 0.0 if high > low else max(0.5, abs(low) * 1e-6)
        self.low, self.high = float(low - pad), float(high + pad)
        self.counts = np.zeros(bins, np.int64)

    def add(self, values: Array) -> None:
        kept = np.clip(values[fits(values)].astype(np.float64), self.low, self.high)
        self.counts += np.histogram(kept, len(self.counts), (self.low, self.high))[0]

    def finish(self) -> Histogram:
        return Histogram(self.low, self.high, self.counts)


def _bins(moments: Moments, bins: int) -> _Bins:
    return _Bins(moments.minimum[0], moments.maximum[0], bins)


def _length_bins(lengths: Moments) -> _Bins:
    """Bins over whole numbers of steps, the same number of lengths in each."""
    low, high = int(lengths.minimum[0]), int(lengths.maximum[0])
    width = -(-(high - low + 1) // LENGTH_BINS)
    bins = -(-(high - low + 1) // width)
    return _Bins(low - 0.5, low - 0.5 + bins * width, bins)


class _Counts:
    """The second pass: the histograms."""

    def __init__(self, description: dict[str, Any], extents: _Extents) -> None:
        self.description, self.extents = description, extents
        environment = description["environment"]
        low, high = environment.get("action_low"), environment.get("action_high")
        if low is None or high is None:
            low, high = extents.actions.minimum, extents.actions.maximum
        self.actions = [_Bins(*bounds, ACTION_BINS) for bounds in zip(low, high, strict=True)]
        self.rewards = _bins(extents.rewards, REWARD_BINS)
        self.lengths = _length_bins(extents.lengths)
        self.returns: dict[str, _Bins] = {}
        self.terminated: dict[str, int] = {}
        self.projection, self.components, self.explained = extents.projection()
        self.coverage, self.outside = np.zeros(COVERAGE_BINS**2, np.int64), 0

    def add(self, shard: Shard) -> None:
        tier = shard.tier
        self.returns.setdefault(tier, _bins(self.extents.returns, RETURN_BINS)).add(shard.returns())
        terminated = int(shard.terminations[shard.last_steps].sum())
        self.terminated[tier] = self.terminated.get(tier, 0) + terminated
        self.lengths.add(shard.lengths)
        self.rewards.add(shard.rewards)
        for dimension, bins in enumerate(self.actions):
            bins.add(shard.actions[:, dimension])
        for block in _rows(shard.observations[:, :: self.extents.every]):
            self._cover(block)

    def _cover(self, block: Array) -> None:
        shares = ((block - self.extents.mean) @ self.projection / COVERAGE_RADIUS + 1.0) / 2.0
        inside = ((shares >= 0.0) & (shares < 1.0)).all(axis=1)
        self.outside += int((~inside).sum())
        places = (shares[inside] * COVERAGE_BINS).astype(np.int64)
        flat = places[:, 0] * COVERAGE_BINS + places[:, 1]
        self.coverage += np.bincount(flat, minlength=COVERAGE_BINS**2)

    def finish(self) -> Card:
        described, columns = self.description["tiers"], self.description.get("columns", {})
        tiers = [
            Tier(
                name=name,
                episodes=described[name]["episodes"],
                transitions=described[name]["transitions"],
                mean_return=described[name]["mean_return"],
                terminated=self.terminated[name],
                returns=bins.finish(),
            )
            for name, bins in self.returns.items()
        ]
        return Card(
            episodes=self.description["episodes"],
            transitions=self.description["transitions"],
            tiers=tuple(tiers),
            lengths=self.lengths.finish(),
            rewards=self.rewards.finish(),
            reward_mean=float(self.extents.rewards.mean[0]),
            reward_std=float(self.extents.rewards.std[0]),
            actions=tuple(bins.finish() for bins in self.actions),
            action_names=tuple(number_names(columns, "action", len(self.actions))),
            coverage=Coverage(
                counts=self.coverage.reshape(COVERAGE_BINS, COVERAGE_BINS),
                outside=self.outside,
                components=self.components,
                every=self.extents.every,
                explained=self.explained,
            ),
        )
