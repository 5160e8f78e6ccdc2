"""The same bits whoever works and whatever is killed: each instant and each victim alone.

tests/integration/test_driver.py has several of them in one run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cqlray.api import runs as api
from cqlray.config.schema import ResourcesConfig
from tests.conftest import small_config
from tests.integration.test_driver import (
    SIGNS,
    VICTIMS,
    assert_same,
    run_killed_at,
    run_with_killed,
)
from tests.nightly import test_foreign_data as on_foreign_data

pytestmark = pytest.mark.ray


def test_one_worker_and_two_evaluators_change_nothing(finished_run: Path, tmp_path: Path) -> None:
    resources = ResourcesConfig(rollout_workers=1, evaluators=2, learners=2)
    other = api.run(small_config(tmp_path / "run", resources=resources), quiet=True).run_dir
    assert_same(finished_run, other)


@pytest.mark.parametrize("signs", [SIGNS[1::3], *([sign] for sign in SIGNS)], ids=", ".join)
def test_a_run_killed_at_these_instants_ends_with_the_same_bits(
    finished_run: Path, ray_cluster: str, tmp_path: Path, signs: list[str]
) -> None:
    assert_same(finished_run, run_killed_at(signs, tmp_path, ray_cluster))


@pytest.mark.parametrize("victim", VICTIMS, ids=" at ".join)
def test_this_actor_is_replaced_and_nothing_changes(
    finished_run: Path, tmp_path: Path, victim: tuple[str, str]
) -> None:
    assert_same(finished_run, run_with_killed([victim], tmp_path))


def test_a_run_on_a_log_killed_at_each_of_its_instants_ends_with_the_same_bits(
    ray_cluster: str, tmp_path: Path
) -> None:
    on_foreign_data.assert_same_when_killed_at(on_foreign_data.SIGNS, ray_cluster, tmp_path)
