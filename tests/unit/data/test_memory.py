"""Where data is kept while it is trained on."""

from __future__ import annotations

import pytest

from cqlray.data.columns import join_shards
from cqlray.data.memory import data_bytes, where_data_lives
from tests.unit.data.test_shards import random_shard


@pytest.mark.parametrize(
    ("size", "device", "host", "place"),
    [
        (1, None, 16, "device"),
        (1, 40, 16, "device"),
        (30, 24, 64, "host"),
        (23, 24, 64, "host"),
        (1, 0, 16, "host"),
        (14, None, 16, "disk"),
        (1, 40, 0.5, "disk"),
    ],
)
def test_where_data_lives(size: float, device: float | None, host: float, place: str) -> None:
    free = None if device is None else int(device * 2**30)
    found, why = where_data_lives(int(size * 2**30), free, int(host * 2**30))
    assert found == place
    assert "GiB" in why
    assert "\n" not in why


def test_data_bytes_are_the_columns() -> None:
    data = join_shards([random_shard([7, 4])])
    on_device = (
        data.observations.nbytes + data.rows.nbytes + data.actions.nbytes + 2 * data.rewards.nbytes
    )
    assert data_bytes(11, 2, 3, 2) == on_device
