"""Videos of policies, rendered without a screen."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
from PIL import Image, ImageSequence

from cqlray import UserError
from cqlray.cli import main as cli
from cqlray.config.schema import EnvConfig, RunConfig
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.errors import EnvironmentFailure
from cqlray.results import video
from cqlray.results.report.html import write_report
from cqlray.results.video import CannotRender
from tests.toy_envs import Drawn
from tests.unit.results.run_directories import make_run

DRAWN = "tests.toy_envs:Drawn-v0"


class Constant:
    """Acts alike whatever it sees, and keeps what it saw."""

    def __init__(self, action: float) -> None:
        self.action, self.seen = action, list[np.ndarray]()

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.seen.append(observations.copy())
        return np.full((len(observations), 1), self.action, np.float32)


still = Constant(0.0)


def test_an_episode_is_played_and_drawn() -> None:
    config = EnvConfig("Pendulum-v1", max_episode_steps=12)
    actor = Constant(1.0)  # 2.0 in the environment's bounds
    clip = video._episode(Image, config, actor, seed=3)
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(actor.seen[0], first[None])
    rewards = [env.step(np.array([2.0], np.float32))[1] for _ in range(12)]
    assert clip.total == pytest.approx(sum(map(float, rewards)))
    assert len(clip.frames) == 13 and clip.frames[0].size == (320, 320)
    assert clip.frames[0].tobytes() != clip.frames[-1].tobytes(), "the pendulum moved"
    assert clip.every * clip.milliseconds == pytest.approx(1000 / 30)
    assert clip.caption("student") == f"student  {clip.total:.0f}"


def test_a_shorter_clip_stands_still_at_its_end() -> None:
    def clip(colour: str, length: int) -> list[Image.Image]:
        return [
            Image.new("RGB", (10, 8), colour if index < length - 1 else "blue")
            for index in range(length)
        ]

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
    frames = video._side_by_side(
        Image, [[Image.new("RGB", (33, 17), (20 * index, 0, 0)) for index in range(10)]]
    )
    data = video._writer(".mp4")(frames, 1000 / 30)
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams.video
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.width, stream.height, stream.average_rate) == (34, 18, 30)
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(shown) == 10
    red = [int(frame[8, 16, 0]) for frame in shown]
    assert red == pytest.approx([20 * index for index in range(10)], abs=12)


def drawn_run(directory: Path, **kwargs: bool | int | float | str) -> Path:
    """A run on Drawn-v0, of which the random policy can be shown."""
    env = EnvConfig(DRAWN, kwargs=kwargs)
    return make_run(
        directory, config=RunConfig(env=env), environment=dataclasses.asdict(describe_env(env))
    )


def total_time(data: bytes) -> int:
    """Milliseconds that a GIF takes."""
    with Image.open(io.BytesIO(data)) as gif:
        return sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif))


def grey_and_time(data: bytes) -> list[tuple[int, int]]:
    """Of each frame of a GIF of Drawn-v0: its grey, and the milliseconds before it."""
    shown, begins = [], 0
    with Image.open(io.BytesIO(data)) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            shown.append((gif.convert("RGB").getpixel((8, video.CAPTION + 8))[0], begins))
            begins += gif.info["duration"]
    return shown


def test_what_cannot_be_drawn_is_a_line() -> None:
    with pytest.raises(CannotRender, match=r"^tests.toy_envs:Point-v0 cannot be rendered: "):
        video._episode(Image, EnvConfig("tests.toy_envs:Point-v0"), still, 0)


def test_an_environment_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"^env.id 'Pendulun-v1': "):
        video._episode(Image, EnvConfig("Pendulun-v1"), still, 0)


@pytest.mark.parametrize("broken", ["making", "resetting", "rendering"])
def test_any_exception_of_what_draws_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    words = ["video", str(drawn_run(tmp_path / "run", broken=broken)), "--policy", "random"]
    line = f"no video: {DRAWN} cannot be rendered: no GL context while {broken}\n"
    assert cli.main(words) == 0
    assert capsys.readouterr() == (line, "")
    assert not (tmp_path / "run" / "video.gif").exists()
    assert cli.main([*words, "--debug"]) == 0
    assert "in _break\n" in capsys.readouterr().err


def test_a_step_that_raises_is_the_environments_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = drawn_run(tmp_path / "run", broken="stepping")
    with pytest.raises(EnvironmentFailure) as caught:
        video.record(run, ["random"], seed=7)
    assert caught.value.where == "episode seed 7, step 0"
    assert cli.main(["video", str(run), "--policy", "random"]) == 1
    said = capsys.readouterr().err
    assert (
        "RuntimeError: no GL context" in said
        and "(episode seed 0, step 0); reset it with that seed" in said
    )


def test_being_stopped_is_not_a_failure_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "_picture", stopped)
    with pytest.raises(KeyboardInterrupt):
        video._episode(Image, EnvConfig(DRAWN), still, 0)


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {}, "egl"),
        ("linux", {"DISPLAY": ""}, "egl"),
        ("linux", {"DISPLAY": ":0"}, None),
        ("linux", {"MUJOCO_GL": "osmesa"}, "osmesa"),
        ("darwin", {}, None),
    ],
)
def test_mujoco_is_told_to_do_without_a_screen(
    monkeypatch: pytest.MonkeyPatch, platform: str, environ: dict[str, str], expected: str | None
) -> None:
    seen = []

    def made(config: EnvConfig) -> EnvSpec:
        seen.append((os.environ.get("MUJOCO_GL"), os.environ["SDL_VIDEODRIVER"]))
        return describe_env(config)

    monkeypatch.setattr(video.sys, "platform", platform)
    monkeypatch.setattr(video.os, "environ", dict(environ))
    monkeypatch.setattr(video, "describe_env", made)
    video._episode(Image, EnvConfig(DRAWN, kwargs={"length": 1}), still, 0)
    assert seen == [(expected, "dummy")], "before the environment is made"


def test_an_episode_without_end_is_cut_short_and_says_so() -> None:
    clip = video._episode(Image, EnvConfig(DRAWN), still, 0)
    assert (
        (clip.steps, len(clip.frames)) == (video.MOST_STEPS, video.MOST_STEPS + 1) == (1000, 1001)
    )
    assert clip.caption("random") == "random  1000  (cut short after 1,000 steps)"
    whole = video._episode(Image, EnvConfig(DRAWN, max_episode_steps=1_100), still, 0)
    assert whole.steps == 1_100, "a time limit is the environment's own affair"
    assert whole.caption("random") == "random  1100"


@pytest.mark.parametrize(("length", "every"), [(299, 1), (300, 2), (997, 4)])
def test_a_long_gif_has_fewer_frames_in_the_same_time(
    tmp_path: Path, length: int, every: int
) -> None:
    run = drawn_run(tmp_path / "run", length=length)
    path = video.record(run, ["random"])
    steps = [*range(0, length, every), length]  # the last one shows how it ended
    # Pillow joins frames that are alike, as all are from step 255 on.
    shown = [(step, 20 * every * index) for index, step in enumerate(steps) if step < 255]
    whole = video._gif(
        [Image.new("RGB", (1, 1), (index % 2 * 255,) * 3) for index in range(len(steps))],
        20.0 * every,
    )
    assert grey_and_time(path.read_bytes())[: len(shown)] == shown
    assert len(steps) <= video.MOST_GIF_FRAMES == 300
    assert total_time(path.read_bytes()) == total_time(whole) == 20 * every * len(steps)


def test_clips_that_were_thinned_differently_keep_the_same_time() -> None:
    short, long = (
        video._episode(Image, EnvConfig(DRAWN, kwargs={"length": n}), still, 0, most=10)
        for n in (9, 33)
    )
    assert (short.every, long.every) == (1, 4)
    greys = [[frame.getpixel((0, 0))[0] for frame in clip.thinned(4)] for clip in (short, long)]
    assert greys == [[0, 4, 8, 9], [0, 4, 8, 12, 16, 20, 24, 28, 32, 33]]


def test_a_gif_of_more_frames_than_viewers_show_skips_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Drawn.metadata, "render_fps", 125)  # Hopper-v5's
    config = EnvConfig(DRAWN, kwargs={"length": 10})
    clips = [
        video._episode(Image, config, still, 0, most)
        for most in (video.MOST_GIF_FRAMES, float("inf"))
    ]
    assert [(clip.every, clip.milliseconds, len(clip.frames)) for clip in clips] == [
        (3, 8.0, 5),
        (1, 8.0, 11),
    ]


def test_a_gif_does_not_round_its_time_away() -> None:
    frames = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(90)]
    assert total_time(video._gif(frames, 1000 / 30)) == 3000


@pytest.mark.parametrize(("excess", "embedded"), [(0, True), (1, False)])
def test_a_report_does_not_embed_a_large_video(tmp_path: Path, excess: int, embedded: bool) -> None:
    run = make_run(tmp_path / "run")
    (run / "video.gif").write_bytes(bytes(8 * 2**20 + excess))
    page = write_report(run).read_text()
    sentence = (
        "<p>The video of the episode is too large for this page (8.0 MiB); it is"
        f" {run}/video.gif.</p>"
    )
    assert ("data:image/gif" in page, sentence in page) == (embedded, not embedded)
