"""Videos of the policies of real runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest

from cqlray import UserError
from cqlray.api import runs as api
from cqlray.cli import main as cli
from cqlray.config.schema import EnvConfig
from cqlray.results import video
from tests.conftest import small_config

pytestmark = pytest.mark.ray


def test_the_command(
    finished_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["video", str(finished_run), "--out", str(tmp_path / "v.gif")]) == 0
    assert capsys.readouterr().out.startswith(
        "no video: tests.toy_envs:Point-v0 cannot be rendered"
    )
    assert not (tmp_path / "v.gif").exists()
    for words, said in (
        (["--policy", "ghost"], "there is no policy 'ghost'; they are student, teacher, random"),
        (["--member", "9"], "has no member 9; its members are 0 to 2"),
        (["--out", "v.avi"], "videos are .gif or .mp4, not .avi"),
    ):
        assert cli.main(["video", str(finished_run), *words]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a run directory"):
        video.record(tmp_path)


def run_with_video(out: Path, env: str, **changes: object) -> api.Result:
    """A run of few updates on episodes of ten steps, which is asked for a video."""
    config = small_config(out, env=EnvConfig(env, max_episode_steps=10), num_seeds=1, **changes)
    cql = dataclasses.replace(config.cql, num_updates=20)
    evaluation = dataclasses.replace(config.evaluation, interval=20, episodes=1, video=True)
    return api.run(dataclasses.replace(config, cql=cql, evaluation=evaluation))


@pytest.fixture(scope="module")
def pendulum_run(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_video(tmp_path_factory.mktemp("runs") / "pendulum", "Pendulum-v1").run_dir


def test_a_run_records_the_video_it_is_asked_for(pendulum_run: Path) -> None:
    assert "data:image/gif" in (pendulum_run / "report.html").read_text()


def test_a_run_without_pictures_says_so(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, env = tmp_path / "run", "tests.toy_envs:Point-v0"
    result = run_with_video(out, env, dataset=str(finished_run))
    assert "\nno video: " in capsys.readouterr().err
    assert (
        "data:image/gif" not in (tmp_path / "run" / "report.html").read_text()
        and result.iqm is not None
    )


def test_all_policies_side_by_side_in_an_mp4(
    pendulum_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.mp4"
    words = [
        "video",
        str(pendulum_run),
        "--policy",
        "student",
        "teacher",
        "random",
        "--seed",
        "3",
        "--out",
        str(out),
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with av.open(str(out)) as container:
        shown = [
            frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)
        ]
    assert len(shown) == 11 and shown[0].shape == (320 + video.CAPTION, 3 * 320, 3)
    student, teacher, random = np.split(shown[0], 3, axis=1)
    for panel in (teacher, random):
        assert np.abs(student - panel)[video.CAPTION :].mean() < 2, "all begin in the same state"
        assert np.abs(student - panel)[: video.CAPTION, :50].mean() > 10, (
            "each has its name above it"
        )
    assert np.abs(shown[0] - shown[-1])[video.CAPTION :].mean() > 1, "the pendulums move"
