"""Steps by counters and timestamps: rows are sorted, strides told, gaps named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from cqlray.data.checks.validation import validate
from cqlray.data.convert import write_dataset
from cqlray.data.formats import ColumnNames, log, open_source
from cqlray.errors import UserError
from tests.unit.data.formats.test_round_trips import read

NAMES = ColumnNames(("x", "y"), ("u",), "r", "trip", "t")
COUNTED = 5  # rows of a trip


def trips(time: str = "count") -> pandas.DataFrame:
    """Four trips of five rows each."""
    n = np.arange(4 * COUNTED)
    step = n % COUNTED
    start = pandas.Timestamp("2026-10-24 22:50") + pandas.to_timedelta(n // COUNTED, "D")
    times = start + pandas.to_timedelta(step * 300, "s")
    kinds: dict[str, Any] = {
        "count": step,
        "tens": 10 * step + 7,
        "text": times.strftime("%Y-%m-%dT%H:%M:%S"),
        "zone": times.strftime("%Y-%m-%d %H:%M:%S+02:00"),
        "timestamp": times,
        "epoch": times.astype("datetime64[s]").astype("int64") / 1.0,
    }
    columns = {"x": n * 1.5, "y": -n, "u": n / 8, "r": n % 7, "trip": n // COUNTED + 40}
    return pandas.DataFrame({**columns, "t": kinds[time], "end": step == COUNTED - 1})


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ("count", []),
        ("tens", ["column t: a step every 10"]),
        ("epoch", ["column t: a step every 300"]),
        *((kind, ["column t: a step every 300 s"]) for kind in ("text", "zone", "timestamp")),
    ],
)
@pytest.mark.parametrize("form", ["frame", "parquet", "csv"])
def test_rows_in_any_order_give_the_data_in_order(
    tmp_path: Path, time: str, told: list[str], form: str
) -> None:
    whole = trips(time)
    first = whole.trip.iloc[0]
    mixed = pandas.concat([whole[:1], whole[1:].sample(frac=1, random_state=3)])
    order = mixed.trip.drop_duplicates().tolist()
    assert order[0] == first
    expected = pandas.concat([whole[whole.trip == trip] for trip in order], ignore_index=True)
    expected.trip = expected.trip.astype(str)

    def opened(frame: pandas.DataFrame) -> Any:
        if form == "frame":
            return open_source(frame, NAMES)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.{form}"
        frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
        return open_source(str(path), NAMES)

    in_order, source = opened(expected), opened(mixed)
    assert in_order.reading == told
    assert source.reading[:-1] == told
    assert source.reading[-1].startswith("sorted by episode and t: ")
    assert source.reading[-1].endswith(" of 20 rows were not in their place")
    one, other = read(in_order), read(source)
    for name in ("observations", "actions", "rewards", "lengths"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    rows = np.concatenate([piece.rows for piece in source.pieces()])
    np.testing.assert_array_equal(mixed.x.to_numpy(np.float32)[rows], read_steps(one))
    written = write_dataset(source, tmp_path / "native")
    assert written["provenance"][0]["reading"] == source.reading


def read_steps(shard: Any) -> Any:
    return shard.observations[shard.step_rows, 0]


def test_rows_of_several_files_are_sorted_together(tmp_path: Path) -> None:
    whole = trips()
    for part in range(3):
        whole[part::3].to_csv(tmp_path / f"{part}.csv", index=False)
    source = open_source(str(tmp_path), NAMES)
    # Episodes come in the order in which they first appear, which is here that of their numbers.
    assert (
        read(source).observations.tobytes()
        == read(open_source(whole, NAMES)).observations.tobytes()
    )
    (piece,) = source.pieces()
    assert piece.rows is None
    assert piece.file == f"{tmp_path}/0.csv to {tmp_path}/2.csv"


def test_sorted_data_comes_in_pieces_of_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = trips().sample(frac=1, random_state=1)
    monkeypatch.setattr(log, "PIECE_SIZE", 2 * COUNTED)
    pieces = list(open_source(mixed, NAMES).pieces())
    assert [piece.shard.num_episodes for piece in pieces] == [2, 2]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("time", "follows"),
    [("count", "3 follows 1; it should be 2"), ("tens", "37 follows 17; it should be 27")]
    + [
        (kind, "2026-10-25T23:05:00 follows 2026-10-25T22:55:00; it should be 2026-10-25T23:00:00")
        for kind in ("text", "timestamp")
    ],
)
def test_gaps_are_named(time: str, follows: str, shuffled: bool) -> None:
    broken = trips(time).drop(7)
    if shuffled:
        broken = pandas.concat([broken[:5], broken[5:].sample(frac=1, random_state=2)])
    row = np.flatnonzero(broken.index == 8)[0]
    report = validate(open_source(broken, NAMES), 1)
    (error,) = [str(error) for error in report.errors if error.code == "unreadable"]
    assert error == (
        f"the DataFrame, row {row}, column t: {follows}: rows are missing from episode 41"
    )


def test_a_row_too_many_is_an_error_and_a_clock_may_be_unsteady() -> None:
    doubled = pandas.concat([trips()[:8], trips()[7:]], ignore_index=True)
    with pytest.raises(UserError, match="row 8, column t: 2 follows 2; it should be 3: a row too"):
        read(open_source(doubled, NAMES))
    noisy = trips("epoch")
    noisy["t"] += np.random.default_rng(0).uniform(-6, 6, len(noisy))
    assert read(open_source(noisy, NAMES)).num_episodes == 4
    noisy.loc[9, "t"] += 40
    with pytest.raises(UserError, match=r"row 9, column t: .*rows are missing from episode 41"):
        read(open_source(noisy, NAMES))


def test_without_a_step_interleaved_episodes_are_an_error_that_says_what_to_give() -> None:
    names = ColumnNames(("x", "y"), ("u",), "r", "trip")
    with pytest.raises(
        UserError, match=r"row 4: episode 40 comes again after 41.*columns\.step NAME"
    ):
        read(open_source(trips().iloc[[0, 1, 5, 6, 2, 3]], names))


def test_sorting_more_than_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "free_memory", lambda: 500)
    with pytest.raises(
        UserError, match="is not sorted by episode and t, and sorting it here takes"
    ):
        read(open_source(trips().iloc[::-1], NAMES))
    assert read(open_source(trips(), NAMES)).num_episodes == 4


@pytest.mark.parametrize("step", [None, "t"])
def test_files_that_each_count_their_own_episodes(tmp_path: Path, step: str | None) -> None:
    for number, frame in enumerate((trips(), trips()[:10])):
        frame.to_csv(tmp_path / f"{number}.csv", index=False)
    base = {**vars(NAMES), "step": step}
    by_file = open_source(str(tmp_path), ColumnNames(**{**base, "episode": "FILE+trip"}))
    assert read(by_file).num_episodes == 6
    assert by_file.columns["episode"] == "FILE+trip"
    alone = ColumnNames(**{**base, "episode": "FILE", "step": None})
    assert read(open_source(str(tmp_path), alone)).lengths.tolist() == [19, 9]
    with pytest.raises(UserError, match=r"episode '40'.*give --columns.*FILE\+(trip|NAME)"):
        read(open_source(str(tmp_path), ColumnNames(**base)))
    with pytest.raises(UserError, match="no column 'tripp'; did you mean trip"):
        open_source(str(tmp_path), ColumnNames(**{**base, "episode": "FILE+tripp"}))
