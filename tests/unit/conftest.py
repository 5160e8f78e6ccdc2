"""Unit tests start no Ray: one that tries fails and says where it belongs."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import ray


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
