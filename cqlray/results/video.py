"""`cqlray video RUN`: one episode of each policy, side by side, as a GIF or MP4; rendered without a
screen.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from cqlray.algorithms.policy import Array, Policy, UniformActor
from cqlray.config import load as validate
from cqlray.config.schema import EnvConfig
from cqlray.envs.make import describe_env, make_env
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import EnvironmentFailure, UserError
from cqlray.results.policies import load_policy
from cqlray.storage import checkpoint
from cqlray.storage.locations import any_path
from cqlray.storage.run_directory import RunDirectory, read_json, write_bytes

POLICIES = ("student", "teacher", "random")
FRAMES_PER_SECOND = 30  # where the environment says none
CAPTION = 18  # pixels
# A GIF counts in hundredths of a second, and viewers slow down what is faster than two of them.
SHORTEST_FRAME = 20  # milliseconds
# of a longer episode a GIF has every second, fourth, ... frame, as it compresses none by the others
MOST_GIF_FRAMES = 300
MOST_STEPS = 1_000  # where the environment has no time limit: an episode may never end
LONGEST_REASON = 200  # characters

Act = Callable[[Array], Array]


class CannotRender(Exception):
    """The environment has no pictures, or what draws them is not installed or has no screen; a line
    says why.
    """


@dataclasses.dataclass
class _Clip:
    """An episode as it is drawn: the frames of every n-th step and the last; at most `most`, which
    is even.
    """

    every: int  # steps from one frame to the next
    most: float
    milliseconds: float  # of a step
    frames: list[Any] = dataclasses.field(default_factory=list)
    steps: int = 0
    total: float = 0.0  # the return
    over: bool = False  # else it was cut short

    def add(self, frame: Any) -> None:
        """Keep a frame; of too many every other goes, the newest stays."""
        self.frames.append(frame)
        if len(self.frames) > self.most:
            self.frames, self.every = self.frames[::2], 2 * self.every

    def thinned(self, every: int) -> list[Any]:
        """The frames of every n-th step, n a multiple of the clip's own, and the last, which shows
        how it ended.
        """
        kept = self.frames[:: every // self.every]
        return kept if kept[-1] is self.frames[-1] else [*kept, self.frames[-1]]

    def caption(self, name: str) -> str:
        return f"{name}  {self.total:.0f}" + (
            "" if self.over else f"  (cut short after {self.steps:,} steps)"
        )


def record(
    run: str | Path,
    policies: Sequence[str] = ("student",),
    member: int | str = "best",
    seed: int = 0,
    out: str | Path = "",
) -> Any:
    """Write a GIF or MP4 of one episode of each policy, all from the same first state; its path.

    Args:
        run: a run directory.
        policies: of student, teacher (its best snapshot) and random.
        member: the student, as for load_policy.
        seed: of the episodes' resets.
        out: the file, which ends in .gif or .mp4; by default RUN/video.gif, which the report shows.

    Raises:
        UserError: not a run, no such policy or member, another kind of file, Pillow or PyAV is not
            installed.
        CannotRender: the environment cannot.
        EnvironmentFailure: a step of the environment raised.
    """
    image_module = _pillow()
    directory = RunDirectory.open(any_path(run))
    place = any_path(out) if str(out) else directory.path / "video.gif"
    write = _writer(Path(place.name).suffix)
    path = directory.path / "config.yaml"
    env = validate.validate(validate.load_yaml(path), str(path)).env
    most = MOST_GIF_FRAMES if Path(place.name).suffix == ".gif" else math.inf
    clips = [
        _episode(image_module, env, _policy(name, directory, member, seed), seed, most)
        for name in policies
    ]
    every = max(clip.every for clip in clips)
    panels = [
        [_captioned(image_module, frame, clip.caption(name)) for frame in clip.thinned(every)]
        for name, clip in zip(policies, clips, strict=True)
    ]
    write_bytes(place, write(_side_by_side(image_module, panels), every * clips[0].milliseconds))
    return place


def _writer(suffix: str) -> Callable[[list[Any], float], bytes]:
    """What makes a file of frames that stand for so many milliseconds each."""
    if suffix == ".gif":
        return _gif
    if suffix != ".mp4":
        raise UserError(f"videos are .gif or .mp4, not {suffix or 'without an ending'}")
    try:
        import av
    except ImportError:
        raise UserError(
            'MP4 needs PyAV, which is not installed: pip install "cqlray[video]"'
        ) from None
    return partial(_mp4, av)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError(
            'videos need Pillow, which is not installed: pip install "cqlray[video]"'
        ) from None
    return Image


def _policy(name: str, directory: RunDirectory, member: int | str, seed: int) -> Act:
    """[observation_dim] -> [A] in the environment's bounds."""
    environment = directory.manifest()["environment"]
    scaling = ActionScaling(
        *(np.array(environment[key], np.float32) for key in ("action_low", "action_high"))
    )
    if name == "student":
        return load_policy(str(directory.path), member)
    if name == "random":
        uniform = UniformActor(environment["action_dim"], [seed])
        return lambda observation: scaling.to_environment(uniform.act(observation[None])[0])
    if name != "teacher":
        raise UserError(f"there is no policy {name!r}; they are {', '.join(POLICIES)}")
    if not (directory / "teacher" / "teacher.json").is_file():
        raise UserError(
            f"{directory.path} has no teacher: it was trained on a dataset that was there already"
        )
    best = read_json(directory / "teacher" / "teacher.json")["best_round"]
    policy = Policy(
        checkpoint.decode(
            (directory / "teacher" / f"snapshot-{best:05d}.safetensors").read_bytes()
        )[0]
    )
    return lambda observation: scaling.to_environment(policy.act(observation[None, None])[0, 0])


