"""Validation and mending: each case with data made wrong on purpose."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.data.checks import findings
from cqlray.data.checks.fixes import fix
from cqlray.data.checks.validation import Report, require_valid, validate
from cqlray.data.episode import Array, Shard
from cqlray.data.moments import Magnitudes, Moments
from cqlray.data.source import Piece, Source
from cqlray.errors import UserError
from tests.unit.data.test_shards import random_shard

ENVIRONMENT: dict[str, Any] = {
    "id": "X-v0",
    "observation_dim": 3,
    "action_dim": 2,
    "action_low": [-2.0, -2.0],
    "action_high": [2.0, 2.0],
}
LENGTHS = [4, 1, 5]  # steps 0-3, 4, 5-9


def piece_of(
    shard: Shard, file: str = "a.parquet", rows: bool = True, following: bool = False
) -> Piece:
    """A piece whose rows count from 100; `following` adds the next observations that belong to
    it.
    """
    next_observations = (
        np.concatenate([e.observations[1:] for e in shard.episodes()]) if following else None
    )
    return Piece(
        shard, file, 100 + np.arange(shard.num_transitions) if rows else None, next_observations
    )


def source_of(*pieces: Piece, environment: dict[str, Any] = ENVIRONMENT, **changes: Any) -> Source:
    return Source("x", "parquet", environment, lambda: iter(pieces), **changes)


def changed(shard: Shard, **values: Callable[[Array], Any]) -> Shard:
    """The shard with arrays changed: each function gets a copy and changes it in place, or returns
    another.
    """
    arrays = {name: getattr(shard, name).copy() for name in values}
    results = {name: change(arrays[name]) for name, change in values.items()}
    return dataclasses.replace(
        shard, **{n: arrays[n] if result is None else result for n, result in results.items()}
    )


def put(where: Any, value: Any) -> Callable[[Array], None]:
    """Set array[where] in place."""
    return lambda array: array.__setitem__(where, value)


def good() -> Shard:
    return random_shard(LENGTHS)


def lines_of(*pieces: Piece, batch_size: int = 10, **changes: Any) -> list[str]:
    return validate(source_of(*pieces, **changes), batch_size).lines()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4),
    rows=st.booleans(),
)
def test_good_data_passes(lengths: list[list[int]], rows: bool) -> None:
    pieces = [
        piece_of(random_shard(some, seed), f"{seed}", rows, following=True)
        for seed, some in enumerate(lengths)
    ]
    report = validate(source_of(*pieces), batch_size=1)
    assert report.errors == []
    assert (report.episodes, report.transitions) == (sum(map(len, lengths)), sum(map(sum, lengths)))
    require_valid(report, "x")
    source = source_of(*pieces)
    assert fix(source, report) == (source, [])


# One piece made wrong -> the one error line about it, word for word where the numbers are known.
WRONG_SHARDS: dict[str, tuple[dict[str, Callable[[Array], Any]], str]] = {
    "NaN": (
        # observation row 7 is step 5, as two episodes ended before it
        {"observations": put((7, 2), np.nan)},
        (
            "error: a.parquet, row 105, observation[2]: the value is nan; every value must be a"
            " finite float32: fill it in, or drop these episodes (--fix)"
        ),
    ),
    "NaN in a final observation": (
        {"observations": put((4, 0), np.nan)},
        "error: a.parquet, row 103, next observation[0]: the value is nan;",
    ),
    "infinity in several rows": (
        {"actions": put((slice(2, 5), 1), np.inf)},
        "error: a.parquet, row 102, action[1]: the value is inf (first of 3 rows);",
    ),
    "reward too large for float32": (
        {"rewards": lambda rewards: np.where(np.arange(10) == 6, 1e39, rewards.astype(np.float64))},
        "error: a.parquet, row 106, reward: the value is 1e+39;",
    ),
    "actions out of bounds": (
        {"actions": put(([3, 8], 0), [2.5, -2.25])},
        (
            "error: a.parquet, row 103, action[0]: actions outside [-2, 2] by up to 0.5 (first of 2"
            " rows); record what was executed, or correct the bounds; --fix clips what is outside"
            " by at most 1 % of the range"
        ),
    ),
    "both ends": (
        {"terminations": put(3, True), "truncations": put(3, True)},
        (
            "error: a.parquet, row 103: termination and truncation are both set; "
            "set one; --fix keeps the termination, which stops the target"
        ),
    ),
    "end inside": (
        {"terminations": put([6, 7], True)},
        (
            "error: a.parquet, row 106: termination or truncation is set, but the episode goes on"
            " (first of 2 steps); begin a new episode after it, or clear the flag"
        ),
    ),
    "no end anywhere": (
        {"terminations": put(..., False), "truncations": put(..., False)},
        (
            "error: a.parquet, row 103: no episode ends: neither a termination nor a truncation is"
            " set anywhere (first of 3 episodes); name the columns of both; if every end is a time"
            " limit, --fix marks the last steps as"
        ),
    ),
    "constant reward": (
        {"rewards": put(..., 0.0)},
        (
            "error: reward: every reward is 0: there is nothing to learn; name the column of the"
            " reward"
        ),
    ),
    "constant reward without a termination": (
        {
            "rewards": put(..., 1.0),
            "terminations": put(..., False),
            "truncations": put([3, 4, 9], True),
        },
        "error: reward: every reward is 1: there is nothing to learn;",
    ),
    "actions of another shape": (
        {"actions": lambda actions: actions[:, 0]},
        (
            "error: a.parquet, actions: shape (10,); it should be (10, action_dim) for 3 episodes"
            " with 10 steps in all"
        ),
    ),
    "lengths that do not fit": (
        {"lengths": lambda lengths: lengths + 1},
        (
            "error: a.parquet, observations: shape (13, 3); it should be (16, observation_dim) for"
            " 3 episodes with 13 steps"
        ),
    ),
    "text": (
        {"rewards": lambda rewards: rewards.astype(str)},
        "error: a.parquet, rewards: the values are <U32; they should be numbers, float32",
    ),
    "flags as numbers": (
        {"truncations": lambda flags: flags.astype(np.float32)},
        "error: a.parquet, truncations: the values are float32; they should be true or false",
    ),
    "another number of observation columns": (
        {"observations": lambda observations: observations[:, :2]},
        (
            "error: a.parquet, observations: 2 numbers a row; the environment has 3; name the"
            " columns or the environment"
        ),
    ),
    "another number of action columns": (
        {"actions": lambda actions: np.hstack([actions, actions])},
        "error: a.parquet, actions: 4 numbers a row; the environment has 2;",
    ),
}


@pytest.mark.parametrize("case", WRONG_SHARDS)
def test_wrong_shards_are_told(case: str) -> None:
    changes, expected = WRONG_SHARDS[case]
    lines = lines_of(piece_of(changed(good(), **changes)))
    assert any(line.startswith(expected) for line in lines), lines
    assert lines[0].startswith("error: ")


def test_places_without_rows_are_episode_and_step() -> None:
    second = changed(random_shard(LENGTHS, 1), rewards=put(7, np.nan))
    lines = lines_of(piece_of(good(), "m.hdf5", rows=False), piece_of(second, "m.hdf5", rows=False))
    assert lines[0].startswith("error: m.hdf5, episode 5, step 2, reward: the value is nan;")


def test_rounding_is_not_out_of_bounds() -> None:
    def worst(excess: float) -> list[str]:
        return lines_of(piece_of(changed(good(), actions=put((3, 0), 2 + excess))))

    assert worst(2e-5) == []
    assert "outside [-2, 2] by up to 0.001;" in worst(1e-3)[0]
    assert len(worst(6e-5)) == 1


def test_open_episodes_are_a_warning_where_others_end() -> None:
    shard = changed(good(), terminations=put([3, 9], False), truncations=put([3, 9], False))
    report = validate(source_of(piece_of(shard)), 10)
    assert report.errors == []
    assert report.lines() == [
        "warning: a.parquet, row 103: the last step is neither terminated nor truncated; training"
        " takes it as truncated (first of 2 episodes); set the flag; --fix marks it as truncated"
    ]


def test_zero_length_episodes() -> None:
    shard = good()
    empty = dataclasses.replace(
        shard,
        lengths=np.array([4, 0, 1, 5]),
        seeds=np.arange(4),
        observations=np.insert(shard.observations, 5, 0, axis=0),
    )
    assert lines_of(piece_of(empty)) == [
        "error: a.parquet, episode 1: an episode without a step; drop it (--fix)"
    ]
    nothing = dataclasses.replace(
        changed(
            shard,
            **{
                name: lambda array: array[:0]
                for name in ("actions", "rewards", "terminations", "truncations")
            },
        ),
        observations=np.full((1, 3), np.nan, np.float32),
        lengths=np.zeros(1, np.int64),
        seeds=np.zeros(1, np.int64),
    )
    lines = lines_of(piece_of(shard), piece_of(nothing, "b.parquet"))
    assert lines[0].startswith("error: b.parquet, episode 0, observation[0]: the value is nan")
    assert "error: b.parquet, episode 0: an episode without a step; drop it (--fix)" in lines


def test_duplicated_episodes() -> None:
    shard = good()
    episodes = list(shard.episodes())
    again = Shard.of([episodes[1], dataclasses.replace(episodes[2], seed=99)], "random")
    assert lines_of(piece_of(shard), piece_of(again, "b.parquet")) == [
        "error: b.parquet, row 100: the same episode, to the bit, as episode 1 of a.parquet (first"
        " of 2 episodes); keep one; --fix drops the later ones"
    ]
    nearly = changed(again, rewards=lambda rewards: np.nextafter(rewards, np.float32(9)))
    assert lines_of(piece_of(shard), piece_of(nearly, "b.parquet")) == []
    assert (
        "as episode 0 (first of 2 episodes)"
        in lines_of(piece_of(Shard.of([episodes[0]] * 3, "x"), rows=False))[0]
    )


def test_next_observations_are_compared_within_episodes() -> None:
    piece = piece_of(good(), following=True)
    following = piece.next_observations
    assert following is not None
    following[[3, 4, 9]] += 1  # the last steps: what follows them is not in the file
    following[1] *= 1 + 5e-6  # rounding
    assert lines_of(piece) == []
    following[[1, 6], 2] = 7
    assert lines_of(piece)[0].startswith(
        "error: a.parquet, row 101, next observation[2]: the next observation is 7, the"
        f" observation of the following step is {piece.shard.observations[2, 2]:g} (first of 2"
        " rows); within an episode they must be equal"
    )
    short = dataclasses.replace(piece, next_observations=following[:-1])
    assert (
        lines_of(short)[0]
        == "error: a.parquet, next_observations: shape (9, 3); it should be (10, 3)"
    )


def test_too_little_data() -> None:
    assert lines_of(piece_of(good()), batch_size=256) == [
        "error: x: 10 transitions; a batch has 256; add data, or set the batch size to 10 or less"
    ]
    assert lines_of() == [
        "error: x: there is not one transition; record or name at least one whole episode"
    ]


def test_a_mixture_of_environments() -> None:
    other = random_shard(LENGTHS, 1, observation_dim=5)
    free = {"id": None, "observation_dim": None, "action_low": None, "action_high": None}
    assert (
        lines_of(piece_of(good()), piece_of(other, "b.parquet"), environment=free)[0]
        == "error: b.parquet, observations: 5 numbers a row, but those of a.parquet have 3: more"
        " than one environment; make one data set for each environment"
    )
    assert lines_of(piece_of(good()), provenance={"environments": ["A-v0", "A-v0", "B-v1"]}) == [
        "error: x: the data names A-v0, but it also names B-v1: more than one environment; "
        "make one data set for each environment"
    ]


def test_another_dtype_in_another_file() -> None:
    other = changed(random_shard(LENGTHS, 1), rewards=lambda rewards: rewards.astype(np.float64))
    assert lines_of(piece_of(good()), piece_of(other, "b.parquet")) == [
        "error: b.parquet, rewards: the values are float64; they should be float32 as in a.parquet;"
        " float32 everywhere is best"
    ]


def test_bounds_that_are_none() -> None:
    def told(low: Any, high: Any) -> str:
        return lines_of(
            piece_of(good()), environment={**ENVIRONMENT, "action_low": low, "action_high": high}
        )[0]

    assert told([-2.0], [2.0]).startswith(
        "error: a.parquet: bounds of 1 actions for data with 2; give one finite low"
    )
    assert told([2.0, -2.0], [2.0, 2.0]).startswith(
        "error: the lower bounds of the actions, [2.0, -2.0], are not all below"
    )
    assert told([-2.0, -2.0], [2.0]).startswith(
        "error: the bounds of the actions are [-2.0, -2.0] and [2.0]"
    )
    assert told("low", 3).startswith("error: the bounds of the actions are low and 3")
    for low, high in ((None, None), ([-np.inf, -2], [np.inf, 2]), ([None, None], [1, 2])):
        assert told(low, high).startswith(
            "warning: x: the data does not say finite bounds of the actions"
        )


def test_what_the_reader_refuses_is_an_error_of_the_report() -> None:
    def pieces() -> Iterator[Piece]:
        yield piece_of(changed(good(), rewards=put(0, np.nan)))
        raise UserError("b.parquet: cut off in the middle; copy it again")

    report = validate(dataclasses.replace(source_of(), pieces=pieces), 10)
    assert report.lines()[0] == "error: b.parquet: cut off in the middle; copy it again"
    assert "not_finite" in report.codes


def big() -> Shard:
    """Long enough for the shares of warnings; nothing wrong with it."""
    return random_shard([100] * 10)


WARNINGS: dict[str, tuple[dict[str, Callable[[Array], Any]], str]] = {
    "constant column": (
        {"observations": put((slice(None), 1), 7)},
        "warning: observation[1]: the value is always 7; leave out columns that never change",
    ),
    "unscaled": (
        {"observations": lambda values: values * np.array([1, 1e-3, 1e3], np.float32)},
        "warning: observation: standard deviations from 0.00",
    ),
    "offset": (
        {"observations": lambda values: values + np.array([0, 0, 1e5], np.float32)},
        "warning: observation[2]: mean 1000",
    ),
    "saturated": (
        {
            "actions": (
                lambda actions: np.where(
                    np.arange(1000)[:, None] < 600, [[-2, 1.5]], actions
                ).astype(np.float32)
            )
        },
        "warning: action[0]: 60% of the actions stand at a bound, -2 or 2; check the bounds",
    ),
    "narrow": (
        {"actions": lambda actions: actions * np.array([1, 0.05], np.float32)},
        "warning: action[1]: actions from -0.0",
    ),
    "reward tail": (
        {"rewards": put(77, -1e6)},
        "warning: reward: the largest reward is 1e+06, the median of those",
    ),
    "cost of time": (
        {"rewards": put(..., -1.0)},
        "warning: reward: every reward is -1: only the time until the termination can be learnt;",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings(case: str) -> None:
    assert lines_of(piece_of(big())) == []
    changes, expected = WARNINGS[case]
    report = validate(source_of(piece_of(changed(big(), **changes))), 10)
    assert report.errors == []
    assert [line[: len(expected)] for line in report.lines()] == [expected]


def test_findings_name_the_columns_of_a_log() -> None:
    columns = {"observation": ["CGM mg/dL", "carbs", "hour"], "action": ["basal", "bolus"]}
    shard = changed(
        big(),
        observations=lambda values: values.__setitem__(5, [np.inf, 0, 0]),
        actions=put((3, 1), 9.0),
    )
    named = lines_of(piece_of(shard), provenance={"columns": columns})
    found = lines_of(piece_of(shard))
    for index, name in (("observation[0]", "CGM mg/dL"), ("action[1]", "bolus")):
        found = [line.replace(index, name) for line in found]
    assert named == found and "CGM mg/dL" in named[0] and "bolus" in named[1]
    constant = changed(big(), observations=put((slice(None), 1), 7))
    (line,) = lines_of(piece_of(constant), provenance={"columns": columns})
    assert line.startswith("warning: carbs: the value is always 7")
    (line,) = lines_of(piece_of(constant), provenance={"columns": {"observation": "state"}})
    assert line.startswith("warning: state[1]: the value is always 7")


def test_sparse_rewards_and_half_used_bounds_are_no_warning() -> None:
    sparse = changed(
        big(),
        rewards=lambda rewards: (rewards > 2.5).astype(np.float32),
        actions=lambda actions: actions * np.float32(0.2),
    )
    assert lines_of(piece_of(sparse)) == []


def test_many_findings_become_a_few_lines() -> None:
    shards = [
        changed(random_shard(LENGTHS, seed), rewards=put([1, 2], np.nan))
        for seed in range(findings.KEPT_PER_CODE + 5)
    ]
    report = validate(
        source_of(*(piece_of(shard, f"{i}.csv") for i, shard in enumerate(shards))), 10
    )
    lines = report.lines()
    assert len(lines) == findings.LINES_PER_CODE + 1
    assert lines[0].startswith("error: 0.csv, row 101, reward: the value is nan (first of 2 rows);")
    assert lines[-1] == f"error: and {2 * (findings.KEPT_PER_CODE + 2):,} more rows like these"
    assert (len(report.errors), report.num_errors) == (
        findings.KEPT_PER_CODE,
        findings.KEPT_PER_CODE + 5,
    )


def test_require_valid_says_the_first_error_and_where_the_rest_is() -> None:
    shard = changed(good(), rewards=put(1, np.nan), actions=put((2, 0), 9))
    with pytest.raises(UserError) as caught:
        require_valid(validate(source_of(piece_of(shard)), 10), "trips")
    assert str(caught.value).startswith(
        "dataset 'trips': a.parquet, row 101, reward: the value is nan;"
    )
    assert str(caught.value).endswith("(cqlray dataset validate trips shows all 2 errors)")
    assert "\n" not in str(caught.value)


# Statistics


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0, 1e6]),
)
def test_moments_of_blocks_are_those_of_the_whole(
    sizes: list[int], seed: int, offset: float
) -> None:
    values = offset + np.random.default_rng(seed).normal(size=(sum(sizes), 2))
    moments, magnitudes = Moments(2), Magnitudes()
    for block in np.split(values, np.cumsum(sizes)[:-1]):
        moments.add(np.vstack([block, [[np.nan, 0]]]))
        magnitudes.add(np.append(block[:, 0], [0, np.inf]))
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.std, values.std(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(
        [moments.minimum, moments.maximum], [values.min(0), values.max(0)]
    )
    lower = np.quantile(np.abs(values[:, 0]), 0.5, method="lower")
    upper = np.quantile(np.abs(values[:, 0]), 0.5, method="higher")
    assert lower * 0.999 <= magnitudes.median <= upper * 1.126
    assert magnitudes.largest == np.float32(np.abs(values[:, 0]).max())


def test_memory_does_not_grow_with_the_number_of_pieces() -> None:
    def pieces(number: int) -> Callable[[], Iterator[Piece]]:
        return lambda: (
            piece_of(random_shard([250] * 8, seed), f"{seed}") for seed in range(number)
        )

    def peak(number: int) -> int:
        tracemalloc.start()
        report = validate(dataclasses.replace(source_of(), pieces=pieces(number)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (report.transitions, report.lines()) == (2000 * number, [])
        return most

    peak(2)  # what is imported and cached at the first call
    assert peak(40) < peak(4) + 300_000  # 36 pieces more, of 57 kB each, are 2 MB


# Mending


def mended(*pieces: Piece) -> tuple[list[Piece], list[str], Report]:
    """What `fix` gives, and the report of that."""
    source = source_of(*pieces)
    before = [piece.shard.digest() for piece in pieces]
    result, lines = fix(source, validate(source, 1))
    assert [
        piece.shard.digest() for piece in pieces
    ] == before  # the source's own arrays are as they were
    assert result.provenance.get("mended", []) == lines
    return list(result.pieces()), lines, validate(result, 1)


def test_fix_clips_what_is_slightly_outside() -> None:
    pieces, lines, report = mended(
        piece_of(changed(good(), actions=put(([3, 3, 8], [0, 1, 0]), [2.04, -2.02, 2.5])))
    )
    assert lines == [
        "clipped the actions of 1 step, outside their bounds by at most 1% of the range"
    ]
    assert pieces[0].shard.actions[3].tolist() == [2, -2]
    assert [str(error).split(";")[0] for error in report.errors] == [
        "a.parquet, row 108, action[0]: actions outside [-2, 2] by up to 0.5"
    ]


def test_fix_sets_ends() -> None:
    shard = changed(
        good(),
        terminations=put(..., [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        truncations=put(..., [0, 0, 0, 1] + [0] * 6),
    )
    pieces, lines, report = mended(piece_of(shard))
    assert lines == [
        "cleared the truncation of 1 step where termination was set too",
        "marked the last step of 2 episodes without an end as truncated",
    ]
    assert np.flatnonzero(pieces[0].shard.terminations).tolist() == [3]
    assert np.flatnonzero(pieces[0].shard.truncations).tolist() == [4, 9]
    assert report.lines() == []


def test_fix_marks_all_ends_where_there_is_none() -> None:
    pieces, lines, report = mended(
        piece_of(changed(good(), terminations=put(..., False), truncations=put(..., False)))
    )
    assert lines == ["marked the last step of 3 episodes without an end as truncated"]
    assert np.flatnonzero(pieces[0].shard.truncations).tolist() == [3, 4, 9]
    assert report.lines() == []


def test_fix_leaves_out_bad_episodes() -> None:
    first = changed(good(), rewards=put(4, np.nan))  # the second episode
    only_bad = changed(random_shard([3], 1), observations=put((3, 0), np.inf))
    duplicate = Shard.of([list(good().episodes())[2]], "random")
    pieces, lines, report = mended(
        piece_of(first, following=True),
        piece_of(only_bad, "b"),
        piece_of(duplicate, "c"),
        piece_of(random_shard([2], 9), "d"),
    )
    assert lines == [
        "left out 2 episodes with a value that is not finite",
        "left out 1 episode equal to an earlier one",
    ]
    assert [piece.file for piece in pieces] == ["a.parquet", "d"]
    episodes = list(good().episodes())
    kept = pieces[0]
    assert kept.shard.digest() == Shard.of([episodes[0], episodes[2]], "random").digest()
    assert kept.rows is not None and kept.next_observations is not None
    assert kept.rows.tolist() == [100, 101, 102, 103, 105, 106, 107, 108, 109]
    np.testing.assert_array_equal(kept.next_observations[4:], episodes[2].observations[1:])
    assert report.lines() == []


def test_fix_leaves_out_episodes_without_steps() -> None:
    shard = good()
    observations = np.insert(shard.observations, 5, 0, axis=0)
    empty = dataclasses.replace(
        shard,
        lengths=np.array([4, 0, 1, 5]),
        seeds=np.array([0, 9, 1, 2]),
        observations=observations,
    )
    pieces, lines, report = mended(piece_of(empty))
    assert lines == ["left out 1 episode without a step"]
    assert pieces[0].shard.digest() == shard.digest()
    assert report.lines() == []


def test_fix_mends_only_what_was_found() -> None:
    shard = changed(good(), actions=put((3, 0), 2.03), rewards=put(0, np.nan))
    source = source_of(piece_of(shard))
    report = validate(source, 1)
    only_nan = dataclasses.replace(
        report, findings=tuple(f for f in report.findings if f.code == "not_finite")
    )
    assert fix(source, only_nan)[1] == ["left out 1 episode with a value that is not finite"]
    ragged = source_of(
        piece_of(changed(good(), lengths=lambda lengths: lengths + 1)), piece_of(shard, "b")
    )
    assert fix(ragged, validate(ragged, 1))[1][0].startswith("left out 1 episode with")
