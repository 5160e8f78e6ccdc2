"""The report of a real run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.results.report.test_html import page

pytestmark = pytest.mark.ray


def test_a_dataset_at_hand_has_its_card_in_the_report(finished_run: Path, tmp_path: Path) -> None:
    found = page(shutil.copytree(finished_run, tmp_path / "run"))
    alts = [attrs["alt"] or "" for tag, attrs in found.tags if tag == "img"]
    assert any("action dimensions over its bounds" in alt for alt in alts)
    assert "mean lengthterminatedtruncated" in found.text
    next(
        (tmp_path / "run" / "dataset").glob("shard-*.parquet")
    ).unlink()  # as data that is elsewhere: its description
    assert "mean length" not in page(tmp_path / "run").text