def _episode(
    image_module: Any, config: EnvConfig, act: Act, seed: int, most: float = math.inf
) -> _Clip:
    """An episode, drawn; with `most` frames it is thinned out for a GIF, else every step has its
    frame.

    Raises:
        UserError: see describe_env.
        CannotRender: the environment has no rgb_array, or making, resetting or drawing it failed.
        EnvironmentFailure: a step raised; with its traceback and the seed.
    """
    _do_without_screen()
    with _drawing(config.id, UserError):  # that it can be made at all, with its own messages
        limit = describe_env(config).max_episode_steps or MOST_STEPS
    with _drawing(config.id):
        env = make_env(
            dataclasses.replace(config, kwargs={**config.kwargs, "render_mode": "rgb_array"})
        )
    milliseconds = 1000.0 / (env.metadata.get("render_fps") or FRAMES_PER_SECOND)
    clip = _Clip(
        math.ceil(SHORTEST_FRAME / milliseconds) if math.isfinite(most) else 1, most, milliseconds
    )
    try:
        with _drawing(config.id):
            observation = np.asarray(env.reset(seed=seed)[0], np.float32)
            clip.add(_picture(image_module, env))
        while not clip.over and clip.steps < limit:
            observation = _step(env, act(observation), seed, clip)
            if clip.over or clip.steps == limit or clip.steps % clip.every == 0:
                with _drawing(config.id):
                    clip.add(_picture(image_module, env))
        return clip
    finally:
        with suppress(Exception):  # what could not draw often cannot be closed either
            env.close()


def _do_without_screen() -> None:
    """Have pygame and MuJoCo draw without one; both ask for it otherwise.

    What the user has set stays.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):  # elsewhere MuJoCo knows no egl
        os.environ.setdefault("MUJOCO_GL", "egl")


@contextmanager
def _drawing(env_id: str, *passed_on: type[Exception]) -> Iterator[None]:
    """Whatever is raised within is a line: MuJoCo, OpenGL and environments each have errors of
    their own.

    Raises:
        CannotRender: with what the exception says; those of the classes `passed_on` go on as they
            are.
    """
    try:
        yield
    except passed_on:
        raise
    except Exception as error:
        reason = (
            textwrap.shorten(str(error), LONGEST_REASON, placeholder=" ...") or type(error).__name__
        )
        raise CannotRender(f"{env_id} cannot be rendered: {reason}") from error


def _step(env: gymnasium.Env[Any, Any], action: Array, seed: int, clip: _Clip) -> Array:
    """A step, counted in `clip`; the next observation, float32.

    Raises:
        EnvironmentFailure: the environment raised.
    """
    try:
        observation, reward, terminated, truncated, _ = env.step(action)
        clip.total += float(reward)
        clip.over = bool(terminated or truncated)
        clip.steps += 1
        return np.asarray(observation, np.float32)
    except Exception:
        raise EnvironmentFailure(
            f"episode seed {seed}, step {clip.steps}", traceback.format_exc()
        ) from None


def _picture(image_module: Any, env: gymnasium.Env[Any, Any]) -> Any:
    """What the environment shows now, as a picture of at most 320 pixels."""
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise NotImplementedError(f"rendering gives {type(frame).__name__} and no picture")
    picture = image_module.fromarray(frame.astype(np.uint8)).convert("RGB")
    picture.thumbnail((320, 320))
    return picture


def _captioned(image_module: Any, picture: Any, text: str) -> Any:
    """The picture with a line of text above it."""
    from PIL import ImageDraw

    whole = image_module.new("RGB", (picture.width, picture.height + CAPTION), "white")
    whole.paste(picture, (0, CAPTION))
    ImageDraw.Draw(whole).text((4, 3), text, fill="black")
    return whole


def _side_by_side(image_module: Any, clips: Sequence[Sequence[Any]]) -> list[Any]:
    """Frames of all clips, of even width and height as H.264 asks; a shorter clip stands still at
    its end.
    """
    width, height = sum(clip[0].width for clip in clips), max(clip[0].height for clip in clips)
    width, height = width + width % 2, height + height % 2
    frames = []
    for index in range(max(map(len, clips))):
        frame, left = image_module.new("RGB", (width, height), "white"), 0
        for clip in clips:
            frame.paste(clip[min(index, len(clip) - 1)], (left, 0))
            left += clip[0].width
        frames.append(frame)
    return frames


def _gif(frames: list[Any], duration: float) -> bytes:
    # Each frame begins at the nearest hundredth of a second, so that rounding does not add up over
    # the frames.
    begins = [10 * round(index * duration / 10) for index in range(len(frames) + 1)]
    durations = [end - begin for begin, end in pairwise(begins)]
    sink = io.BytesIO()
    frames[0].save(
        sink,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
    return sink.getvalue()


def _mp4(av: Any, frames: list[Any], duration: float) -> bytes:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(1000.0 / duration).limit_denominator(1000)
        )
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"  # what browsers and phones play
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return sink.getvalue()
