"""Shards and their Parquet files."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.episode import Episode, Shard
from cqlray.data.shards import from_parquet, from_table, to_parquet, to_table
from cqlray.errors import UserError


def random_shard(
    lengths: list[int], seed: int = 0, observation_dim: int = 3, action_dim: int = 2
) -> Shard:
    """Episodes of the given lengths, each ending by a termination or a truncation."""
    rng = np.random.default_rng(seed)
    episodes = []
    for index, steps in enumerate(lengths):
        ends = np.zeros((2, steps), bool)
        ends[rng.integers(2), -1] = True
        episodes.append(
            Episode(
                observations=rng.normal(size=(steps + 1, observation_dim)).astype(np.float32),
                actions=rng.uniform(-2, 2, (steps, action_dim)).astype(np.float32),
                rewards=rng.normal(size=steps).astype(np.float32),
                terminations=ends[0],
                truncations=ends[1],
                seed=index,
            )
        )
    return Shard.of(episodes, "random")


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_parquet_round_trip_is_equal_to_the_bit(lengths: list[int], seed: int) -> None:
    shard = random_shard(lengths, seed)
    data = to_parquet(shard)
    back = from_parquet(data, "x")
    assert back.digest() == shard.digest()
    assert to_parquet(back) == data


def test_episodes_are_what_was_joined() -> None:
    shard = random_shard([3, 1, 5])
    episodes = list(shard.episodes())
    assert [len(e) for e in episodes] == [3, 1, 5]
    assert all(len(e.observations) == len(e) + 1 for e in episodes)
    assert Shard.of(episodes, "random").digest() == shard.digest()
    np.testing.assert_allclose(shard.returns(), [e.rewards.sum(dtype=np.float64) for e in episodes])


def test_digest_sees_every_column() -> None:
    shard = random_shard([4, 4])
    import dataclasses

    changed = {dataclasses.replace(shard, tier="expert").digest()}
    for name in (
        "observations",
        "actions",
        "rewards",
        "terminations",
        "truncations",
        "lengths",
        "seeds",
    ):
        array = getattr(shard, name).copy()
        array.flat[0] = not array.flat[0] if array.dtype == bool else array.flat[0] + 1
        changed.add(dataclasses.replace(shard, **{name: array}).digest())
    assert len(changed | {shard.digest()}) == 9


def test_pandas_reads_rows_of_transitions() -> None:
    shard = random_shard([3, 2])
    frame = pandas.read_parquet(io.BytesIO(to_parquet(shard)))
    assert len(frame) == 7
    steps = frame.dropna(subset="reward")
    assert len(steps) == 5
    np.testing.assert_array_equal(np.stack(steps["action"]), shard.actions)
    np.testing.assert_allclose(steps.groupby("episode")["reward"].sum(), shard.returns(), rtol=1e-6)


def test_damaged_files_get_one_line() -> None:
    data = to_parquet(random_shard([3]))
    for damaged in (b"", data[: len(data) // 2], b"hello world, this is not parquet"):
        with pytest.raises(UserError, match=r"^shard-7: .*Parquet"):
            from_parquet(damaged, "shard-7")
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).drop_columns(["reward"]), sink)
    with pytest.raises(UserError, match="no column reward"):
        from_parquet(sink.getvalue(), "shard-7")
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).slice(0, 2), sink)
    with pytest.raises(UserError, match="closing row"):
        from_parquet(sink.getvalue(), "shard-7")


def test_changed_tables_get_one_line() -> None:
    table = to_table(random_shard([3, 2]))
    index = table.column_names.index

    def told(changed: pa.Table, expected: str) -> None:
        with pytest.raises(UserError, match=f"^shard-7.*{expected}"):
            from_table(changed, "shard-7")

    told(table.append_column("seed", table["seed"]), "more than one column seed")
    told(
        table.set_column(index("seed"), "seed", table["seed"].cast(pa.string())),
        "column seed is string; it should be int64",
    )
    lists = table["observation"].cast(pa.list_(pa.float32()))
    told(
        table.set_column(index("observation"), "observation", lists),
        "it should be a fixed-size list of float",
    )
    told(
        pa.concat_tables([table.slice(0, 1), table.slice(2)]),
        "row 1, column step: it should be 1; rows are missing or moved",
    )
    holes = pa.array([None, *table["termination"].to_pylist()[1:]], pa.bool_())
    told(
        table.set_column(index("termination"), "termination", holes),
        "column termination has no value in 1 places",
    )
    holes = pa.array(
        [[1.0, None, 3.0], *table["observation"].to_pylist()[1:]], pa.list_(pa.float32(), 3)
    )
    told(
        table.set_column(index("observation"), "observation", holes),
        "column observation has no value in 1 places",
    )


@pytest.mark.parametrize("tier", ["\x1b[2J", "a" * 201, "two\nlines"])
def test_a_tier_that_nobody_could_read_is_refused(tier: str) -> None:
    shard = dataclasses.replace(random_shard([3]), tier=tier)
    with pytest.raises(UserError, match="a tier has a name of 200 printable characters at most"):
        from_parquet(to_parquet(shard), "x")
