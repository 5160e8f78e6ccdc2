"""Named random streams: (run seed, purpose, indices) alone determine every random draw of a run.

Adding a purpose never changes another stream, and it does not matter which worker or node draws.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(run_seed: int, purpose: str, *indices: int) -> np.random.SeedSequence:
    """The seed sequence of one purpose, for instance stream(0, "collect", shard)."""
    # The count keeps (a,) and (a, 0) apart: a SeedSequence does not see trailing zeros.
    return np.random.SeedSequence([run_seed, zlib.crc32(purpose.encode()), len(indices), *indices])


def generator(run_seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """numpy's generator with the stream's seed."""
    return np.random.default_rng(stream(run_seed, purpose, *indices))


def integer_seed(run_seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed of the stream, for generators that take one integer."""
    return int(stream(run_seed, purpose, *indices).generate_state(1, np.uint64)[0] >> np.uint64(1))


def integer_seeds(run_seed: int, purpose: str, *indices: int, count: int) -> list[int]:
    """`count` 31-bit seeds of the stream, for environments' reset."""
    return [
        int(s >> np.uint32(1))
        for s in stream(run_seed, purpose, *indices).generate_state(count, np.uint32)
    ]
