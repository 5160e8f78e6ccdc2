"""`cqlray video RUN`: one episode of each policy, side by side, as a GIF or MP4; rendered without a screen."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from cqlray import checkpoint, validate
from cqlray.algorithms.policy import Array, Policy, UniformActor
from cqlray.config import EnvConfig
from cqlray.envs.make import describe_env, make_env
from cqlray.envs.scaling import ActionScaling
from cqlray.errors import UserError
from cqlray.filesystem import any_path
from cqlray.policies import load_policy
from cqlray.storage import RunDirectory, read_json, write_bytes

POLICIES = ("student", "teacher", "random")
FRAMES_PER_SECOND = 30  # where the environment says none
CAPTION = 18  # pixels
# A GIF counts in hundredths of a second, and viewers slow down what is faster than two of them.
SHORTEST_FRAME = 20  # milliseconds

Act = Callable[[Array], Array]


class CannotRender(Exception):
    """The environment has no pictures, or what draws them is not installed; a line says why."""


def record(
    run: str | Path, policies: Sequence[str] = ("student",), member: int | str = "best", seed: int = 0, out: str | Path = ""
) -> Any:
    """Write a GIF or MP4 of one episode of each policy, all from the same first state; its path.

    Args:
        run: a run directory.
        policies: of student, teacher (its best snapshot) and random.
        member: the student, as for load_policy.
        seed: of the episodes' resets.
        out: the file, which ends in .gif or .mp4; by default RUN/video.gif, which the report shows.

    Raises:
        UserError: not a run, no such policy or member, another kind of file, Pillow or PyAV is not installed.
        CannotRender: the environment cannot.
    """
    image_module = _pillow()
    directory = RunDirectory.open(any_path(run))
    place = any_path(out) if str(out) else directory.path / "video.gif"
    write = _writer(Path(place.name).suffix)
    path = directory.path / "config.yaml"
    env = validate.validate(validate.load_yaml(path), str(path)).env
    clips = []
    for name in policies:
        act = _policy(name, directory, member, seed)
        frames, total, duration = _episode(env, act, seed)
        clips.append([_captioned(image_module, frame, f"{name}  {total:.0f}") for frame in frames])
    write_bytes(place, write(_side_by_side(image_module, clips), duration))
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
        raise UserError('MP4 needs PyAV, which is not installed: pip install "cqlray[video]"') from None
    return partial(_mp4, av)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError('videos need Pillow, which is not installed: pip install "cqlray[video]"') from None
    return Image


def _policy(name: str, directory: RunDirectory, member: int | str, seed: int) -> Act:
    """[observation_dim] -> [A] in the environment's bounds."""
    environment = directory.manifest()["environment"]
    scaling = ActionScaling(*(np.array(environment[key], np.float32) for key in ("action_low", "action_high")))
    if name == "student":
        return load_policy(str(directory.path), member)
    if name == "random":
        uniform = UniformActor(environment["action_dim"], [seed])
        return lambda observation: scaling.to_environment(uniform.act(observation[None])[0])
    if name != "teacher":
        raise UserError(f"there is no policy {name!r}; they are {', '.join(POLICIES)}")
    if not (directory / "teacher" / "teacher.json").is_file():
        raise UserError(f"{directory.path} has no teacher: it was trained on a dataset that was there already")
    best = read_json(directory / "teacher" / "teacher.json")["best_round"]
    policy = Policy(checkpoint.decode((directory / "teacher" / f"snapshot-{best:05d}.safetensors").read_bytes())[0])
    return lambda observation: scaling.to_environment(policy.act(observation[None, None])[0, 0])


def _episode(config: EnvConfig, act: Act, seed: int) -> tuple[list[Array], float, float]:
    """Frames [height, width, 3] uint8 of an episode, its return, and milliseconds of a frame.

    Raises:
        CannotRender: the environment has no rgb_array, or drawing failed.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen otherwise, and complains
    describe_env(config)  # that it can be made at all, with its own messages
    try:
        env = make_env(dataclasses.replace(config, kwargs={**config.kwargs, "render_mode": "rgb_array"}))
    except UserError as error:
        raise CannotRender(f"{config.id} cannot be rendered: {error}") from None
    try:
        observation, _ = env.reset(seed=seed)
        frames, total, over = [_frame(env)], 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(np.asarray(observation, np.float32)))
            frames.append(_frame(env))
            total, over = total + float(reward), terminated or truncated
        return frames, total, max(SHORTEST_FRAME, 1000.0 / env.metadata.get("render_fps", FRAMES_PER_SECOND))
    except (gymnasium.error.Error, ImportError, NotImplementedError) as error:
        raise CannotRender(f"{config.id} cannot be rendered: {str(error).strip().splitlines()[0]}") from None
    finally:
        env.close()


def _frame(env: gymnasium.Env[Any, Any]) -> Array:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise NotImplementedError(f"rendering gives {type(frame).__name__} and no picture")
    return frame


def _captioned(image_module: Any, frame: Array, text: str) -> Any:
    """The frame as a picture of at most 320 pixels with a line of text above it."""
    from PIL import ImageDraw

    picture = image_module.fromarray(frame.astype(np.uint8)).convert("RGB")
    picture.thumbnail((320, 320))
    whole = image_module.new("RGB", (picture.width, picture.height + CAPTION), "white")
    whole.paste(picture, (0, CAPTION))
    ImageDraw.Draw(whole).text((4, 3), text, fill="black")
    return whole


def _side_by_side(image_module: Any, clips: Sequence[Sequence[Any]]) -> list[Any]:
    """Frames of all clips, of even width and height as H.264 asks; a shorter clip stands still at its end."""
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
    sink = io.BytesIO()
    frames[0].save(sink, "GIF", save_all=True, append_images=frames[1:], duration=round(duration), loop=0, optimize=True)
    return sink.getvalue()


def _mp4(av: Any, frames: list[Any], duration: float) -> bytes:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000.0 / duration).limit_denominator(1000))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"  # what browsers and phones play
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return sink.getvalue()
