"""Whole runs on a real Ray cluster: the determinism and failure contracts of DESIGN section 3."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cqlray import UserError, load_policy, seeding
from cqlray.algorithms.policy import DeterministicActor, Policy, UniformActor
from cqlray.api import runs as api
from cqlray.api import session
from cqlray.config.load import dump_yaml
from cqlray.config.schema import EnvConfig, EvaluationConfig, ResourcesConfig
from cqlray.envs.make import EnvPool, describe_env
from cqlray.envs.rollout import rollout
from cqlray.results.record import load_run
from cqlray.results.statistics.summary import summarize
from cqlray.runtime.progress import ProgressDisplay
from cqlray.stages import collect
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory, read_json, write_json
from tests.conftest import small_config
from tests.datasets import read_dataset
from tests.processes import descendants, running

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def outcome(run: Path) -> dict[str, object]:
    """Everything that the contracts promise to be the same bits."""
    files = sorted(
        [*run.glob("checkpoints/*"), *run.glob("snapshots/*/*"), *run.glob("teacher/*.safetensors")]
    )
    rows = {}
    for row in RunDirectory(run).rows("evaluations.jsonl"):
        rows[row["policy"], row["member"], row["updates"]] = {
            k: v for k, v in row.items() if k != "seconds"
        }
    estimates = {
        (row["member"], row["updates"]): {**row, "seconds": 0}
        for row in RunDirectory(run).rows("fqe.jsonl")
    }
    teacher = run / "teacher" / "teacher.json"
    return {
        "files": {str(path.relative_to(run)): path.read_bytes() for path in files},
        "dataset": read_json(run / "dataset" / "dataset.json")["digest"],
        "teacher": read_json(teacher) if teacher.exists() else None,
        "evaluations": rows,
        "estimates": estimates,
    }


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = outcome(run), outcome(other)
    assert ours.keys() == theirs.keys()
    assert ours["files"].keys() == theirs["files"].keys()  # type: ignore[attr-defined]
    for part in ours:
        assert ours[part] == theirs[part], f"{part} differ"


def processes(role: str) -> set[int]:
    """Process ids of the actors of a class, of the cluster that this process started: whoever tests
    beside it has another.
    """
    return running(f"ray::{role}").keys() & {*descendants(os.getpid())}


def test_every_stage_leaves_its_result(finished_run: Path) -> None:
    for name in (
        "config.yaml",
        "manifest.json",
        "members.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "report.html",
    ):
        assert (finished_run / name).is_file(), name
    manifest = read_json(finished_run / "manifest.json")
    assert manifest["finished"] is True
    assert manifest["stages"].keys() == {"teacher", "collection", "students"}
    assert not list(finished_run.rglob(".*tmp*")), "no temporary file is left"
    rows = [
        r for r in RunDirectory(finished_run).rows("evaluations.jsonl") if r["policy"] == "student"
    ]
    assert {(r["member"], r["updates"]) for r in rows} == {
        (m, u) for m in range(3) for u in (110, 220, 330)
    }
    assert all(len(r["returns"]) == 12 for r in rows)


def test_the_dataset_holds_the_tiers_asked_for(finished_run: Path) -> None:
    description, shards = read_dataset(finished_run)
    assert {tier: t["episodes"] for tier, t in description["tiers"].items()} == dict.fromkeys(
        ("replay", "expert", "medium", "random"), 10
    )
    assert sum(shard.num_episodes for shard in shards) == 40
    ends = np.concatenate([s.terminations | s.truncations for s in shards])
    assert ends.sum() == 40, "each episode ends once"
    assert any(s.terminations.any() for s in shards) and any(s.truncations.any() for s in shards)
    low, high = description["environment"]["action_low"], description["environment"]["action_high"]
    assert all((s.actions >= low).all() and (s.actions <= high).all() for s in shards)


def test_another_seed_gives_other_data(finished_run: Path, tmp_path: Path) -> None:
    with ProgressDisplay(quiet=True) as progress:
        config = small_config(tmp_path / "run", seed=1)
        other = session.start(config, progress, dataset_only=True).path
    assert outcome(other)["dataset"] != outcome(finished_run)["dataset"]


SIGNS = [
    "config.yaml",
    "teacher/replay-00000.parquet",
    "teacher/checkpoint.safetensors",
    "teacher/replay-00003.parquet",
    "teacher/teacher.json",
    "dataset/shard-00005.parquet",
    "dataset/dataset.json",
    "snapshots/population-0/000000110.safetensors",
    "checkpoints/population-1.safetensors",
    "snapshots/population-1/000000330.safetensors",
]


def run_killed_at(signs: list[str], tmp_path: Path, ray_cluster: str) -> Path:
    """SIGKILL the driver at the instant that a file appears, resume, kill again at the next file,
    and so on.
    """
    out = tmp_path / "run"
    (tmp_path / "c.yaml").write_text(dump_yaml(small_config(out)))
    words = ["run", "--config", str(tmp_path / "c.yaml")]
    for sign in signs:
        command = [sys.executable, "-m", "cqlray", *words, "--quiet"]
        environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as run:
            while not (out / sign).exists():
                assert run.poll() is None, run.stderr.read().decode() if run.stderr else ""
                time.sleep(0.001)
            run.kill()
        words = ["resume", str(out)]
    assert not (out / "report.html").exists()
    api.resume(out, quiet=True)
    return out


def test_a_killed_run_ends_with_the_same_bits(
    finished_run: Path, ray_cluster: str, tmp_path: Path
) -> None:
    """At the other signs, and at each alone: nightly/test_same_bits.py."""
    assert_same(finished_run, run_killed_at(SIGNS[2::3], tmp_path, ray_cluster))


VICTIMS = [
    ("RolloutWorker", "config.yaml"),
    ("Evaluator", "config.yaml"),
    ("Teacher", "teacher/checkpoint.safetensors"),
    ("Learner", "checkpoints/population-0.safetensors"),
    # between its last file and its last word
    ("Learner", "snapshots/population-1/000000330.safetensors"),
]


def run_with_killed(victims: list[tuple[str, str]], tmp_path: Path, **changes: object) -> Path:
    """One after the other is killed in the same run."""
    out, over = tmp_path / "run", threading.Event()
    before = {role: processes(role) for role, _ in victims}
    killed: list[int] = []

    def assassin() -> None:
        for role, sign in victims:
            while not (
                (out / sign).exists() and (found := processes(role) - before[role] - {*killed})
            ):
                if over.wait(0.001):
                    return
            killed.append(found.pop())
            os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=assassin)
    thread.start()
    try:
        api.run(small_config(out, **changes), quiet=True)
    finally:
        over.set()
        thread.join()
    assert len(killed) == len(victims), "the actors were found and killed"
    return out


def test_killed_actors_are_replaced_and_who_works_changes_nothing(
    finished_run: Path, tmp_path: Path
) -> None:
    """With a worker more than the other had. Each victim alone, and other numbers of workers:
    nightly/test_same_bits.py.
    """
    resources = ResourcesConfig(rollout_workers=3, evaluators=1, learners=2)
    assert_same(finished_run, run_with_killed(VICTIMS, tmp_path, resources=resources))


def test_interrupted_runs_stop_soon_and_say_how_to_go_on(
    finished_run: Path, ray_cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = small_config(out, dataset=str(finished_run))
    config = dataclasses.replace(config, cql=dataclasses.replace(config.cql, num_updates=1_000_000))
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    command = [sys.executable, "-m", "cqlray", "train", "--config", str(tmp_path / "c.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        while not (out / "checkpoints" / "population-0.safetensors").exists():
            assert run.poll() is None
            time.sleep(0.01)
        asked = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert run.returncode == 130
    assert f"cqlray resume {out}" in said
    assert "Traceback" not in said


def test_offline_means_offline(finished_run: Path, tmp_path: Path) -> None:
    """Training touches no environment, only evaluators do; and the dataset is the same before and
    after.
    """
    log = tmp_path / "environment.log"
    before = {path: path.read_bytes() for path in (finished_run / "dataset").iterdir()}
    config = small_config(
        tmp_path / "run",
        dataset=str(finished_run),
        env=EnvConfig("tests.toy_envs:Point-v0", kwargs={"log": str(log)}),
        resources=ResourcesConfig(learners=2, evaluators=1),
    )
    api.run(config, quiet=True)
    users = {line.split()[1] for line in log.read_text().splitlines() if line.startswith("reset")}
    assert len(users) == 1, "one process, the one evaluator, ever reset an environment"
    assert {path: path.read_bytes() for path in (finished_run / "dataset").iterdir()} == before
    assert summarize(load_run(finished_run), 10, 0)["references_of_data"] == []
    assert summarize(load_run(tmp_path / "run"), 10, 0)["references_of_data"] == [
        "teacher",
        "random",
    ]
    with ProgressDisplay(quiet=True) as progress:
        again = session.evaluate(tmp_path / "run", 2, progress)
    assert summarize(again, 10, 0)["references_of_data"] == ["teacher"], (
        "whose snapshot this run does not have"
    )

    silent = tmp_path / "silent.log"
    untested = dataclasses.replace(
        config,
        out=str(tmp_path / "untested"),
        env=EnvConfig("tests.toy_envs:Point-v0", kwargs={"log": str(silent)}),
        evaluation=EvaluationConfig(interval=110, episodes=0),
    )
    api.run(untested, quiet=True)
    assert not silent.exists(), "without tests no environment is even made"
    for name in ("run", "untested"):
        ours = outcome(tmp_path / name)["files"]
        theirs = outcome(finished_run)["files"]
        assert ours == {k: v for k, v in theirs.items() if not k.startswith("teacher")}, (
            "and the students are the same"
        )  # type: ignore[attr-defined]


def test_the_users_exception_ends_the_run_with_its_traceback(
    ray_cluster: str, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "cqlray",
        "run",
        "--env",
        "tests.toy_envs:Broken-v0",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError: the spring snapped" in done.stderr
    assert "episode seed" in done.stderr.splitlines()[-1]


def test_loaded_policies_act_in_the_environments_bounds(finished_run: Path) -> None:
    policy = load_policy(finished_run)
    observations = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    actions = policy(observations)
    assert actions.shape == (50, 1) and (actions >= -2).all() and (actions <= 3).all()
    np.testing.assert_allclose(policy(observations[7]), actions[7], rtol=1e-6)
    rows = [
        r
        for r in RunDirectory(finished_run).rows("evaluations.jsonl")
        if r["policy"] == "student" and r["updates"] == 330
    ]
    assert policy.member == max(rows, key=lambda row: np.mean(row["returns"]))["member"]
    assert load_policy(finished_run, member=2).member == 2
    with pytest.raises(UserError, match="has no member 3; its members are 0 to 2"):
        load_policy(finished_run, member=3)
    with pytest.raises(ValueError, match="should be"):
        policy(np.zeros(5))


def test_calibration_is_what_the_critics_and_rewards_say(finished_run: Path) -> None:
    """One row against the value and the discounted return computed here from the snapshot."""
    manifest = read_json(finished_run / "manifest.json")
    members = manifest["plan"]["populations"][1]
    arrays, _ = checkpoint.decode(
        (finished_run / "snapshots/population-1/000000330.safetensors").read_bytes()
    )
    policy = Policy(arrays).member(0)
    env = EnvConfig("tests.toy_envs:Point-v0")
    seeds = seeding.integer_seeds(0, "evaluation", count=12)
    episodes = rollout(
        DeterministicActor(policy), EnvPool(env).take(12), seeds, describe_env(env).scaling
    )
    (row,) = [
        r
        for r in RunDirectory(finished_run).rows("evaluations.jsonl")
        if r["policy"] == "student" and r["member"] == members[0] and r["updates"] == 330
    ]
    np.testing.assert_allclose(row["returns"], [e.rewards.sum() for e in episodes], rtol=1e-5)
    discounted = [sum(0.99**t * r for t, r in enumerate(e.rewards)) for e in episodes]
    np.testing.assert_allclose(row["discounted_return"], np.mean(discounted), rtol=1e-5)
    first = np.stack([e.observations[0] for e in episodes])[None]
    np.testing.assert_allclose(
        row["value"], policy.value(first, policy.act(first)).mean(), rtol=1e-4
    )


def test_evaluate_command_tests_all_on_the_same_fresh_episodes_and_writes_nothing(
    finished_run: Path, ray_cluster: str
) -> None:
    before = (finished_run / "evaluations.jsonl").read_bytes()
    command = [
        sys.executable,
        "-m",
        "cqlray",
        "evaluate",
        str(finished_run),
        "--episodes",
        "7",
        "--json",
        "--quiet",
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert [len(member["returns"]) for member in result["members"]] == [7, 7, 7]
    assert result["iqm_low"] <= result["iqm"] <= result["iqm_high"]
    assert result["run_dir"] == str(finished_run)
    assert (finished_run / "evaluations.jsonl").read_bytes() == before

    best = read_json(finished_run / "teacher" / "teacher.json")["best_round"]
    arrays, _ = checkpoint.decode(
        (finished_run / "teacher" / f"snapshot-{best:05d}.safetensors").read_bytes()
    )
    seeds = tuple(seeding.integer_seeds(0, "evaluate-again", count=7))
    env, spec = (
        EnvPool(EnvConfig("tests.toy_envs:Point-v0")),
        describe_env(EnvConfig("tests.toy_envs:Point-v0")),
    )
    actors = {
        "teacher": DeterministicActor(Policy(arrays)),
        "random": UniformActor(spec.action_dim, seeds),
    }
    for name, actor in actors.items():
        played = rollout(actor, env.take(7), list(seeds), spec.scaling)
        np.testing.assert_allclose(
            result[name], np.mean([episode.rewards.sum() for episode in played]), rtol=1e-5
        )
    scores, scale = result["normalized"], result["teacher"] - result["random"]
    assert (scores["random"], scores["reference"]) == (
        result["random"],
        result["teacher"],
    ), "the same episodes"
    np.testing.assert_allclose(scores["iqm"], 100 * (result["iqm"] - result["random"]) / scale)


@pytest.mark.parametrize(("best", "medium"), [(-10.0, 4), (-70.0, 2), (-120.0, 2)])
def test_the_medium_snapshot(tmp_path: Path, best: float, medium: int) -> None:
    """The first past a third of the way from random to best; the best itself where the teacher
    never got past random.
    """
    (tmp_path / "config.yaml").write_text("")
    run, config = RunDirectory(tmp_path), small_config(tmp_path)
    tests = [{"round": 2, "mean_return": min(best, -75.0)}, {"round": 4, "mean_return": best}]
    write_json(
        run / "teacher" / "teacher.json", {"best_return": best, "best_round": 4, "tests": tests}
    )
    run.append(
        "evaluations.jsonl",
        [{"policy": "random", "member": None, "updates": None, "returns": [-90.0, -110.0]}],
    )
    for rounds in (2, 4):
        (run / "teacher" / f"snapshot-{rounds:05d}.safetensors").write_bytes(bytes([rounds]))
    here: Any = SimpleNamespace(config=config, directory=run)
    assert collect.medium(here) == bytes([medium])
