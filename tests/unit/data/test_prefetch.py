"""The prefetcher: every block is its own function's value, errors arrive, threads go."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.episode import Array
from cqlray.data.prefetch import Prefetcher


def draw(block: int) -> Array:
    return np.random.default_rng(block).integers(0, 1000, 8)


def gather(index: Array) -> dict[str, Array]:
    return {"values": index * 2}


def threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("cqlray-prefetch")
    ]


@settings(max_examples=30, deadline=None)
@given(asked=st.lists(st.integers(0, 12), min_size=1, max_size=20), depth=st.integers(0, 3))
def test_a_block_does_not_depend_on_what_was_asked_before(asked: list[int], depth: int) -> None:
    prefetcher = Prefetcher(draw, gather, depth)
    for block in asked:
        np.testing.assert_array_equal(prefetcher.block(block)["values"], draw(block) * 2)
    prefetcher.close()


def test_the_next_blocks_are_made_while_the_caller_works() -> None:
    made: list[int] = []
    third = threading.Event()

    def drawn(block: int) -> Array:
        made.append(block)
        if block == 7:
            third.set()
        return draw(block)

    prefetcher = Prefetcher(drawn, gather, depth=2)
    prefetcher.block(5)
    assert third.wait(10)
    prefetcher.block(6)
    prefetcher.close()
    assert made[:3] == [5, 6, 7]
    assert set(made) <= {5, 6, 7, 8}


def test_an_error_is_raised_where_its_block_is_asked_for() -> None:
    def fails_at_3(block: int) -> Array:
        if block == 3:
            raise ValueError("block 3 is bad")
        return draw(block)

    prefetcher = Prefetcher(fails_at_3, gather)
    assert prefetcher.block(2)["values"].shape == (8,)
    for _ in range(2):
        with pytest.raises(ValueError, match="block 3 is bad"):
            prefetcher.block(3)
    np.testing.assert_array_equal(prefetcher.block(4)["values"], draw(4) * 2)
    prefetcher.close()


def test_no_thread_is_left() -> None:
    prefetcher = Prefetcher(draw, gather)
    prefetcher.block(0)
    assert threads()
    prefetcher.close()
    assert not threads()
    with pytest.raises(RuntimeError):
        prefetcher.block(1)

    class Holder:
        """Its prefetcher calls it: a cycle, as in the learner's."""

        def __init__(self) -> None:
            self.prefetcher = Prefetcher(self.draw, gather)

        def draw(self, block: int) -> Array:
            return draw(block)

    holder = Holder()
    holder.prefetcher.block(0)
    assert threads()
    del prefetcher, holder
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not threads()
