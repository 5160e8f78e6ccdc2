"""How fast d3rlpy's CQL makes the same updates, compared with cqlray, in one run.

    pip install 'cqlray[peers]'
    cqlray benchmark peers --workload P

Each library works in its own process, with its own defaults for memory, and the two take turns. An
update is timed with everything that belongs to it: the batch drawn from 20,000 random transitions
in memory, losses, gradients, optimisers, target networks. d3rlpy's is what its `fit` does for a
step (`sample_transition_batch`, then `update`), without its logging.

Equal: hidden layers, batch, K, critics, learning rates, tau, discount, float32, threads; the
temperature is learnt, the conservative term's multiplier only if cqlray's is (lagrange). Different,
as the libraries are: without entropy_backup d3rlpy's target takes the policy's mean action where
cqlray samples one; d3rlpy's policy has two heads where cqlray's last layer holds both; d3rlpy has
no clip of gradients, difference clip, Cal-QL nor behaviour cloning, which no workload uses; d3rlpy
copies each transition of a batch from its episode, cqlray gathers the batch from one table.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from cqlray.benchmarks.command import ABOUT, Parser, parse, show
from cqlray.benchmarks.contestants import ROUNDS, Turn, apart, ratios, timed
from cqlray.benchmarks.learner import TRANSITIONS, WORKLOADS, Workload
from cqlray.benchmarks.members import SECONDS, WARM_UP, Updates
from cqlray.errors import UserError

STEPS_PER_EPISODE = 200


class D3rlpyUpdates:
    """d3rlpy's CQL, set up as the workload says."""

    def __init__(self, workload: str, threads: int) -> None:
        # What d3rlpy and its dependencies print here is not for the reader of the results.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            sizes = WORKLOADS[workload]
            self.buffer = _buffer(sizes)
            self.algorithm = _d3rlpy_config(sizes).create(device="cpu:0")
            self.algorithm.build_with_dataset(self.buffer)
        torch.set_num_threads(threads)
        self.batch_size = sizes.config.batch_size

    def turn(self, updates: int) -> Turn:
        """Make the updates."""

        def work() -> int:
            for _ in range(updates):
                self.algorithm.update(self.buffer.sample_transition_batch(self.batch_size))
            return updates

        return timed(work)


def _d3rlpy_config(sizes: Workload) -> Any:
    from d3rlpy.algos import CQLConfig
    from d3rlpy.models.encoders import VectorEncoderFactory

    config = sizes.config
    return CQLConfig(
        actor_learning_rate=config.policy_learning_rate,
        critic_learning_rate=config.critic_learning_rate,
        temp_learning_rate=config.temperature_learning_rate,
        # 0: no optimiser, no step
        alpha_learning_rate=config.multiplier_learning_rate if config.lagrange else 0.0,
        actor_encoder_factory=VectorEncoderFactory([config.hidden_units] * config.policy_layers),
        critic_encoder_factory=VectorEncoderFactory([config.hidden_units] * config.critic_layers),
        batch_size=config.batch_size,
        gamma=config.discount,
        tau=config.target_update_rate,
        n_critics=config.num_critics,
        initial_temperature=config.initial_temperature,
        initial_alpha=config.initial_multiplier,
        alpha_threshold=config.target_gap,
        conservative_weight=config.conservative_weight,
        n_action_samples=config.num_action_samples,
        soft_q_backup=config.entropy_backup,
        max_q_backup=config.max_target_backup,
    )


def _buffer(sizes: Workload) -> Any:
    """d3rlpy's buffer in memory, with as many random transitions as cqlray's table."""
    from d3rlpy.dataset import Episode, create_infinite_replay_buffer

    generator = np.random.default_rng(0)
    # The last step of an episode that was cut short starts no transition.
    steps = STEPS_PER_EPISODE + 1
    episodes = [
        Episode(
            observations=generator.standard_normal((steps, sizes.observation_dim), np.float32),
            actions=generator.uniform(-1.0, 1.0, (steps, sizes.action_dim)).astype(np.float32),
            rewards=generator.standard_normal((steps, 1), np.float32),
            terminated=False,
        )
        for _ in range(TRANSITIONS // STEPS_PER_EPISODE)
    ]
    return create_infinite_replay_buffer(episodes)


def measure(workload: str, threads: int, updates: int | None = None) -> dict[str, Any]:
    """The benchmark; keys as in the JSON that the command prints. `updates` is what each makes in
    each of five rounds.

    Raises:
        UserError: d3rlpy is not installed.
    """
    if importlib.util.find_spec("d3rlpy") is None:
        raise UserError(
            "benchmark peers needs d3rlpy, which is not installed: pip install 'cqlray[peers]'"
        )
    with (
        apart(Updates, workload, threads) as ours,
        apart(D3rlpyUpdates, workload, threads) as theirs,
    ):
        for contestant in (ours, theirs):
            contestant.call("turn", WARM_UP)
        if updates is None:
            updates = max(1, round(SECONDS * theirs.call("turn", WARM_UP).rate))
        rounds = [
            [contestant.call("turn", updates).rate for contestant in (ours, theirs)]
            for _ in range(ROUNDS)
        ]
    of_ours, of_theirs = zip(*rounds, strict=True)
    return {
        "workload": workload,
        "threads": threads,
        "updates_per_round": updates,
        "rounds": ROUNDS,
        "cqlray_updates_per_s": statistics.median(of_ours),
        "d3rlpy_updates_per_s": statistics.median(of_theirs),
        "ratio": ratios(of_ours, of_theirs),
        "versions": {name: version(name) for name in ("cqlray", "d3rlpy", "torch")},
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    ratio, versions = result["ratio"], result["versions"]
    spread = f"{ratio['smallest']:.2f} to {ratio['largest']:.2f} over the rounds"
    lines = [
        f"workload {result['workload']}, one member, CPU, {result['threads']} threads, float32,"
        f" {result['rounds']} rounds of {result['updates_per_round']} updates",
        f"  cqlray {versions['cqlray']:<8} {result['cqlray_updates_per_s']:>8,.1f} updates/s",
        f"  d3rlpy {versions['d3rlpy']:<8} {result['d3rlpy_updates_per_s']:>8,.1f} updates/s",
        f"  cqlray is {ratio['median']:.2f} times as fast ({spread})",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str], parser_class: Parser) -> int:
    """The command `cqlray benchmark peers`."""
    parser = parser_class("cqlray benchmark peers", description=ABOUT["peers"])
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, default="P", help="sizes, as in benchmark learner [P]")
    add(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads of each [all cores]",
    )
    add(
        "--updates",
        type=int,
        help=f"of each in each of {ROUNDS} rounds [what d3rlpy makes in {SECONDS:g} s]",
    )
    options = parse(parser, argv, positive=("threads", "updates"))
    result = measure(options.workload, options.threads, options.updates)
    return show(result, text, options.json)
