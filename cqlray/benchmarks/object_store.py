"""`cqlray benchmark data`, and besides the way data takes in a run: from shards in Ray's object
store to columns in an actor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cqlray.benchmarks import data as benchmark
from cqlray.benchmarks.command import Parser
from cqlray.benchmarks.data_rates import ROUNDS, Sizes
from cqlray.data.columns import fill_columns
from cqlray.data.episode import Shard
from cqlray.data.memory import data_bytes

if TYPE_CHECKING:
    from cqlray.runtime.cluster import Cluster


class Filler:
    """An actor that fills columns from shards as a learner does."""

    def fill(self, shape: tuple[int, int, int, int], *shards: Shard) -> float:
        """The seconds it takes; the shards are mapped before, but not read."""
        started = time.perf_counter()
        fill_columns(shards, *shape)
        return time.perf_counter() - started


def measure(sizes: Sizes) -> dict[str, float]:
    """Bytes of columns per second; the median over rounds."""
    from cqlray.runtime.cluster import put, run_with_actors
    from cqlray.runtime.joining import connect

    with connect():
        references, episodes = [], 0
        for shard in sizes.shards():
            references.append(put(shard))
            episodes += shard.num_episodes
        shape = (sizes.transitions, episodes, sizes.observation_dim, sizes.action_dim)

        async def fill(cluster: Cluster) -> list[float]:
            filler = cluster.start(Filler, cpus=0.5)
            return [await filler.ask("fill", shape, *references) for _ in range(ROUNDS)]

        seconds = run_with_actors(fill, print)
    return {"object_store_bytes_per_s": data_bytes(*shape) / statistics.median(seconds)}


def main(argv: Sequence[str] | None = None, parser_class: Parser = argparse.ArgumentParser) -> int:
    """The command `cqlray benchmark data`."""
    return benchmark.main(argv, parser_class, measure)
