"""How well fitted Q evaluation ranks real policies: real runs, of minutes, whose snapshots are
tested in many episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cqlray import PRESETS
from cqlray.api import runs as api
from cqlray.config.schema import CollectionConfig, EnvConfig, EvaluationConfig, RunConfig
from cqlray.results.record import events, fitted_q_rows, load_run
from cqlray.results.report.selection_sentences import (
    agreement_sentences,
    chosen_sentences,
    judged_snapshots,
    trust,
    trust_sentences,
)
from cqlray.results.report.timeline import time_line
from cqlray.results.statistics.summary import RunRecord, reference_return

MEMBERS, SNAPSHOTS, EPISODES, UPDATES = 4, 8, 40, 3200
without_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed")


def pendulum() -> RunConfig:
    """A short teacher, and students that are seen from their first updates until they are about as
    good as it.
    """
    preset = PRESETS["pendulum"]
    return dataclasses.replace(
        preset,
        num_seeds=MEMBERS,
        teacher=dataclasses.replace(preset.teacher, rounds=14),
        cql=dataclasses.replace(preset.cql, num_updates=UPDATES),
        evaluation=EvaluationConfig(
            interval=UPDATES // SNAPSHOTS, episodes=EPISODES, fitted_q=True
        ),
    )


def reacher() -> RunConfig:
    """As pendulum, with episodes of a quarter its length.

    Students are soon equally good here: these learn slower.
    """
    config = pendulum()
    rates = {"policy_learning_rate": 5e-5, "critic_learning_rate": 5e-5}
    return dataclasses.replace(
        config,
        env=EnvConfig("Reacher-v5"),
        teacher=dataclasses.replace(config.teacher, episodes_per_round=8, reward_scale=1.0),
        collection=CollectionConfig(tiers=("replay", "medium", "random"), episodes=(100,)),
        cql=dataclasses.replace(config.cql, reward_scale=1.0, **rates),
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "config", [pendulum(), pytest.param(reacher(), marks=without_mujoco)], ids=lambda c: c.env.id
)
def test_estimates_rank_snapshots_as_their_returns_do(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: RunConfig
) -> None:
    """The README's claim: a rank correlation of at least 0.7 with true returns, over snapshots of
    different quality.
    """
    run = api.run(dataclasses.replace(config, out=str(tmp_path / "run")), quiet=True).run_dir
    record = load_run(run)
    judged = judged_snapshots(record, fitted_q_rows(record))
    assert len(judged) == MEMBERS * SNAPSHOTS
    episodes = np.array(
        [row["returns"] for row in record.evaluations if row["policy"] == "student"]
    )
    assert episodes.shape == (MEMBERS * SNAPSHOTS, EPISODES)
    found = trust(judged, 2000, 0)
    with capsys.disabled():
        print(
            f"\n{config.env.id}, mean returns of {episodes.mean(1).min():.1f} to"
            f" {episodes.mean(1).max():.1f}"
        )
        print(
            *trust_sentences(judged, found),
            *agreement_sentences(judged),
            *chosen_sentences(judged),
            sep="\n",
        )
        print(*_costs(record), sep="\n")
    teacher, random = (reference_return(record, name) for name in ("teacher", "random"))
    assert teacher is not None and random is not None
    assert episodes.mean(1).std() > 0.05 * (teacher - random), (
        "of different quality: near equals nobody can rank"
    )
    assert found.overall.rho >= 0.7


def _costs(record: RunRecord) -> Iterator[str]:
    """Seconds of fitted Q and of training, as the run's own files have them; of processes of one
    thread each.
    """
    fits = sum(row["seconds"] for row in fitted_q_rows(record))
    yield (
        f"fits took {fits:.1f} s, {fits / MEMBERS / SNAPSHOTS:.2f} s for each policy; stages"
        f" {record.manifest['stages']}"
    )
    for (stage, role), busy in time_line(events(record), False).busy.items():
        if stage == "students":
            yield f"{role}: {busy.processes} processes at work for {busy.busy_seconds:.1f} s in all"
