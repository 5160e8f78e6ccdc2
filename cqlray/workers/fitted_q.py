"""Fitted Q evaluation of snapshots: estimates their policies' returns from the dataset alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cqlray import seeding
from cqlray.algorithms import fqe
from cqlray.algorithms.allocator import keep_freed_memory
from cqlray.algorithms.policy import Array, Arrays, Policy, select_members
from cqlray.algorithms.population import TransitionTable
from cqlray.data import normalizer
from cqlray.data.columns import Columns, discounted_returns, join_shards
from cqlray.data.dataset import read_description
from cqlray.data.episode import Shard
from cqlray.data.loading import iterate_shards
from cqlray.envs.scaling import ActionScaling
from cqlray.storage import checkpoint
from cqlray.storage.rows import BesideTheLog, FittedQRow
from cqlray.storage.run_directory import finite
from cqlray.workers.files import StoredData
from cqlray.workers.logged_return import (
    LoggedReturns,
    beside_the_log,
    has_successor,
    logged_returns,
    next_logged,
)

# How often each policy's Q is fitted, each time with other initial networks and other batches; the
# estimate is the mean. If the fits order the policies differently, the estimates tell little. (If
# they agree, the estimates may still be wrong.)
FITS = 2
HELD_OUT_SHARE = 0.15
# From a larger dataset whole episodes are drawn, with about this many transitions in all: not many
# fewer than the updates use.
MOST_TRANSITIONS = 500_000
# Policies fitted side by side: with more, an update costs no less for each policy, and the memory
# grows.
POLICIES_AT_ONCE = 16
ROWS_AT_A_TIME = 2**13


@dataclass(frozen=True)
class _Subject:
    """A policy to estimate the return of: one member of one snapshot."""

    member: int
    updates: int
    arrays: Arrays


class FittedQ:
    """Holds the data in memory and no state between calls, so any such worker can take any call."""

    def __init__(
        self,
        run_seed: int,
        scaling: ActionScaling,
        discount: float,
        threads: int,
        settings: fqe.FQEConfig,
        *data: Shard | StoredData,
    ) -> None:
        """`data` are shards, or one StoredData. All members' returns are estimated with the same
        `discount`.

        Raises:
            NotShared: this node does not have the directory.
        """
        keep_freed_memory()
        torch.set_num_threads(threads)
        self.discount, self.settings = discount, settings
        self.seeds = [seeding.integer_seed(run_seed, "fitted-q", fit) for fit in range(FITS)]
        used = _columns(run_seed, data)
        self.used, self.scaling = used, scaling
        self.observations = used.observations
        first_steps = np.flatnonzero(np.concatenate([[True], used.ends[:-1]]))
        self.initial = used.rows[first_steps]
        self.held_out = _held_out(run_seed, len(self.initial))  # [E] bool
        self.of_held_out = np.repeat(self.held_out, np.diff(first_steps, append=len(used.ends)))
        mean, std = normalizer.fit([used.observations])
        self.normalized = torch.from_numpy((used.observations - mean) / std)
        self.fitted_on = self._table(~self.of_held_out)
        held_out = self.of_held_out
        self.checked_on = self._table(held_out) if held_out.any() else None
        self.terminates = bool(used.terminations.any())
        self.units = _units(used, discount)

    def _table(self, chosen: Array) -> TransitionTable:
        """The chosen transitions, [N] bool, over all observations."""
        data, scaling = self.used, self.scaling
        return TransitionTable(
            observations=self.normalized,
            rows=torch.from_numpy(data.rows[chosen]),
            actions=torch.from_numpy(scaling.to_unit(data.actions[chosen])),
            rewards=torch.from_numpy(data.rewards[chosen]),
            terminations=torch.from_numpy(data.terminations[chosen].astype(np.float32)),
        )

    def evaluate(self, *snapshots: bytes) -> list[FittedQRow]:
        """One row for each member of each snapshot, in their order. Numbers that are not finite are
        None.

        `member` and `updates` identify the policy. `fqe_return` is the mean of Q at the first state
        of the dataset's episodes: the discounted return, in the environment's rewards. `fqe_fits`
        has that of each of FITS fits, of which it is the mean. `fqe_return_held_out` is the same
        over the episodes that no Q was fitted on, and `fqe_bellman_error` the root mean squared
        error of Q on these, in rewards. `fqe_value` is `fqe_return` in the units of the rewards as
        that member was trained on; it is None where those are shifted and episodes terminate, since
        it would then depend on how long episodes last. A row has BesideTheLog, too, unless no
        logged action has a successor. `seconds` is the row's share of the time.

        Raises:
            UserError: not a snapshot.
        """
        subjects = [subject for data in snapshots for subject in _subjects(data)]
        parts = [
            subjects[start : start + POLICIES_AT_ONCE]
            for start in range(0, len(subjects), POLICIES_AT_ONCE)
        ]
        return [row for part in parts for row in self._evaluate(part)]

    def _evaluate(self, subjects: Sequence[_Subject]) -> list[FittedQRow]:
        started = time.monotonic()
        policies = [Policy(subject.arrays) for subject in subjects]
        fits = self._fits(policies)
        first_actions = self._actions(policies, self.initial)
        values = np.stack(
            [
                fit.values(self.normalized[self.initial], first_actions).double().numpy()
                for fit in fits
            ]
        )
        errors = self._errors(policies, fits)
        rows: list[FittedQRow] = []
        for policy, (subject, error) in enumerate(zip(subjects, errors, strict=True)):
            of_policy = values[:, policy]  # [FITS, E]
            beside: BesideTheLog = {}
            if self.logged is not None:
                beside = beside_the_log(of_policy, self.logged)
            row: FittedQRow = {
                "member": subject.member,
                "updates": subject.updates,
                "fqe_return": float(of_policy.mean()),
                "fqe_fits": of_policy.mean(1).tolist(),
                "fqe_return_held_out": (
                    float(of_policy[:, self.held_out].mean()) if self.held_out.any() else None
                ),
                "fqe_bellman_error": error,
                "fqe_value": self._as_trained_on(float(of_policy.mean()), subject.arrays),
                "seconds": 0.0,
                **beside,
            }
            rows.append(finite(row))
        seconds = (time.monotonic() - started) / len(rows)
        for row in rows:
            row["seconds"] = seconds
        return rows

    @cached_property
    def logged(self) -> LoggedReturns | None:
        """What the logged policy earned; None where its Q cannot be fitted. A fit of its own, as
        the students' estimates must not depend on it.
        """
        chosen = ~self.of_held_out & has_successor(self.used)
        if not chosen.any():
            return None
        table, actions = self._table(chosen), self.scaling.to_unit(self.used.actions)
        following = torch.from_numpy(next_logged(actions)[chosen])[None]
        fits = self._fitted(table, following)
        return logged_returns(
            self.used, self.normalized, torch.from_numpy(actions), fits, self.discount
        )

    def _fits(self, policies: Sequence[Policy]) -> list[fqe.QFunctions]:
        """Fit the policies' Q functions, once with each seed."""
        next_actions = self._actions(policies, self.fitted_on.rows.numpy() + 1)
        return self._fitted(self.fitted_on, next_actions)

    def _fitted(self, table: TransitionTable, next_actions: torch.Tensor) -> list[fqe.QFunctions]:
        """Q functions fitted to a table, one with each seed."""
        fits = [
            fqe.QFunctions(table, next_actions, self.discount, self.units, self.settings, seed)
            for seed in self.seeds
        ]
        for fit in fits:
            fit.fit()
        return fits

    def _errors(
        self, policies: Sequence[Policy], fits: Sequence[fqe.QFunctions]
    ) -> list[float | None]:
        """Each policy's Bellman error on the held-out episodes, the mean over the fits; None where
        there are no such episodes.
        """
        if self.checked_on is None:
            return [None] * len(policies)
        next_actions = self._actions(policies, self.checked_on.rows.numpy() + 1)
        errors: list[float | None] = (
            torch.stack([f.bellman_errors(self.checked_on, next_actions) for f in fits])
            .mean(0)
            .tolist()
        )
        return errors

    def _actions(self, policies: Sequence[Policy], rows: Array) -> torch.Tensor:
        """[M, n, A] float32: what each policy does at observation rows [n]."""
        observations = np.split(
            self.observations[rows], range(ROWS_AT_A_TIME, len(rows), ROWS_AT_A_TIME)
        )
        actions = [
            np.concatenate([policy.act(block[None])[0] for block in observations])
            for policy in policies
        ]
        return torch.from_numpy(np.stack(actions))

    def _as_trained_on(self, value: float, arrays: Arrays) -> float | None:
        """A return in the units of the rewards that a member was trained on, where it has one."""
        scale, shift = float(arrays["reward_scale"][0]), float(arrays["reward_shift"][0])
        if shift and self.terminates:
            return None
        return scale * value + shift / (1.0 - self.discount)


