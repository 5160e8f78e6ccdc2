"""`cqlray video RUN`: one episode of each policy, side by side, as a GIF or MP4, rendered without a
screen.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from cqlray.algorithms.policy import DeterministicActor, Policy, UniformActor
from cqlray.config.schema import EnvConfig
from cqlray.envs.make import describe_env, make_env
from cqlray.envs.rollout import Actor, rollout
from cqlray.errors import EnvironmentFailure, UserError
from cqlray.results.policies import load_policy
from cqlray.storage import checkpoint
from cqlray.storage.locations import any_path
from cqlray.storage.outside import read_file
from cqlray.storage.run_directory import TEACHER, VIDEO, RunDirectory, write_bytes
from cqlray.storage.trust import trusted_config

POLICIES = ("student", "teacher", "random")
FRAMES_PER_SECOND = 30  # where the environment does not say
CAPTION = 18  # pixels
# GIFs time frames in hundredths of a second, and viewers slow down frames shorter than two of them.
SHORTEST_FRAME = 20  # milliseconds
# A GIF of a longer episode has every second, fourth, ... frame, since GIF compresses frames badly.
MOST_GIF_FRAMES = 300
MOST_STEPS = 1_000  # where the environment has no time limit, as its episodes may never end
LONGEST_REASON = 200  # characters


class CannotRender(Exception):
    """The environment has no pictures, or what draws them is not installed or needs a screen; the
    message says why in a line.
    """


@dataclasses.dataclass
class _Clip:
    """The pictures of an episode: one every so many steps, and one of the last step."""

    every: int  # steps from one frame to the next; doubled where there are too many frames
    most: float  # frames; even
    milliseconds: float  # of a step
    frames: list[Any] = dataclasses.field(default_factory=list)
    steps: int = 0
    total: float = 0.0  # the return
    over: bool = False  # else it was cut short

    def add(self, frame: Any) -> None:
        """Keep a frame. Where there are too many, every other one is dropped, never the newest."""
        self.frames.append(frame)
        if len(self.frames) > self.most:
            self.frames, self.every = self.frames[::2], 2 * self.every

    def thinned(self, every: int) -> list[Any]:
        """The frames of every n-th step, where n is a multiple of the clip's, and the last frame,
        which shows how the episode ended.
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
    trust: bool | str = False,
) -> Any:
    """Write one episode of each policy, all from the same first state, and return the film's path.

    Args:
        run: a run directory.
        policies: some of student, teacher (its best snapshot) and random.
        member: the student, as for load_policy.
        seed: of the episodes' resets.
        out: the file, which ends in .gif or .mp4; by default RUN/video.gif, which the report shows.
        trust: as in trusted_config.

    Raises:
        UserError: not a run or not a trusted one, no such policy or member, another kind of file,
            Pillow or PyAV is not installed.
        CannotRender, EnvironmentFailure: see _episode.
    """
    image_module = _pillow()
    directory = RunDirectory.open(any_path(run))
    place = any_path(out) if str(out) else directory / VIDEO
    write = _writer(Path(place.name).suffix)
    env = trusted_config(directory, trust).env
    most = MOST_GIF_FRAMES if Path(place.name).suffix == ".gif" else math.inf
    actors = [_actor(name, directory, member, seed) for name in policies]
    clips = [_episode(image_module, env, actor, seed, most) for actor in actors]
    every = max(clip.every for clip in clips)
    panels = [
        [_captioned(image_module, frame, clip.caption(name)) for frame in clip.thinned(every)]
        for name, clip in zip(policies, clips, strict=True)
    ]
    write_bytes(place, write(_side_by_side(image_module, panels), every * clips[0].milliseconds))
    return place


def _writer(suffix: str) -> Callable[[list[Any], float], bytes]:
    """A function that makes a file of frames, given how many milliseconds each is shown."""
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


