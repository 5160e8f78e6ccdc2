"""Choosing without the environment: fitted Q beside training, afterwards, and after a kill; what
best is chosen by.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cqlray import UserError, load_policy
from cqlray.algorithms.fqe import FQEConfig
from cqlray.api import runs as api
from cqlray.cli.main import main
from cqlray.config.schema import EnvConfig
from cqlray.stages import evaluate as judges
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config

pytestmark = pytest.mark.ray


def estimates(run: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The rows of fitted Q, without the seconds they took."""
    rows = RunDirectory(run).rows("fqe.jsonl")
    return {
        (row["member"], row["updates"]): {k: v for k, v in row.items() if k != "seconds"}
        for row in rows
    }


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fits of few updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "FQEConfig", partial(FQEConfig, num_updates=60))
        yield


@pytest.fixture(scope="module")
def judged(quick: None, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Students of logged data without an environment: judged by the data alone, without being asked
    to.
    """
    out = tmp_path_factory.mktemp("judged") / "run"
    config = small_config(out, dataset=str(finished_run), env=EnvConfig("none"))
    return api.run(config, quiet=True).run_dir


def test_without_an_environment_every_snapshot_is_judged_by_the_data(
    judged: Path, tmp_path: Path
) -> None:
    assert estimates(judged).keys() == {
        (member, updates) for member in range(3) for updates in (110, 220, 330)
    }
    assert not [
        row for row in RunDirectory(judged).rows("evaluations.jsonl") if row["policy"] == "student"
    ]
    last = {
        member: row["fqe_return"]
        for (member, updates), row in estimates(judged).items()
        if updates == 330
    }
    best = max(last, key=lambda member: last[member])
    for policy in (load_policy(judged), load_policy(judged, by="fqe")):
        assert (policy.member, policy.chosen_by) == (best, "fqe")
    with pytest.raises(
        UserError,
        match="has no test of its students, but fitted Q evaluation of them: choose by 'fqe'",
    ):
        load_policy(judged, by="return")
    without_estimates = tmp_path / "run"
    shutil.copytree(judged, without_estimates)
    rows = [{**row, "fqe_return": None} for row in RunDirectory(judged).rows("fqe.jsonl")]
    (without_estimates / "fqe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for by in (None, "return"):
        with pytest.raises(UserError, match="has no test of its students yet; name a member"):
            load_policy(without_estimates, by=by)
    with pytest.raises(UserError, match="by is 'luck'; it should be 'return' or 'fqe'"):
        load_policy(judged, by="luck")


def test_what_the_data_says_is_in_the_frames_and_any_snapshot_can_be_had(judged: Path) -> None:
    run, found = api.load_run(judged), estimates(judged)
    assert run.members["fqe_return"].to_dict() == {
        member: found[member, 330]["fqe_return"] for member in range(3)
    }
    curves = run.curves().set_index(["member", "updates"])
    assert curves["fqe_return"].to_dict() == {key: row["fqe_return"] for key, row in found.items()}
    assert curves["mean_return"].isna().all()
    early = {member: found[member, 110]["fqe_return"] for member in range(3)}
    policy = load_policy(judged, by="fqe", updates=110)
    assert (policy.member, policy.updates) == (max(early, key=lambda member: early[member]), 110)


def test_what_was_lost_of_it_is_made_again_to_the_bit(judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(judged, out)
    lines = (out / "fqe.jsonl").read_text().splitlines(keepends=True)
    (out / "fqe.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["updates"] != 220)
    )
    (out / "config.yaml").write_text(
        (out / "config.yaml").read_text().replace(str(judged), str(out))
    )
    api.resume(out, quiet=True)
    assert estimates(out) == estimates(judged)


def test_afterwards_and_only_once(
    finished_run: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with pytest.raises(
        UserError, match=f"has no fitted Q evaluation .*cqlray evaluate {out} --fitted-q"
    ):
        load_policy(out, by="fqe")
    assert load_policy(out).chosen_by == "return"
    assert main(["evaluate", str(out), "--fitted-q", "--quiet", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["members"]
    assert [row["member"] for row in rows] == [0, 1, 2] and all(
        row["updates"] == 330 for row in rows
    )
    assert load_policy(out, by="fqe").chosen_by == "fqe"
    before = (out / "fqe.jsonl").read_bytes()
    assert main(["evaluate", str(out), "--fitted-q", "--quiet"]) == 0
    assert (out / "fqe.jsonl").read_bytes() == before
    assert "Choosing without the environment" in (out / "report.html").read_text()


def test_beside_tests_in_the_environment(finished_run: Path, judged: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", dataset=str(finished_run))
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, fitted_q=True)
    )
    out = api.run(config, quiet=True).run_dir
    assert estimates(out) == estimates(judged), "the same students and data give the same estimates"
    assert load_policy(out).chosen_by == "return" and load_policy(out, by="fqe").chosen_by == "fqe"
