"""Writes in the background: in order, none lost, failures heard."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from cqlray.errors import StorageFailure
from cqlray.storage import writer
from cqlray.storage.writer import Writer


def waited(event: threading.Event) -> None:
    event.wait(10)


def test_writes_are_done_in_their_order() -> None:
    done: list[int] = []
    background = Writer()
    for number in range(200):
        background.submit(partial(done.append, number), size=1)
    background.flush()
    assert done == list(range(200))
    assert background.bytes == 0
    background.close()


def test_slow_storage_holds_nobody_up_until_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_BYTES", 100)
    open_again = threading.Event()
    background = Writer()
    background.submit(partial(waited, open_again), size=60)
    started = time.monotonic()
    background.submit(lambda: None, size=40)
    assert time.monotonic() - started < 1
    third = threading.Thread(target=background.submit, args=(lambda: None, 1))
    third.start()
    third.join(0.3)
    assert third.is_alive(), "one byte too many waits"
    open_again.set()
    third.join(5)
    assert not third.is_alive()
    background.flush()
    background.close()


def test_what_is_larger_than_the_limit_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_BYTES", 10)
    background, done = Writer(), []
    background.submit(lambda: done.append(1), size=1_000)
    background.submit(lambda: done.append(2), size=1_000)
    background.flush()
    assert done == [1, 2]
    background.close()


def test_after_a_failure_nothing_more_is_written_and_everybody_hears() -> None:
    def refuse() -> None:
        raise StorageFailure("the disk is full")

    background, done, all_there = Writer(), [], threading.Event()
    background.submit(lambda: done.append("before") if all_there.wait(10) else None)
    background.submit(refuse)
    background.submit(lambda: done.append("after"))
    all_there.set()
    with pytest.raises(StorageFailure, match="full"):
        background.flush()
    for method in (background.check, background.flush, lambda: background.submit(lambda: None)):
        with pytest.raises(StorageFailure, match="full"):
            method()
    assert done == ["before"], "a checkpoint never stands without what came before it"


def test_the_thread_ends() -> None:
    before = threading.active_count()
    background = Writer()
    assert threading.active_count() == before, "none before there is something to write"
    background.submit(lambda: None)
    background.flush()
    background.close()
    assert background.thread is not None
    background.thread.join(5)
    assert threading.active_count() == before
