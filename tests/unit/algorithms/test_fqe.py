"""Fitted Q evaluation against linear algebra on a chain of states."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from cqlray.algorithms import fqe
from cqlray.algorithms.population import TransitionTable

torch.set_num_threads(1)

STATES, DISCOUNT = 5, 0.8
# What the policy chooses in each state of the chain: -1 is left, 1 is right.
LEFT, RIGHT, MIXED = (np.array(choices) for choices in ([-1] * 5, [1] * 5, [1, -1, 1, 1, -1]))
SETTINGS = fqe.FQEConfig(hidden_units=32, batch_size=32, num_updates=1500, learning_rate=3e-3)
UNITS = fqe.Units(0.0, 1.0, -10.0, 10.0)


def step(state: int, action: int) -> tuple[int, float]:
    """Next state and reward; walking against the left wall stays there."""
    return min(max(state + action, 0), STATES - 1), [0.0, -0.5, 0.3, 0.0, 1.0][state] - 0.1 * action


def chain(terminating: bool) -> TransitionTable:
    """Each state and action once, each with two rows of its own; leaving the last state rightwards
    is termination or not.
    """
    pairs = [(state, action) for state in range(STATES) for action in (-1, 1)]
    outcomes = [step(*pair) for pair in pairs]
    visited = np.array(
        [[state, following] for (state, _), (following, _) in zip(pairs, outcomes, strict=True)]
    )
    done = [terminating and pair == (STATES - 1, 1) for pair in pairs]
    return TransitionTable(
        observations=torch.from_numpy(np.eye(STATES)[visited.reshape(-1)]),
        rows=torch.arange(0, 2 * len(pairs), 2),
        actions=torch.tensor([[action] for _, action in pairs], dtype=torch.float64),
        rewards=torch.tensor([reward for _, reward in outcomes], dtype=torch.float64),
        terminations=torch.tensor(done, dtype=torch.float64),
    )


def next_actions(table: TransitionTable, *policies: np.ndarray) -> Tensor:
    """[M, N, 1]."""
    following = table.observations[table.rows + 1].argmax(1).numpy()
    return torch.from_numpy(
        np.stack([policy[following] for policy in policies])[..., None].astype(float)
    )


def exact(policy: np.ndarray, terminating: bool) -> np.ndarray:
    """Q(s, a) of each state and action in the chain's order: (I - gamma P) Q = r."""
    size = 2 * STATES
    transition, rewards = np.zeros((size, size)), np.zeros(size)
    for state in range(STATES):
        for place, action in enumerate((-1, 1)):
            following, rewards[2 * state + place] = step(state, action)
            if not (terminating and (state, action) == (STATES - 1, 1)):
                transition[2 * state + place, 2 * following + (policy[following] > 0)] = 1.0
    return np.linalg.solve(np.eye(size) - DISCOUNT * transition, rewards)


def fitted(
    table: TransitionTable, actions: Tensor, settings: fqe.FQEConfig = SETTINGS
) -> fqe.QFunctions:
    q = fqe.QFunctions(table, actions, DISCOUNT, UNITS, settings, seed=3)
    q.fit()
    return q


def values(q: fqe.QFunctions) -> np.ndarray:
    """[M, N]: Q of the data's own states and actions."""
    actions = q.table.actions.expand(len(q.next_actions), -1, -1)
    return q.values(q.table.observations[q.table.rows], actions).numpy()


@pytest.mark.parametrize("terminating", [False, True])
def test_values_are_those_of_linear_algebra(terminating: bool) -> None:
    table = chain(terminating)
    policies = (LEFT, RIGHT, MIXED)
    q = fitted(table, next_actions(table, *policies))
    np.testing.assert_allclose(
        values(q), [exact(policy, terminating) for policy in policies], atol=0.03
    )
    # Nothing is left to regress: what Q is regressed on is Q.
    assert q.bellman_errors(table, q.next_actions).max() < 0.03


def test_a_termination_ends_the_sum_and_a_cut_does_not() -> None:
    """At the chain's right end 0.9 is earned for ever, or once."""
    for terminating, right in ((False, 0.9 / (1.0 - DISCOUNT)), (True, 0.9)):
        table = chain(terminating)
        np.testing.assert_allclose(
            values(fitted(table, next_actions(table, RIGHT)))[0, -1], right, atol=0.03
        )


def test_values_do_not_depend_on_the_units_that_networks_learn_in() -> None:
    table = chain(terminating=True)
    q = fqe.QFunctions(
        table,
        next_actions(table, RIGHT),
        DISCOUNT,
        fqe.Units(1.5, 2.0, -10.0, 10.0),
        SETTINGS,
        seed=3,
    )
    q.fit()
    np.testing.assert_allclose(values(q)[0], exact(RIGHT, terminating=True), atol=0.03)


def test_a_policy_alone_gets_what_it_gets_among_others() -> None:
    table, settings = chain(terminating=False), dataclasses.replace(SETTINGS, num_updates=200)
    policies = next_actions(table, LEFT, RIGHT, MIXED, -MIXED)
    together = values(fitted(table, policies, settings))
    for place in range(4):
        alone = values(fitted(table, policies[place : place + 1], settings))[0]
        np.testing.assert_allclose(together[place], alone, atol=1e-9)


def test_the_same_bits_twice_and_others_with_another_seed() -> None:
    table, settings = chain(terminating=False), dataclasses.replace(SETTINGS, num_updates=50)
    actions = next_actions(table, LEFT, RIGHT)
    first, again = (fitted(table, actions, settings) for _ in range(2))
    assert torch.equal(first.networks.flat, again.networks.flat)
    other = fqe.QFunctions(table, actions, DISCOUNT, UNITS, settings, seed=4)
    other.fit()
    assert not torch.equal(first.networks.flat, other.networks.flat)


def test_a_policy_that_is_not_finite_harms_no_other() -> None:
    table, settings = chain(terminating=False), dataclasses.replace(SETTINGS, num_updates=100)
    actions = next_actions(table, LEFT, RIGHT, MIXED)
    good = values(fitted(table, actions, settings))
    actions[1] = torch.nan
    q = fitted(table, actions, settings)
    assert np.isnan(values(q)[1]).all() and q.bellman_errors(table, actions)[1].isnan()
    np.testing.assert_array_equal(values(q)[[0, 2]], good[[0, 2]])


def test_what_diverges_is_held_at_what_can_be_earned() -> None:
    """The deadly triad: one transition whose next state looks twice as good as its own (Tsitsiklis
    & Van Roy 1996).
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    table = TransitionTable(torch.cat([one, 2 * one]), torch.tensor([0]), one, one[0], 0 * one[0])
    settings = fqe.FQEConfig(
        hidden_units=8, num_updates=3000, learning_rate=1e-2, target_update_rate=0.2
    )
    ends = []
    for highest in (100.0, 1e12):
        q = fqe.QFunctions(
            table, one.unsqueeze(0), 0.99, fqe.Units(0.0, 1.0, 0.0, highest), settings, seed=0
        )
        q.fit()
        ends.append(values(q).item())
    assert ends[1] > 1e4
    assert ends[0] <= 1.0 + 0.99 * 100.0 + 1.0
