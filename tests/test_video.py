"""Videos of policies, rendered without a screen."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
from PIL import Image

from cqlray import UserError, api, cli, video
from cqlray.config import EnvConfig
from cqlray.video import CannotRender
from tests.conftest import small_config


def test_an_episode_is_played_and_drawn() -> None:
    seen: list[np.ndarray] = []
    config = EnvConfig("Pendulum-v1", max_episode_steps=12)

    def act(observation: np.ndarray) -> np.ndarray:
        seen.append(observation)
        return np.array([2.0], np.float32)

    frames, total, duration = video._episode(config, act, seed=3)
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(seen[0], first)
    rewards = [env.step(np.array([2.0], np.float32))[1] for _ in range(12)]
    assert total == pytest.approx(sum(map(float, rewards)))
    assert len(frames) == 13 and frames[0].dtype == np.uint8 and frames[0].ndim == 3
    assert not np.array_equal(frames[0], frames[-1]), "the pendulum moved"
    assert duration == pytest.approx(1000 / 30)


def test_a_shorter_clip_stands_still_at_its_end() -> None:
    def clip(colour: str, length: int) -> list[Image.Image]:
        return [Image.new("RGB", (10, 8), colour if index < length - 1 else "blue") for index in range(length)]

    data = video._gif(video._side_by_side(Image, [clip("red", 2), clip("green", 5)]), 40.0)
    with Image.open(io.BytesIO(data)) as gif:
        assert (gif.size, gif.info["duration"]) == ((20, 8), 40)
        colours = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            picture = gif.convert("RGB")
            colours.append((picture.getpixel((3, 3)), picture.getpixel((13, 3))))
    red, green, blue = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    assert colours[0] == (red, green)
    assert colours[-1] == (blue, blue) and (blue, green) in colours


def test_an_mp4_holds_the_same_frames_in_the_same_time() -> None:
    frames = video._side_by_side(Image, [[Image.new("RGB", (33, 17), (20 * index, 0, 0)) for index in range(10)]])
    data = video._writer(".mp4")(frames, 1000 / 30)
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams.video
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.width, stream.height, stream.average_rate) == (34, 18, 30)
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(shown) == 10
    red = [int(frame[8, 16, 0]) for frame in shown]
    assert red == pytest.approx([20 * index for index in range(10)], abs=12)


def test_what_cannot_be_drawn_is_a_line() -> None:
    with pytest.raises(CannotRender, match=r"^tests.toy_envs:Point-v0 cannot be rendered: "):
        video._episode(EnvConfig("tests.toy_envs:Point-v0"), lambda _: np.zeros(1, np.float32), 0)


@pytest.mark.ray
def test_the_command(finished_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["video", str(finished_run), "--out", str(tmp_path / "v.gif")]) == 0
    assert capsys.readouterr().out.startswith("no video: tests.toy_envs:Point-v0 cannot be rendered")
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


@pytest.mark.ray
@pytest.mark.parametrize(("env", "rendered"), [("Pendulum-v1", True), ("tests.toy_envs:Point-v0", False)])
def test_a_run_records_the_video_it_is_asked_for(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], env: str, rendered: bool
) -> None:
    config = small_config(tmp_path / "run", env=EnvConfig(env, max_episode_steps=10), num_seeds=1)
    cql = dataclasses.replace(config.cql, num_updates=20)
    evaluation = dataclasses.replace(config.evaluation, interval=20, episodes=1, video=True)
    result = api.run(dataclasses.replace(config, cql=cql, evaluation=evaluation))
    assert ("\nno video: " in capsys.readouterr().err) == (not rendered)
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("data:image/gif" in page) == rendered and result.iqm is not None
