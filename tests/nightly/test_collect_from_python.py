"""A dataset made from Python: 14 to 20 s on two busy cores, too long for tests/integration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import cqlray
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
def test_a_dataset_collected_from_python(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data")
    data = cqlray.collect(config, quiet=True)
    assert isinstance(data, cqlray.Dataset) and data.description["episodes"] > 0
    assert RunDirectory(tmp_path / "data").manifest()["dataset_only"]
    assert not list((tmp_path / "data" / "snapshots").glob("*")), "no student was trained"
    with pytest.raises(cqlray.UserError, match="collect makes a dataset"):
        cqlray.collect(dataclasses.replace(config, dataset=str(tmp_path / "data")), quiet=True)
