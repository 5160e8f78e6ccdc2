"""Small files that hold many values: refused by what their metadata says, before they are read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cqlray.data import parquet
from cqlray.data.formats import open_source
from cqlray.data.shards import from_parquet, to_parquet
from cqlray.errors import UserError
from cqlray.storage import outside
from tests.unit.data.test_shards import random_shard


def zeros(rows: int, width: int = 3) -> bytes:
    """A shard's file whose columns hold the same number all the time."""
    flat = pa.array(np.zeros(rows * width, np.float32))
    names = {"episode": pa.int32(), "step": pa.int32(), "reward": pa.float32(), "seed": pa.int64()}
    columns = {name: pa.array(np.zeros(rows), kind) for name, kind in names.items()}
    flags = pa.array(np.zeros(rows, bool))
    vectors = pa.FixedSizeListArray.from_arrays(flat, width)
    columns |= {"observation": vectors, "action": vectors, "tier": pa.array(["x"] * rows)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns | {"termination": flags, "truncation": flags}), sink)
    return sink.getvalue().to_pybytes()


def test_a_shard_that_exceeds_memory_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zeros(2_000_000)
    assert len(data) < 200_000
    monkeypatch.setattr(outside, "free_memory", lambda: 50_000_000)
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"x\.parquet: it takes 0.3 GiB of memory"):
        from_parquet(data, "x.parquet")
    assert pa.total_allocated_bytes() - before < 10 * len(data)


def test_a_shard_with_other_rows_than_its_description_says_is_refused_unread() -> None:
    with pytest.raises(UserError, match=r"30 rows; its content is not what dataset.json says, 15"):
        from_parquet(zeros(30), "x.parquet", 15)
    shard = random_shard([5, 9])
    assert from_parquet(to_parquet(shard), "x", 16).digest() == shard.digest()


def test_a_file_that_expands_as_no_recording_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ALWAYS_READ", 1_000_000)
    monkeypatch.setattr(parquet, "LARGEST_EXPANSION", 100)
    with pytest.raises(UserError, match="no recording packs like this"):
        from_parquet(zeros(100_000), "x.parquet")


def test_a_long_text_that_is_repeated_is_held_once(tmp_path: Path) -> None:
    """Written out, the two columns of text would take 20 GB."""
    rows, text = 100_000, "yes" + " " * 100_000
    once = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [text])
    columns = {name: np.zeros(rows) for name in ("observation", "action", "reward")}
    pq.write_table(
        pa.table({**columns, "episode": once, "truncated": once}),
        tmp_path / "log.parquet",
        store_schema=False,
    )
    tracemalloc.start()
    pieces = list(open_source(str(tmp_path / "log.parquet")).pieces())
    assert sum(piece.shard.num_transitions for piece in pieces) == rows - 1
    assert all(piece.shard.truncations.all() for piece in pieces)
    assert max(tracemalloc.get_traced_memory()[1], pa.total_allocated_bytes()) < 50_000_000
    tracemalloc.stop()
