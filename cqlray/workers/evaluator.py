"""Evaluator: tests snapshots with the deterministic policy, all members and episodes at once."""

from __future__ import annotations

import time

import numpy as np

from cqlray.algorithms.policy import Arrays, DeterministicActor, Policy, UniformActor
from cqlray.config.schema import EnvConfig
from cqlray.data.episode import Episode
from cqlray.envs.make import EnvPool, EnvSpec
from cqlray.envs.rollout import Actor, rollout
from cqlray.storage import checkpoint
from cqlray.storage.rows import Played


class Evaluator:
    """Holds environments; keeps nothing from one call to the next."""

    def __init__(self, env: EnvConfig, spec: EnvSpec) -> None:
        self.spec = spec
        self.envs = EnvPool(env)

    def evaluate(self, snapshot: bytes | None, seeds: tuple[int, ...]) -> list[Played]:
        """Test a snapshot: one row for each member, with episodes' returns, lengths and values.


        Every member plays the same episode seeds. Without a snapshot uniform actions are tested.
        `value` is the mean of min_i Q_i at the first state and action; `discounted_return` is what
        was then seen, of the rewards as trained on; `tail_value` is the discounted min_i Q_i at the
        end of truncated episodes, which the time limit hid. `excesses` has value - discounted
        return - tail value of each episode, `tail_weight` the mean discount of what the limit hid.

        Raises:
            EnvironmentFailure: the environment raised.
        """
        started = time.monotonic()
        arrays = None if snapshot is None else checkpoint.decode(snapshot)[0]
        policy = None if arrays is None else Policy(arrays)
        members = 1 if policy is None else policy.num_members
        actor: Actor = (
            UniformActor(self.spec.action_dim, seeds)
            if policy is None
            else DeterministicActor(policy)
        )
        envs = self.envs.take(members * len(seeds))
        episodes = rollout(actor, envs, list(seeds) * members, self.spec.scaling)
        rows = []
        for member in range(members):
            own = episodes[member * len(seeds) : (member + 1) * len(seeds)]
            row: Played = {
                "returns": [float(e.rewards.sum(dtype=np.float64)) for e in own],
                "lengths": [len(e) for e in own],
            }
            if policy is not None and arrays is not None:
                self._calibrate(row, policy.member(member), arrays, member, own)
            rows.append(row)
        for row in rows:
            row["seconds"] = time.monotonic() - started
        return rows

    def _calibrate(
        self, row: Played, policy: Policy, arrays: Arrays, member: int, episodes: list[Episode]
    ) -> None:
        """Add to a row how a member's values compare with what was then seen."""
        discount, scale, shift = (
            float(arrays[name][member]) for name in ("discount", "reward_scale", "reward_shift")
        )
        lengths = np.array([len(e) for e in episodes])
        seen = [
            float(((e.rewards * scale + shift) * discount ** np.arange(len(e))).sum())
            for e in episodes
        ]
        first = np.stack([e.observations[0] for e in episodes])[None]
        last = np.stack([e.observations[-1] for e in episodes])[None]
        truncated = np.array([e.truncations[-1] for e in episodes])
        tails = policy.value(last, policy.act(last))[0] * discount**lengths * truncated
        values = policy.value(first, policy.act(first))[0]
        row["value"] = float(values.mean())
        row["discounted_return"] = float(np.mean(seen))
        row["tail_value"] = float(tails.mean())
        row["tail_weight"] = float((discount**lengths * truncated).mean())
        row["excesses"] = (values - seen - tails).tolist()
