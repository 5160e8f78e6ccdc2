"""A run in a notebook."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import cqlray
from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import estimate, make_run, reference, student, write_lines

pytestmark = pytest.mark.ray


def test_a_run_as_data_frames(finished_run: Path) -> None:
    run = cqlray.load_run(finished_run)
    assert run.iqm is not None and run.members.loc[2, "seed"] == 2
    curves = run.curves()
    assert list(curves.columns) == ["member", "seed", "updates", "mean_return"]
    assert len(curves) == 9 and set(curves["updates"]) == {110, 220, 330}
    assert not [name for name in run.members.columns if name.startswith("fqe")], (
        "nothing was judged by the data"
    )
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


def test_before_there_are_members_or_tests_the_frames_have_their_columns(tmp_path: Path) -> None:
    """Of a data set that was collected alone there never are any."""
    collected = make_run(tmp_path / "collected", dataset_only=True)
    (collected / "members.json").unlink()
    run = cqlray.load_run(collected)
    assert (run.members.index.name, len(run.members)) == ("member", 0)
    assert list(run.members.columns) == ["seed", "mean_return", "returns", "updates"]
    assert (list(run.curves().columns), len(run.curves())) == (
        ["member", "seed", "updates", "mean_return"],
        0,
    )
    sweep = [{"conservative_weight": 1.0}, {"algorithm": "bc"}]
    untested = cqlray.load_run(make_run(tmp_path / "untested", sweep, 1))
    assert list(untested.members["seed"]) == [0, 0] and untested.members["mean_return"].isna().all()
    curves = untested.curves()
    assert list(curves.columns) == [
        "member",
        "seed",
        "conservative_weight",
        "algorithm",
        "updates",
        "mean_return",
    ]
    assert len(curves) == 0


def test_a_figure_of_nothing_warns_of_nothing(tmp_path: Path) -> None:
    mpl.use("agg")
    run = make_run(tmp_path / "run")
    (run / "dataset" / "dataset.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cqlray.load_run(run).plot().get_legend() is None
    write_lines(run / "evaluations.jsonl", [reference("teacher", [-150.0])])
    (text,) = cqlray.load_run(run).plot().get_legend().get_texts()
    assert text.get_text() == "teacher -150.0"


def test_what_fitted_q_says_stands_beside_the_tests(tmp_path: Path) -> None:
    tests = [student(0, 100, [1.0, 3.0]), student(0, 200, [5.0, 7.0]), student(1, 100, [9.0, 9.0])]
    run = make_run(tmp_path / "run", seeds=3, evaluations=tests)
    estimates = [
        estimate(0, 200, -2.0),
        estimate(0, 100, -1.0),
        estimate(1, 200, None),
        estimate(1, 300, 7.0),
    ]
    # judged twice: the last counts
    write_lines(run / "fqe.jsonl", [*estimates, estimate(1, 300, -3.0)])
    members = cqlray.load_run(run).members
    assert members["fqe_return"].dropna().to_dict() == {0: -2.0, 1: -3.0}
    assert members["fqe_updates"].dropna().to_dict() == {0: 200, 1: 300}
    assert [member["fqe_return"] for member in cqlray.load_run(run).summary["members"]] == [
        -2.0,
        -3.0,
        None,
    ], "and in --json"
    curves = cqlray.load_run(run).curves()
    assert list(curves.columns) == ["member", "seed", "updates", "mean_return", "fqe_return"]
    found = [list(row) for row in curves.drop(columns="seed").itertuples(index=False)]
    nan = float("nan")
    expected = [
        [0, 100, 2.0, -1.0],
        [0, 200, 6.0, -2.0],
        [1, 100, 9.0, nan],
        [1, 200, nan, nan],
        [1, 300, nan, -3.0],
    ]
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(cqlray.UserError, match="is not a run directory"):
        cqlray.load_run(tmp_path)