def _subjects(snapshot: bytes) -> list[_Subject]:
    arrays, metadata = checkpoint.decode(snapshot, "snapshot")
    return [
        _Subject(member, metadata["updates"], select_members(arrays, [position]))
        for position, member in enumerate(metadata["members"])
    ]


def _columns(run_seed: int, data: Sequence[Shard | StoredData]) -> Columns:
    """The episodes to use: all, or a random subset with about MOST_TRANSITIONS. Memory holds these
    and one shard.
    """
    shards: Iterable[Shard] = (shard for shard in data if isinstance(shard, Shard))
    total = sum(shard.num_transitions for shard in data if isinstance(shard, Shard))
    if isinstance(data[0], StoredData):
        data[0].require()
        description = read_description(data[0].directory)
        shards, total = iterate_shards(data[0].directory, description), description["transitions"]
    if total <= MOST_TRANSITIONS:
        return join_shards(list(shards))
    generator = seeding.generator(run_seed, "fitted-q-episodes")
    kept: list[Shard] = []
    for shard in shards:
        drawn = generator.random(shard.num_episodes) * total < MOST_TRANSITIONS
        drawn[0] |= not kept  # at least one
        episodes = [
            episode for episode, chosen in zip(shard.episodes(), drawn, strict=True) if chosen
        ]
        kept += [Shard.of(episodes, shard.tier)] if episodes else []
    return join_shards(kept)


def _held_out(run_seed: int, episodes: int) -> Array:
    """[E] bool: episodes that no Q is fitted on; none where there is only one."""
    order = seeding.generator(run_seed, "fitted-q-held-out").permutation(episodes)
    count = min(max(1, round(HELD_OUT_SHARE * episodes)), episodes - 1)
    mask: Array = order < count
    return mask


def _units(data: Columns, discount: float) -> fqe.Units:
    """Mean and spread of the data's discounted returns, and as bounds the returns of its worst and
    best reward for ever.
    """
    returns = discounted_returns(data.rewards, data.ends, discount)
    std = float(returns.std()) or 1.0
    ends = [0.0] if data.terminations.any() else []
    forever = [
        float(reward) / (1.0 - discount) for reward in (data.rewards.min(), data.rewards.max())
    ]
    return fqe.Units(float(returns.mean()), std, min(forever + ends), max(forever + ends))
