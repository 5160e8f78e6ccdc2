"""A run in a notebook."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import cqlray
from cqlray.storage import RunDirectory

pytestmark = pytest.mark.ray


def test_a_run_as_data_frames(finished_run: Path) -> None:
    run = cqlray.load_run(finished_run)
    assert run.iqm is not None and run.members.loc[2, "seed"] == 2
    curves = run.curves()
    assert list(curves.columns) == ["member", "seed", "updates", "mean_return"]
    assert len(curves) == 9 and set(curves["updates"]) == {110, 220, 330}
    rows = RunDirectory(finished_run).rows("evaluations.jsonl")
    (row,) = [row for row in rows if row["member"] == 1 and row["updates"] == 220]
    found = curves.set_index(["member", "updates"]).loc[(1, 220), "mean_return"]
    assert found == pytest.approx(np.mean(row["returns"]))
    assert run.members.loc[1, "mean_return"] == pytest.approx(
        curves.query("member == 1 and updates == 330")["mean_return"].item()
    )


def test_a_run_as_a_figure(finished_run: Path) -> None:
    mpl.use("agg")
    axes = cqlray.load_run(finished_run).plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "IQM of all members, 95% interval" and labels[1].startswith("teacher")
    own = cqlray.load_run(finished_run).plot(axes)
    assert own is axes


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(cqlray.UserError, match="is not a run directory"):
        cqlray.load_run(tmp_path)
