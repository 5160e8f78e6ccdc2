"""Unit tests start no Ray: one that tries fails and says where it belongs. None takes long."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray

UNIT = Path(__file__).parent
SECONDS = 120  # also where others keep the machine busy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if UNIT in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))


def refuse(*_: Any, **__: Any) -> NoReturn:
    pytest.fail("tests/unit starts no Ray: this test belongs in tests/integration")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture
def ray_cluster() -> None:
    refuse()


@pytest.fixture
def finished_run() -> None:
    refuse()
