"""`cqlray benchmark data` on a real cluster."""

from __future__ import annotations

import json

import pytest

from cqlray.cli import main as cli

pytestmark = [pytest.mark.ray, pytest.mark.sample]


def test_the_way_through_the_object_store_is_measured(
    ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--transitions",
        "60000",
        "--observation-dim",
        "3",
        "--action-dim",
        "1",
        "--batch-size",
        "16",
    ]
    assert cli.main(["benchmark", "data", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["object_store_bytes_per_s"] < 100 * found["memcpy_bytes_per_s"]
    assert found["transitions"] == 60000
