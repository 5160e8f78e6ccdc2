"""Log rows: which columns, what follows an episode's last action, and each mistake in one line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cqlray.data.checks.validation import validate
from cqlray.data.formats import ColumnNames, open_source
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import read

NAMES = ColumnNames(("s_*",), ("torque",), "r", "trip", "t", "stopped", "timeout")


def frame(**changed: Any) -> pandas.DataFrame:
    """Two trips of three rows each; s_10 before s_2, as other recorders too have them in an order
    of their own.
    """
    columns: dict[str, Any] = {
        "s_10": [10.0, 11, 12, 20, 21, 22],
        "s_2": [0.0, 1, 2, 3, 4, 5],
        "torque": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "r": [1.0, 2, 3, 4, 5, 6],
        "trip": ["a", "a", "a", "b", "b", "b"],
        "t": [0, 1, 2, 0, 1, 2],
        "stopped": [False, False, True, False, False, False],
        "timeout": [False, False, False, False, False, True],
    }
    return pandas.DataFrame(
        {key: value for key, value in {**columns, **changed}.items() if value is not None}
    )


def test_a_terminated_last_row_stays_and_another_is_the_final_observation() -> None:
    source = open_source(frame(), NAMES)
    shard = read(source)
    assert shard.lengths.tolist() == [3, 2]
    assert shard.rewards.tolist() == [1, 2, 3, 4, 5]
    assert shard.terminations.tolist() == [False, False, True, False, False]
    assert shard.truncations.tolist() == [False, False, False, False, True]
    assert shard.observations.tolist() == [
        [10, 0],
        [11, 1],
        [12, 2],
        [12, 2],
        [20, 3],
        [21, 4],
        [22, 5],
    ]
    assert source.environment["observation_dim"] == 2
    piece = next(source.pieces())
    assert piece.rows is not None
    assert piece.rows.tolist() == [0, 1, 2, 3, 4]


def test_a_closing_row_has_a_null_action() -> None:
    closed = frame(torque=[0.1, 0.2, None, 0.4, 0.5, None])
    shard = read(open_source(closed, NAMES))
    assert shard.lengths.tolist() == [2, 2]
    assert shard.observations.shape == (6, 2)
    assert shard.terminations.tolist() == [False, True, False, False]
    assert shard.truncations.tolist() == [False, False, False, True]


def test_next_observations_give_the_final_one() -> None:
    following = frame(n_10=[11.0, 12, 70, 21, 22, 80], n_2=[1.0, 2, 7, 4, 5, 8])
    names = ColumnNames(**{**vars(NAMES), "next_observation": ("n_*",)})
    shard = read(open_source(following, names))
    assert shard.lengths.tolist() == [3, 3]
    assert shard.observations[[3, 7]].tolist() == [[70, 7], [80, 8]]
    broken = validate(open_source(frame(**{**following, "n_2": [1.0, 9, 7, 4, 5, 8]}), names), 1)
    assert "next_observation" in broken.codes
    assert any("the DataFrame, row 1" in str(finding) for finding in broken.errors)


def test_wrong_values_stay_for_validation(tmp_path: Path) -> None:
    wrong = frame(
        r=[1.0, np.inf, 3, 4, None, 6],
        s_2=[0.0, 1e300, 2, 3, 4, 5],
        torque=[0.1, None, 0.3, 0.4, 0.5, 0.6],
    )
    wrong.to_csv(tmp_path / "log.csv", index=False)
    wrong.to_parquet(tmp_path / "log.parquet")
    for data in (wrong, str(tmp_path / "log.csv"), str(tmp_path / "log.parquet")):
        source = open_source(data, NAMES)
        shard = read(source)
        np.testing.assert_array_equal(shard.rewards, np.float32([1, np.inf, 3, 4, np.nan]))
        assert shard.observations[1, 1] == 1e300
        assert np.isnan(shard.actions[1, 0])
        assert validate(source, 1).codes >= {"not_finite"}


@pytest.mark.parametrize(
    "flags", [["0", "1"], ["False", "TRUE"], ["no", "yes"], ["0.0", "1.0"], ["", "t"]]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_as_people_write_it(tmp_path: Path, flags: list[str], delimiter: str) -> None:
    rows = [f"{i}.5,{i / 8},{i},7,{flags[i == 3]}" for i in range(4)]
    text = "\ufeff" + "\r\n".join(['x,"u",r,ride,done', *rows]).replace(",", delimiter)
    (tmp_path / "log.csv").write_text(text, newline="")
    shard = read(
        open_source(
            str(tmp_path / "log.csv"), ColumnNames(("x",), ("u",), "r", "ride", terminated="done")
        )
    )
    assert shard.actions[:, 0].tolist() == [0, 0.125, 0.25, 0.375]
    assert shard.terminations.tolist() == [False, False, False, True]


def test_files_of_a_directory_are_one_log_in_natural_order(tmp_path: Path) -> None:
    whole = pandas.concat(
        [frame(trip=[f"{i}a"] * 3 + [f"{i}b"] * 3) for i in range(6)], ignore_index=True
    )
    cuts = [0, 4, 5, 6, 13, 30, 36]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        whole.iloc[start:stop].to_parquet(tmp_path / f"part-{number + 5}.parquet")
    expected = read(open_source(whole, NAMES))
    pieces = list(open_source(str(tmp_path), NAMES).pieces())
    shard = read(open_source(str(tmp_path), NAMES))
    assert shard.observations.tobytes() == expected.observations.tobytes()
    assert shard.lengths.tolist() == expected.lengths.tolist()
    joint = [piece for piece in pieces if " to " in piece.file]
    assert [piece.rows for piece in joint] == [None, None]
    assert joint[0].file == f"{tmp_path}/part-5.parquet to {tmp_path}/part-7.parquet"
    assert sum(piece.shard.num_transitions for piece in pieces) == 30


def test_a_pattern_keeps_the_order_of_the_first_file(tmp_path: Path) -> None:
    names = ["s_b", "s_10", "s_a", "s_2"]
    log = frame(
        **{name: [number + step / 8 for step in range(6)] for number, name in enumerate(names)}
    )
    log = log[[*names, *(name for name in log if name not in names)]]
    (tmp_path / "parts").mkdir()
    log.iloc[:3].to_parquet(tmp_path / "parts" / "1.parquet")
    log.iloc[3:][[*reversed(log.columns)]].to_parquet(tmp_path / "parts" / "2.parquet")
    log.to_csv(tmp_path / "log.csv", index=False)
    for data in (log, str(tmp_path / "log.csv"), str(tmp_path / "parts")):
        source = open_source(data, NAMES)
        assert source.columns["observation"] == names
        np.testing.assert_array_equal(read(source).observations[0], [0, 1, 2, 3])
        np.testing.assert_array_equal(read(source).observations[-1], np.array([0, 1, 2, 3]) + 5 / 8)
    chosen = ColumnNames(**{**vars(NAMES), "observation": ("s_2", "s_?", "s_1*")})
    with pytest.raises(UserError, match=r"'s_2' is named twice by columns\.observation"):
        open_source(log, chosen)
    chosen = ColumnNames(**{**vars(NAMES), "observation": ("s_2", "s_[a-z]", "s_1*")})
    assert open_source(log, chosen).columns["observation"] == ["s_2", "s_b", "s_a", "s_10"]


def test_a_later_file_with_other_columns_is_told_by_validation(tmp_path: Path) -> None:
    frame().iloc[:3].to_parquet(tmp_path / "1.parquet")
    frame(s_1=[0.0] * 6).iloc[3:].to_parquet(tmp_path / "2.parquet")
    assert "mixture" in validate(open_source(str(tmp_path), NAMES), 1).codes


def test_a_flag_s_default_is_not_the_column_of_the_other() -> None:
    """Of a recorder whose time limit counts as an end."""
    log = frame(truncated=[False, False, True, False, False, True])
    source = open_source(
        log, ColumnNames(**{**vars(NAMES), "terminated": "truncated", "truncated": None})
    )
    assert (source.columns["terminated"], "truncated" in source.columns) == ("truncated", False)


def test_vectors_of_lists(tmp_path: Path) -> None:
    lists = {"obs": [[1, 2], [3, 4], None, [7, 8]], "act": [[0.5], [0.25], [None], None]}
    table = pa.table({**lists, "reward": [1, 2, 3, None], "episode": [0] * 4})
    pq.write_table(table, tmp_path / "x.parquet")
    shard = read(open_source(str(tmp_path / "x.parquet"), ColumnNames(("obs",), ("act",))))
    np.testing.assert_array_equal(
        shard.observations, np.float32([[1, 2], [3, 4], [np.nan, np.nan], [7, 8]])
    )
    np.testing.assert_array_equal(shard.actions, np.float32([[0.5], [0.25], [np.nan]]))


def test_one_row_episodes_are_left_to_validation() -> None:
    source = open_source(frame(trip=["a", "a", "a", "b", "b", "c"]), NAMES)
    assert read(source).lengths.tolist() == [3, 1, 0]
    assert "zero_length" in validate(source, 1).codes


@pytest.mark.parametrize(
    ("changed", "names", "expected"),
    [
        (
            {},
            {"action": ("torqe",)},
            r"no column 'torqe'; did you mean torque\? It has s_10, s_2, torque",
        ),
        ({}, {"observation": ("x_*",)}, r"no column matches 'x_\*'; it has s_10"),
        ({}, {"action": ()}, "columns.action is empty"),
        ({"r": list("abcdef")}, {}, "column r holds (large_)?string; it should hold numbers"),
        ({"trip": list("aabbaa")}, {"step": None}, "row 4: episode 'a' comes again after 'b'"),
        ({"trip": ["a", "a", None, "b", "b", "b"]}, {}, "row 2: the episode's column is empty"),
        (
            {"t": [0, 1, 2, 0, 2, 3]},
            {},
            "row 4, column t: 2 follows 0; it should be 1: rows are missing",
        ),
        ({"t": list("abcdef")}, {}, "column t: not a readable column of step numbers"),
        ({"stopped": [0, 0, 2, 0, 0, 0]}, {}, "row 2, column stopped: 2 is neither true nor false"),
        (
            {"torque": [[1, 2], [1], [1, 2], [1, 2], [1, 2], [1, 2]]},
            {},
            "row 1, column torque: 1 numbers; the first row has 2",
        ),
        ({"torque": [object()] * 6}, {}, "column torque: not a readable column"),
        (
            {"n_2": [1.0] * 6},
            {"next_observation": ("n_2",)},
            "next observations have 1 numbers, observations 2",
        ),
        ({}, {"observation": ("s_2", "s_*")}, "column 's_2' is named twice by columns.observation"),
        ({}, {"action": ("torque", "torque")}, "column 'torque' is named twice by columns.action"),
        (
            {},
            {"observation": ("*_2", "s_10", "r")},
            "'r' is named by columns.observation and by columns.reward",
        ),
        (
            {},
            {"next_observation": ("s_*",)},
            "'s_10' is named by columns.observation and by columns.next_observation",
        ),
        (
            {},
            {"observation": ("s_*", "t*"), "action": ("torque",)},
            "'torque' is named by columns.observation and by",
        ),
        (
            {"terminated": [0] * 6},
            {"observation": ("s_*", "term*"), "terminated": None},
            "'terminated' is named by columns.observation and by columns.terminated",
        ),
    ],
)
def test_mistakes_get_one_line(
    changed: dict[str, Any], names: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read(open_source(frame(**changed), ColumnNames(**{**vars(NAMES), **names})))
    assert "\n" not in str(caught.value)


def test_doubled_columns_and_empty_logs(tmp_path: Path) -> None:
    doubled = pandas.concat([frame(), frame()[["r"]]], axis=1)
    with pytest.raises(UserError, match="more than one column is called 'r'"):
        open_source(doubled, NAMES)
    with pytest.raises(UserError, match="has no rows"):
        open_source(frame().iloc[:0], NAMES)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match=r"x\.csv: the first line is empty"):
        open_source(str(tmp_path / "x.csv"))
    (tmp_path / "x.csv").write_text("observation,action,reward,episode\n1,2,3,4\n1,2,3\n")
    with pytest.raises(
        UserError, match=r"x\.csv: not a readable CSV file \(.*Expected 4 columns, got 3"
    ):
        open_source(str(tmp_path / "x.csv"))
    (tmp_path / "x.csv").write_text("observation,action,reward,episode\n1,2,high,4\n")
    with pytest.raises(UserError, match=r"x\.csv: not a readable CSV file \(.*'high'"):
        open_source(str(tmp_path / "x.csv"))