def _actor(name: str, directory: RunDirectory, member: int | str, seed: int) -> Actor:
    if name == "student":
        return DeterministicActor(load_policy(str(directory.path), member).policy)
    if name == "random":
        return UniformActor(directory.manifest()["environment"]["action_dim"], [seed])
    if name != "teacher":
        raise UserError(f"there is no policy {name!r}; they are {', '.join(POLICIES)}")
    if not (directory / TEACHER).is_file():
        raise UserError(
            f"{directory.path} has no teacher: it was trained on a dataset that was there already"
        )
    best = directory.best_teacher_snapshot()
    try:
        snapshot = read_file(directory / best)
    except FileNotFoundError:
        raise UserError(f"{directory.path} lacks its teacher's best snapshot, {best}") from None
    return DeterministicActor(Policy(checkpoint.decode(snapshot)[0]))


def _episode(
    image_module: Any, config: EnvConfig, actor: Actor, seed: int, most: float = math.inf
) -> _Clip:
    """Play an episode and draw it. With `most` frames it is thinned out for a GIF; otherwise every
    step has its frame.

    Raises:
        UserError: see describe_env.
        CannotRender: the environment has no rgb_array, or making, resetting or drawing it failed.
        EnvironmentFailure: a step raised; with its traceback and the seed.
    """
    _do_without_screen()
    with _drawing(config.id, UserError):  # tells first whether it can be made without pictures
        spec = describe_env(config)
    with _drawing(config.id):
        env = make_env(
            dataclasses.replace(config, kwargs={**config.kwargs, "render_mode": "rgb_array"})
        )
    milliseconds = 1000.0 / (env.metadata.get("render_fps") or FRAMES_PER_SECOND)
    every = math.ceil(SHORTEST_FRAME / milliseconds) if math.isfinite(most) else 1
    clip = _Clip(every, most, milliseconds)
    filmed = _Filmed(
        env, config.id, clip, partial(_picture, image_module), spec.max_episode_steps or MOST_STEPS
    )
    try:
        rollout(actor, [filmed], [seed], spec.scaling)
    except EnvironmentFailure as failure:  # which is what rollout makes of any exception
        if isinstance(failure.__context__, CannotRender):
            raise failure.__context__ from failure.__context__.__cause__
        raise
    finally:
        with suppress(Exception):  # an environment that could not draw often cannot be closed
            env.close()
    return clip


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose episode is drawn into a clip, and cut short after `limit` steps."""

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        env_id: str,
        clip: _Clip,
        picture: Callable[[gymnasium.Env[Any, Any]], Any],
        limit: int,
    ) -> None:
        super().__init__(env)
        self.env_id, self.clip, self.picture, self.limit = env_id, clip, picture, limit

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        with _drawing(self.env_id):
            first = self.env.reset(**options)
            self.clip.add(self.picture(self.env))
            return first

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        clip = self.clip
        clip.total += float(reward)
        clip.over = bool(terminated or truncated)
        clip.steps += 1
        last = clip.over or clip.steps == self.limit
        if last or clip.steps % clip.every == 0:
            with _drawing(self.env_id):
                clip.add(self.picture(self.env))
        return observation, reward, terminated, last and not terminated, info


def _do_without_screen() -> None:
    """Make pygame and MuJoCo draw without a screen, which they ask for by default.

    What the user has set stays as it is.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):  # elsewhere MuJoCo has no EGL
        os.environ.setdefault("MUJOCO_GL", "egl")


@contextmanager
def _drawing(env_id: str, *passed_on: type[Exception]) -> Iterator[None]:
    """Turn any exception raised within into one line, as MuJoCo, OpenGL and environments have no
    error class in common.

    Raises:
        CannotRender: with the exception's message; exceptions of the classes `passed_on` are left
            as they are.
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


def _picture(image_module: Any, env: gymnasium.Env[Any, Any]) -> Any:
    """The environment as it looks now, in at most 320 by 320 pixels."""
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
    """Frames that show all clips at once, of even width and height as H.264 requires. A shorter
    clip keeps showing its last frame.
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
    # Each frame starts at the nearest hundredth of a second, so that rounding errors do not add up.
    starts = [10 * round(index * duration / 10) for index in range(len(frames) + 1)]
    durations = [end - start for start, end in pairwise(starts)]
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
