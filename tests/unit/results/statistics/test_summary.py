"""The summary of a run, against numbers by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cqlray import seeding
from cqlray.config.members import members
from cqlray.config.schema import RunConfig, to_dict
from cqlray.results.record import load_run
from cqlray.results.statistics.calibration import calibrations, check_bounds
from cqlray.results.statistics.resampling import iqm_interval
from cqlray.results.statistics.summary import (
    RunRecord,
    best_group,
    common_updates,
    curve,
    final_rows,
    summarize,
)
from tests.unit.results.run_directories import make_run, reference, student

AGGREGATES = {name + end for name in ("iqm", "median", "mean") for end in ("", "_low", "_high")}
KEYS = {
    *AGGREGATES,
    "worst_member",
    "members",
    "teacher",
    "dataset",
    "random",
    "references_of_data",
    "groups",
    "normalized",
}


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """Two members; the second is an evaluation ahead, the first wrote one row twice."""
    rows = [
        student(0, 100, [-900.0] * 4),
        student(0, 200, [0.0] * 4),
        student(1, 100, [-800.0, -700.0, -600.0, -500.0]),
        student(1, 200, [5.0, 6.0, 7.0, 100.0]),
        student(1, 300, [1e6] * 4),
        student(0, 200, [1.0, 2.0, 3.0, -100.0]),
        reference("teacher", [-1.0, -3.0]),
        reference("random", [-1000.0, -1200.0]),
    ]
    return load_run(make_run(tmp_path / "run", evaluations=rows))


def test_summary_by_hand(run: RunRecord) -> None:
    result = summarize(run, 500, 0)
    assert set(result) == KEYS
    # At 200 updates, the last that both have.
    assert result["iqm"] == result["median"] == result["mean"] == (-23.5 + 29.5) / 2
    assert result["worst_member"] == (1 + 2 + 3 - 100) / 4
    assert (result["teacher"], result["random"], result["dataset"]) == (-2.0, -1100.0, -700.0)
    assert result["members"] == [
        {
            "member": 0,
            "seed": 0,
            "mean_return": -23.5,
            "returns": [1.0, 2.0, 3.0, -100.0],
            "updates": 200,
        },
        {
            "member": 1,
            "seed": 1,
            "mean_return": 29.5,
            "returns": [5.0, 6.0, 7.0, 100.0],
            "updates": 200,
        },
    ]
    assert result["groups"] == result["references_of_data"] == []


def test_normalised_by_the_scores_of_the_data(run: RunRecord) -> None:
    assert summarize(run, 500, 0)["normalized"] is None
    assert run.dataset is not None
    d4rl = {**run.dataset, "provenance": [{"format": "d4rl", "source": "hopper_medium-v2.hdf5"}]}
    scores = summarize(dataclasses.replace(run, dataset=d4rl), 500, 0)["normalized"]
    assert scores["iqm"] == pytest.approx(100 * (3.0 + 20.272305) / (3234.3 + 20.272305))
    assert scores["optimality_gap"] == pytest.approx(100 - scores["mean"])
    assert scores["optimality_gap_low"] <= scores["optimality_gap"] <= scores["optimality_gap_high"]
    assert scores["iqm_low"] <= scores["iqm"] <= scores["iqm_high"]
    assert scores["source"] == "D4RL's published reference scores"


def test_interval_is_drawn_from_the_runs_named_stream(run: RunRecord) -> None:
    scores = [[1.0, 2.0, 3.0, -100.0], [5.0, 6.0, 7.0, 100.0]]
    expected = iqm_interval(scores, np.random.default_rng(seeding.stream(7, "bootstrap")), 500)
    result = summarize(run, 500, 7)
    assert (result["iqm_low"], result["iqm_high"]) == expected
    # the figure says what the table says
    assert curve(run, [0, 1], 500, 7)[-1]["iqm_low"] == expected.low


def test_order_of_members_leaves_the_iqm(run: RunRecord) -> None:
    turned = dataclasses.replace(run, members=run.members[::-1], evaluations=run.evaluations[::-1])
    assert summarize(turned, 200, 0)["iqm"] == summarize(run, 200, 0)["iqm"]
    assert [member["member"] for member in summarize(turned, 200, 0)["members"]] == [1, 0]


def test_curve_by_hand(run: RunRecord) -> None:
    points = curve(run, [0, 1], 200, 0)
    assert [point["updates"] for point in points] == [100, 200] == common_updates(run, [0, 1])
    assert points[0]["iqm"] == -(900 + 650) / 2
    assert points[1]["member_means"] == [-23.5, 29.5]
    assert all(point["iqm_low"] <= point["iqm"] <= point["iqm_high"] for point in points)
    assert [point["updates"] for point in curve(run, [1], 200, 0)] == [100, 200, 300]


def test_groups_of_a_sweep(tmp_path: Path) -> None:
    settings = [{"conservative_weight": 1.0}, {"conservative_weight": 5.0}]
    rows = [student(m, 100, [10.0 * m + e for e in range(4)]) for m in range(4)]
    rows = [*(student(m, 50, [0.0] * 4, value=-9.0) for m in range(4)), *rows]
    rows[-1]["value"] = 100.0
    record = load_run(make_run(tmp_path / "run", settings, evaluations=rows))
    result = summarize(record, 200, 0)
    first, second = result["groups"]
    assert (first["swept"], first["members"]) == ({"conservative_weight": 1.0}, [0, 1])
    assert (first["iqm"], second["iqm"]) == ((1.5 + 11.5) / 2, (21.5 + 31.5) / 2)
    best = best_group(result)
    assert best is not None and best["members"] == [2, 3]
    assert (first["worst_member"], second["worst_member"]) == (1.5, 21.5)
    assert result["members"][2]["conservative_weight"] == 5.0
    one, five = calibrations(record)
    assert (one.conservative_weight, one.tests, one.below, one.last_excess) == (1.0, 4, 4, -1.0)
    assert (five.conservative_weight, five.tests, five.below, five.last_excess) == (
        5.0,
        4,
        3,
        (-1.0 + 107.0) / 2,
    )


def test_a_member_without_a_test_leaves_no_aggregate(tmp_path: Path) -> None:
    settings = [{"conservative_weight": 1.0}, {"conservative_weight": 5.0}]
    rows = [student(0, 100, [1.0] * 4), student(1, 100, [2.0] * 4), student(2, 100, [3.0] * 4)]
    record = load_run(make_run(tmp_path / "run", settings, evaluations=rows))
    result = summarize(record, 200, 0)
    assert final_rows(record, [0, 1, 2, 3]) == {}
    assert [result[k] for k in ("iqm", "iqm_low", "iqm_high", "worst_member")] == [None] * 4
    assert [m["mean_return"] for m in result["members"]] == [1.0, 2.0, 3.0, None]
    # a setting that is complete has its own
    assert [group["iqm"] for group in result["groups"]] == [1.5, None]


def test_no_environment_no_tests(tmp_path: Path) -> None:
    result = summarize(load_run(make_run(tmp_path / "run", teacher=False)), 200, 0)
    assert (result["iqm"], result["teacher"], result["random"]) == (None, None, None)
    assert result["members"][0] == {
        "member": 0,
        "seed": 0,
        "mean_return": None,
        "returns": [],
        "updates": None,
    }
    json.dumps(result, allow_nan=False)


def test_returns_that_were_not_finite_are_not_passed_over(tmp_path: Path) -> None:
    rows = [student(m, 100, [None, *[1.0] * 7], value=None) for m in range(2)]
    record = load_run(make_run(tmp_path / "run", evaluations=rows))
    assert np.isnan(summarize(record, 200, 0)["iqm"])
    assert calibrations(record) == []


def test_baselines_are_beside_cql_and_no_part_of_its_result(tmp_path: Path) -> None:
    config = RunConfig(num_seeds=2, baselines=("bc", "sac", "bc"))
    chosen = members(config)
    assert [(m.swept["algorithm"], m.seed) for m in chosen] == [
        (a, s) for a in ("cql", "bc", "sac") for s in (0, 1)
    ]
    assert [m.cql.conservative_weight for m in chosen] == [5.0, 5.0, 5.0, 5.0, 0.0, 0.0]
    assert [m.cql.bc_warmup_updates for m in chosen] == [0, 0, 100_000, 100_000, 0, 0]
    assert len({m.structure for m in chosen}) == 1, "one population holds them all"
    rows = [
        {
            "policy": "student",
            "member": m.index,
            "updates": 10,
            "returns": [10.0 * m.index],
            "value": 1.0 + m.index,
        }
        | {"discounted_return": 2.0, "tail_value": 0.0}
        for m in chosen
    ]
    record = RunRecord(
        directory=tmp_path,
        config=to_dict(config),
        manifest={},
        teacher=None,
        dataset=None,
        members=[{"member": m.index, "seed": m.seed, "swept": m.swept} for m in chosen],
        metrics=[],
        evaluations=rows,
    )
    result = summarize(record, 200, 0)
    assert result["iqm"] == 5.0 and result["worst_member"] == 0.0
    assert [(g["swept"]["algorithm"], g["iqm"]) for g in result["groups"]] == [
        ("cql", 5.0),
        ("bc", 25.0),
        ("sac", 45.0),
    ]
    assert best_group(result) is None, "there is one setting of CQL"
    ahead = [{**row, "updates": 20, "returns": [99.0]} for row in rows if row["member"] in (2, 3)]
    uneven = summarize(dataclasses.replace(record, evaluations=[*rows, *ahead]), 200, 0)
    assert uneven["groups"] == result["groups"], "all are looked at where all were tested"
    assert [(c.conservative_weight, c.last_excess) for c in calibrations(record)] == [
        (0.0, 3.5),
        (5.0, -0.5),
    ]
    assert [check.conservative_weight for check in check_bounds(record, 200, 0)] == [0.0, 5.0]
