"""D4RL's reference scores, and what a data set's scores are normalised by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqlray.results.statistics.reference_scores import (
    ReferenceScores,
    d4rl_reference,
    normalized_scores,
    reference_scores,
)
from cqlray.results.statistics.resampling import iqm


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("halfcheetah-medium-v2", (-280.178953, 12135.0)),
        ("hopper-expert-v0", (-20.272305, 3234.3)),
        ("walker2d-full-replay-v2", (1.629008, 4592.3)),
        ("ant-random-v1", (-325.6, 3879.7)),
        ("pen-human-v1", (96.262799, 3076.8331017826877)),
        ("hammer-cloned-v0", (-274.856578, 12794.134825156867)),
        ("door-expert-v1", (-56.512833, 2880.5693087298737)),
        ("relocate-human-v0", (-6.425911, 4233.877797728884)),
        ("antmaze-large-diverse-v2", (0.0, 1.0)),
        ("maze2d-umaze-dense-v1", (68.537689, 193.66285642381482)),
        ("kitchen-mixed-v0", (0.0, 4.0)),
        ("carla-lane-v0", (-0.8503839912088142, 1023.5784385429523)),
        ("halfcheetah_medium_expert-v2.hdf5", (-280.178953, 12135.0)),
        ("s3://bucket/d4rl/Hopper_medium-v2.hdf5", (-20.272305, 3234.3)),
        ("D4RL/pen/human-v2", (96.262799, 3076.8331017826877)),
        ("minari:D4RL/door/expert-v2", (-56.512833, 2880.5693087298737)),
    ],
)
def test_published_scores(name: str, scores: tuple[float, float]) -> None:
    assert d4rl_reference(name) == scores


@pytest.mark.parametrize(
    "name",
    [
        "minari:mujoco/halfcheetah/medium-v0",
        "mujoco/hopper/expert-v0",
        "minari:somebody/halfcheetah-medium-v2",
        "D4RL/antmaze/umaze-v1",  # another reward than D4RL's
        "D4RL/pointmaze/umaze-v2",
        "hopper-full-replay-v0",  # never was
        "hopper-medium-v3",
        "hopper-medium",
        "maze2d-umaze-v0",
        "HalfCheetah-v5",
        "",
    ],
)
def test_no_score_where_d4rl_has_none(name: str) -> None:
    assert d4rl_reference(name) is None


def test_normalized_by_hand() -> None:
    assert normalized_scores(-280.178953, -280.178953, 12135.0) == 0.0
    assert normalized_scores(12135.0, -280.178953, 12135.0) == 100.0
    assert normalized_scores(3.0, 1.0, 5.0) == 50.0
    assert np.isnan(normalized_scores(3.0, 1.0, 1.0))
    scores = normalized_scores(
        [[-1000.0, 5.0], [-150.0, 7.0]], random=[-1000.0, 5.0], reference=[-150.0, 9.0]
    )
    np.testing.assert_allclose(scores, [[0.0, 0.0], [100.0, 50.0]])
    assert normalized_scores(-575.0, -1000.0, -150.0) == 50.0
    assert ReferenceScores(-1000.0, -150.0, "").normalized(-575.0) == 50.0
    np.testing.assert_array_equal(
        normalized_scores([1.0, 2.0], [3.0, 0.0], [3.0, 1.0]), [np.nan, 200.0]
    )
    assert normalized_scores([], 0.0, 1.0).shape == (0,)


def test_normalising_may_come_after_the_iqm() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 9))
    assert iqm(normalized_scores(scores, -3.0, 2.0)) == pytest.approx(
        float(normalized_scores(iqm(scores), -3.0, 2.0))
    )


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1.0, 1e6))
def test_normalized_is_turned_back(score: float, random: float, span: float) -> None:
    there = normalized_scores(score, random, random + span)
    assert there / 100.0 * ((random + span) - random) + random == pytest.approx(
        score, rel=1e-6, abs=1e-6
    )


OWN = {"reference_scores": {"random": 1.0, "expert": 11.0}}
FILE = {"provenance": [{"source": "data/hopper_medium-v2.hdf5", "format": "d4rl"}]}
PORT = {
    "provenance": [
        {"source": "minari:D4RL/pen/human-v2", "format": "minari", "minari_id": "D4RL/pen/human-v2"}
    ]
}
TESTED = {"reference_returns": {"teacher": [-100.0, -200.0], "random": [-1000.0]}}


@pytest.mark.parametrize(
    ("description", "random", "reference", "words"),
    [
        (FILE, -20.272305, 3234.3, "D4RL's published"),
        (PORT, 96.262799, 3076.8331017826877, "D4RL's published"),
        (TESTED, -1000.0, -150.0, "the teacher of this data set"),
        ({**TESTED, **FILE}, -20.272305, 3234.3, "D4RL's published"),
        ({**OWN, **PORT, **TESTED}, 1.0, 11.0, "own reference scores"),
        (
            {"provenance": [{"format": "cqlray", "sources": FILE["provenance"]}]},
            -20.272305,
            3234.3,
            "D4RL's published",
        ),
        ({"provenance": FILE["provenance"] * 2}, -20.272305, 3234.3, "D4RL's published"),
    ],
)
def test_what_a_data_set_is_normalised_by(
    description: dict[str, Any], random: float, reference: float, words: str
) -> None:
    found = reference_scores(description)
    assert found is not None
    assert (found.random, found.reference) == (random, reference)
    assert words in found.source


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"provenance": [{"source": "hopper_medium-v2.parquet", "format": "parquet"}]},
        {"provenance": [*FILE["provenance"], *PORT["provenance"]]},
        {"provenance": [*FILE["provenance"], {"source": "my.csv", "format": "csv"}]},
        {
            "provenance": [
                {"source": "m", "format": "minari", "minari_id": "somebody/hopper-medium-v2"}
            ]
        },
        {"reference_returns": {"teacher": [1.0]}},
        {"reference_returns": {"teacher": [1.0], "random": [2.0]}},
        {"reference_returns": {"teacher": [], "random": []}},
        {"reference_scores": {"random": 1.0}},
    ],
)
def test_no_scores_where_the_data_set_gives_none(description: dict[str, Any]) -> None:
    assert reference_scores(description) is None
