"""The command line where it meets the cluster or a finished run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cqlray.cli.flags import parse_config
from cqlray.cli.main import main
from cqlray.config.read_yaml import load_yaml
from cqlray.config.schema import to_dict
from tests.unit.cli.test_main import ROOT, mistake

pytestmark = pytest.mark.ray


def test_mistakes_that_need_the_cluster(
    capsys: pytest.CaptureFixture[str], finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = mistake(capsys, "run", "--resources.gpus", "8", "--out", str(out))
    assert (
        said
        == "resources.gpus is 8, but the cluster has 0 GPUs; ask for at most that, or add nodes"
    )
    (tmp_path / "file").write_text("x")
    said = mistake(capsys, "run", "--out", str(tmp_path / "file" / "run"))
    assert said.endswith("cannot be written: Not a directory")
    said = mistake(
        capsys, "train", "--dataset", str(finished_run), "--env", "Pendulum-v1", "--out", str(out)
    )
    assert (
        said == f"dataset {str(finished_run)!r} is from tests.toy_envs:Point-v0, not from env.id"
        " 'Pendulum-v1'"
    )
    shard = next((finished_run / "dataset").glob("*.parquet"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (finished_run / "dataset").iterdir():
        (damaged / path.name).write_bytes(
            path.read_bytes()[: 100 if path.name == shard.name else None]
        )
    words = ["--env", "tests.toy_envs:Point-v0", "--out", str(tmp_path / "other"), "--quiet"]
    said = mistake(capsys, "train", "--dataset", str(damaged), *words)
    assert said.startswith(f"{damaged / shard.name}: not a readable Parquet file")
    assert not out.exists() and not (tmp_path / "other").exists()


def test_output_for_programs(finished_run: Path, ray_cluster: str, tmp_path: Path) -> None:
    """Progress goes to stderr; the last line of stdout is one JSON object with the keys that
    programs rely on.
    """
    command = [
        "train",
        "--dataset",
        str(finished_run),
        "--out",
        str(tmp_path / "run"),
        "--num-seeds",
        "2",
        "--json",
    ]
    command += ["--env", "tests.toy_envs:Point-v0"]
    command += [
        "--cql.num-updates",
        "60",
        "--cql.hidden-units",
        "8",
        "--evaluation.interval",
        "30",
        "--evaluation.episodes",
        "4",
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    done = subprocess.run(
        [sys.executable, "-m", "cqlray", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= {
        *(
            "iqm",
            "iqm_low",
            "iqm_high",
            "worst_member",
            "members",
            "teacher",
            "dataset",
            "random",
            "run_dir",
            "seconds",
        )
    }
    assert [member["member"] for member in result["members"]] == [0, 1]
    assert all(len(member["returns"]) == 4 and "seed" in member for member in result["members"])
    assert result["teacher"] is not None and result["random"] is not None, (
        "the dataset brings its references along"
    )
    assert "students" in done.stderr and "cluster" in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_sample_config_runs_again(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = parse_config(["--config", str(finished_run / "config.yaml")], "run")
    assert to_dict(config) == load_yaml(finished_run / "config.yaml")


def test_dataset_info(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "info", str(finished_run)]) == 0
    printed = capsys.readouterr().out
    assert "40" in printed and "medium" in printed
    assert main(["dataset", "info", str(finished_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 40


def test_doctor_finds_this_machine_well(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert main(["doctor", "--out", str(tmp_path), "--env", "Nothing-v3"]) == 1
    assert "FAIL environment" in capsys.readouterr().out
