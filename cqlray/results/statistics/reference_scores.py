"""Normalised scores, where 0 is a random policy and 100 the reference (an expert), as in D4RL (Fu
et al. 2020, arXiv 2004.07219).

The numbers are D4RL's: REF_MIN_SCORE and REF_MAX_SCORE of d4rl/infos.py (version 1.1), each
compared with the ref_min_score and ref_max_score with which d4rl registers the environment or, for
ant, with another project's copy of the table. What only one of the two has is left out: maze2d's v0
and eval mazes, antmaze's v1, flow, PyBullet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cqlray.results.statistics.resampling import Floats

_LOCOMOTION = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
_ADROIT = ("human", "cloned", "expert")
_ANTMAZE = (
    "umaze",
    "umaze-diverse",
    "medium-play",
    "medium-diverse",
    "large-play",
    "large-diverse",
)
_KITCHEN = ("complete", "partial", "mixed")


@dataclass(frozen=True)
class ReferenceScores:
    """The scale on which the scores of a data set are normalised."""

    random: float
    """The mean return that counts as 0."""
    reference: float
    """The mean return that counts as 100."""
    source: str
    """Where the two are from, in words."""

    def normalized(self, scores: ArrayLike) -> Floats:
        """The scores on this scale."""
        return normalized_scores(scores, self.random, self.reference)


def _d4rl_table() -> dict[str, tuple[float, float]]:
    """(random, expert) mean returns by data set name."""
    table: dict[str, tuple[float, float]] = {
        "maze2d-open-v0": (0.01, 20.66),
        "maze2d-umaze-v1": (23.85, 161.86),
        "maze2d-medium-v1": (13.13, 277.39),
        "maze2d-large-v1": (6.7, 273.99),
        "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
        "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
        "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
        "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
        "minigrid-fourrooms-v0": (0.01442, 2.89685),
        "minigrid-fourrooms-random-v0": (0.01442, 2.89685),
        "carla-lane-v0": (-0.8503839912088142, 1023.5784385429523),
        "carla-town-v0": (-114.81579500772153, 2440.1772022247314),
    }
    families: tuple[tuple[str, tuple[str, ...], tuple[int, ...], tuple[float, float]], ...] = (
        ("halfcheetah", _LOCOMOTION, (0, 1, 2), (-280.178953, 12135.0)),
        ("hopper", _LOCOMOTION, (0, 1, 2), (-20.272305, 3234.3)),
        ("walker2d", _LOCOMOTION, (0, 1, 2), (1.629008, 4592.3)),
        ("ant", _LOCOMOTION, (0, 1, 2), (-325.6, 3879.7)),
        ("pen", _ADROIT, (0, 1), (96.262799, 3076.8331017826877)),
        ("hammer", _ADROIT, (0, 1), (-274.856578, 12794.134825156867)),
        ("door", _ADROIT, (0, 1), (-56.512833, 2880.5693087298737)),
        ("relocate", _ADROIT, (0, 1), (-6.425911, 4233.877797728884)),
        ("antmaze", _ANTMAZE, (0, 2), (0.0, 1.0)),
        ("kitchen", _KITCHEN, (0,), (0.0, 4.0)),
    )
    for task, kinds, versions, scores in families:
        table |= {f"{task}-{kind}-v{version}": scores for kind in kinds for version in versions}
    return {
        name: scores for name, scores in table.items() if not re.search("full-replay-v0$", name)
    }


_D4RL = _d4rl_table()
# Minari's Adroit data are D4RL's v1 episodes, replayed. Its other ports of D4RL's data have other
# rewards or goals.
_MINARI_ADROIT = re.compile(r"D4RL/(pen|hammer|door|relocate)/(human|cloned|expert)-v\d+")


def d4rl_reference(name: str) -> tuple[float, float] | None:
    """(random, expert) mean returns that D4RL published for a data set; None where it published
    none.

    Args:
        name: D4RL's name (halfcheetah-medium-v2), its file's name (halfcheetah_medium-v2.hdf5), a
            path or URI that ends in one, or the id of Minari's port of Adroit data
            (D4RL/pen/human-v2, with or without `minari:`). Minari's mujoco/... data sets are from
            other environments; their metadata has their reference scores.
    """
    ported = _MINARI_ADROIT.fullmatch(name.removeprefix("minari:"))
    if ported:
        return _D4RL[f"{ported[1]}-{ported[2]}-v1"]
    if name.startswith("minari:"):
        return None
    file = name.replace("\\", "/").rpartition("/")[2]
    return _D4RL.get(re.sub(r"\.(hdf5|h5)$", "", file).replace("_", "-").lower())


def normalized_scores(scores: ArrayLike, random: ArrayLike, reference: ArrayLike) -> Floats:
    """Scores on a scale where `random` is 0 and `reference` is 100; NaN where the two are equal.

    The map is affine and rising, so it may be applied to an IQM and the ends of its interval as
    well as to the scores.

    Args:
        scores: of any shape; with several environments [members, environments].
        random, reference: one for all scores, or [environments].
    """
    zero, hundred = np.asarray(random, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    span = np.where(hundred == zero, np.nan, hundred - zero)
    return np.asarray(100.0 * (np.asarray(scores, dtype=np.float64) - zero) / span)


def reference_scores(description: Mapping[str, Any]) -> ReferenceScores | None:
    """The scale for a data set's scores: by the reference scores in its description; by D4RL's,
    where it is one of D4RL's data sets; or by the mean returns of the teacher and the random policy
    that cqlray tested when it collected the data. None where there is none of these.

    Args:
        description: the contents of dataset.json.
    """
    given = description.get("reference_scores")
    if isinstance(given, Mapping) and {"random", "expert"} <= set(given):
        return ReferenceScores(
            float(given["random"]), float(given["expert"]), "the data set's own reference scores"
        )
    published = {_published(origin) for origin in _origins(description.get("provenance"))}
    # Data joined from several sources has a scale only where all of them have the same.
    if len(published) == 1 and (scores := published.pop()) is not None:
        return ReferenceScores(*scores, "D4RL's published reference scores")
    tested = description.get("reference_returns")
    if isinstance(tested, Mapping) and tested.get("random") and tested.get("teacher"):
        random, teacher = (
            sum(tested[policy]) / len(tested[policy]) for policy in ("random", "teacher")
        )
        if teacher > random:  # otherwise better policies would score lower
            return ReferenceScores(
                random, teacher, "the random policy and the teacher of this data set"
            )
    return None


def _origins(provenance: Any) -> Iterator[Mapping[str, Any]]:
    """The sources of the data; for a source that was a cqlray dataset, that dataset's sources."""
    for origin in provenance or ():
        if origin.get("sources"):
            yield from _origins(origin["sources"])
        else:
            yield origin


def _published(origin: Mapping[str, Any]) -> tuple[float, float] | None:
    """D4RL's scores for a source of the data, recognised by its Minari id or by the name of a file
    in D4RL's format.
    """
    minari_id, source = origin.get("minari_id"), origin.get("source")
    if isinstance(minari_id, str):
        return d4rl_reference(f"minari:{minari_id}")
    return (
        d4rl_reference(source)
        if origin.get("format") == "d4rl" and isinstance(source, str)
        else None
    )
