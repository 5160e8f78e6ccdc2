"""Each instant and each victim alone; tests/integration/test_driver.py has several in one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_driver import (
    SIGNS,
    VICTIMS,
    assert_same,
    run_killed_at,
    run_with_killed,
)

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("sign", SIGNS)
def test_a_run_killed_at_this_instant_ends_with_the_same_bits(
    finished_run: Path, ray_cluster: str, tmp_path: Path, sign: str
) -> None:
    assert_same(finished_run, run_killed_at([sign], tmp_path, ray_cluster))


@pytest.mark.parametrize("victim", VICTIMS, ids=" at ".join)
def test_this_actor_is_replaced_and_nothing_changes(
    finished_run: Path, tmp_path: Path, victim: tuple[str, str]
) -> None:
    assert_same(finished_run, run_with_killed([victim], tmp_path))
