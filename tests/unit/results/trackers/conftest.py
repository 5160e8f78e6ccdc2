"""A run, and where each tracker writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.results.run_directories import make_run
from tests.unit.results.trackers.tracked import REFERENCES, TESTS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])


@pytest.fixture
def wandb_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B writes, offline."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "w"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield tmp_path / "w" / "wandb"
    wandb.teardown()  # it reads the environment once


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a local file store."""
    pytest.importorskip("mlflow")
    address = f"file:{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return address
