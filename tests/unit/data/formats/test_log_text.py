"""Numbers, flags, missing values and categories as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

from cqlray.data.checks.validation import validate
from cqlray.data.convert import write_dataset
from cqlray.data.formats import ColumnNames, log_text, log_values, open_source
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import read

NAMES = ColumnNames(("x", "y"), ("u",), "r", "trip", terminated="end")
WARDS = ColumnNames(("x", "ward"), ("u",), "r", "trip", categorical=("ward",))


def log(**changed: Any) -> pandas.DataFrame:
    columns = {
        "x": [1.5, 2, 3.25, 4],
        "y": [0.125, 1, 2, 3],
        "u": [0.0, 1, 0, 1],
        "r": [1.0, 2, 3, 4],
        "trip": ["a"] * 4,
        "end": ["n", "n", "N", "Y"],
    }
    return pandas.DataFrame(columns | changed)


def saved(frame: pandas.DataFrame, path: Path, separator: str) -> str:
    frame.to_csv(path, index=False, sep=separator)
    return str(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_decimal_commas_are_found_by_column_and_told(tmp_path: Path, separator: str) -> None:
    commas = log(x=["1,5", "2", "3,25", "4"], y=["0,125", " 1", "2", "3e0"])
    expected = read(open_source(log(), NAMES))
    for data in (commas, saved(commas, tmp_path / "log.csv", separator)):
        source = open_source(data, NAMES)
        assert source.reading == ["column x: decimal commas", "column y: decimal commas"]
        assert read(source).observations.tobytes() == expected.observations.tobytes()
        assert read(source).terminations.tolist() == [False, False, False, True]


def test_a_comma_beyond_the_first_rows_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cqlray.data.formats.log_files._CSV_BLOCK", 30)
    commas = log(x=["1", "2", "3", "4,5"])
    source = open_source(saved(commas, tmp_path / "log.csv", ";"), NAMES)
    assert source.reading == ["column x: decimal commas"]
    assert read(source).observations[-1, 0] == 4.5


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (["1,234", "2,500", "3", "4"], "row 0, column x: '1,234' has a comma, which may part"),
        (["1,5", "2.5", "3", "4"], "row 0, column x: '1,5' has a comma, and '2.5' a point"),
        (["1", "1,234.5", "3", "4"], "row 1, column x: '1,234.5' is no number"),
        (["1", "2", "three", "4"], "row 2, column x: 'three' is no number"),
    ],
)
def test_what_may_be_two_numbers_or_none_is_an_error(
    tmp_path: Path, x: list[str], expected: str
) -> None:
    for data in (log(x=x), saved(log(x=x), tmp_path / "log.csv", ";")):
        with pytest.raises(UserError, match=expected):
            read(open_source(data, NAMES))


@pytest.mark.parametrize("word", ["", "-", "NA", "n/a", "N/A", "null", "NULL", "None", "  "])
@pytest.mark.parametrize("separator", [",", ";"])
def test_words_for_missing_values(tmp_path: Path, word: str, separator: str) -> None:
    gaps = log(x=["1.5", word, "3.25", "4"], end=["0", word, "no", "YES"])
    for data in (gaps, saved(gaps, tmp_path / "log.csv", separator)):
        shard = read(open_source(data, NAMES))
        np.testing.assert_array_equal(
            shard.observations[:, 0], np.float32([1.5, np.nan, 3.25, 4, 4])
        )
        assert shard.terminations.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("ward", "names"),
    [
        (["ICU", "general", "ICU", "b"], ["ward=ICU", "ward=b", "ward=general"]),
        ([10, 9, 10, -1], ["ward=-1", "ward=9", "ward=10"]),
        ([10.0, 9.0, 10.0, 7.0], ["ward=7", "ward=9", "ward=10"]),
    ],
)
@pytest.mark.parametrize("form", ["frame", "category", "csv", "parquet"])
def test_categories_become_columns(
    tmp_path: Path, ward: list[Any], names: list[str], form: str
) -> None:
    frame = log(ward=ward)
    if form == "category":
        frame["ward"] = frame.ward.astype("category")
    data: Any = frame
    if form == "csv":
        data = saved(frame, tmp_path / "log.csv", ",")
    elif form == "parquet":
        frame.to_parquet(tmp_path / "log.parquet")
        data = str(tmp_path / "log.parquet")
    source = open_source(data, WARDS)
    assert source.columns["observation"] == ["x", *names]
    assert source.reading[0].startswith("column ward: 3 categories, ")
    hot = [[name == f"ward={word}".removesuffix(".0") for name in names] for word in ward]
    np.testing.assert_array_equal(read(source).observations[:3, 1:], np.float32(hot)[:3])
    assert write_dataset(source, tmp_path / "native")["columns"]["observation"] == ["x", *names]


def test_a_missing_category_is_missing_in_all_its_columns() -> None:
    source = open_source(log(ward=["a", None, "b", "a"]), WARDS)
    np.testing.assert_array_equal(
        np.isnan(read(source).observations[:3, 1:]).all(axis=1), [0, 1, 0]
    )
    assert "not_finite" in validate(source, 1).codes


def test_categories_of_all_files_count(tmp_path: Path) -> None:
    for number, word in enumerate("zy"):
        log(ward=[word] * 4, trip=[word] * 4).to_csv(tmp_path / f"{number}.csv", index=False)
    source = open_source(str(tmp_path), WARDS)
    assert source.columns["observation"] == ["x", "ward=y", "ward=z"]
    np.testing.assert_array_equal(read(source).observations[[0, -1], 1:], [[0, 1], [1, 0]])


def test_mistakes_about_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    wards = log(ward=list("abcd"))
    alone = ColumnNames(**{**vars(WARDS), "observation": ("x",)})
    with pytest.raises(UserError, match=r"named by columns\.categorical alone"):
        open_source(wards, alone)
    following = ColumnNames(**{**vars(WARDS), "next_observation": ("y", "end")})
    with pytest.raises(UserError, match=r"goes without columns\.next_observation"):
        open_source(wards, following)
    monkeypatch.setattr(log_text, "MOST_CATEGORIES", 3)
    with pytest.raises(UserError, match="column ward holds more than 3 categories"):
        open_source(wards, WARDS)


def test_a_flag_with_a_line_break_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^[^\n]+, column end: 'a\\nb' is neither true nor false"):
        log_values.flags(pa.array(["Y", "a\nb"]), "end", "f.csv", 0)


@pytest.mark.parametrize("words", [("1,5", "1.500"), ("1.500", "1,5")])
def test_points_and_commas_in_different_files_are_not_mixed(
    tmp_path: Path, words: tuple[str, str]
) -> None:
    for name, word in zip("ab", words, strict=True):
        log(x=[word] * 4, trip=[name] * 4).to_csv(tmp_path / f"{name}.csv", index=False, sep=";")
    with pytest.raises(UserError, match=r"column x: .* before a .*; a column has one of them"):
        read(open_source(str(tmp_path), NAMES))


def test_what_is_appended_has_the_same_categories_and_rules(tmp_path: Path) -> None:
    write_dataset(open_source(log(ward=list("abab")), WARDS), tmp_path / "wards")
    with pytest.raises(UserError, match="ward=a, ward=b, dataset 'DataFrame' has ward=a, ward=c"):
        other = open_source(log(ward=list("acac")), WARDS)
        write_dataset(other, tmp_path / "wards", append=True)
    for rules, fits in ((("x=forward",), True), (("x=forward",), True), (("x=0",), False)):
        names = ColumnNames(**{**vars(NAMES), "missing": rules})
        source = open_source(log(x=[1, np.nan, 2, 3]), names)
        if fits:
            write_dataset(source, tmp_path / "filled", append=True)
        else:
            with pytest.raises(UserError, match=r"treated by x=forward, .* by x=0; give both"):
                write_dataset(source, tmp_path / "filled", append=True)
