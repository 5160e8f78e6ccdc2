"""Minari's spaces, from the JSON in metadata.json, and values in them as flat vectors.

Flattened as gymnasium.spaces.flatten does it: the parts of a Dict (in the order that metadata.json
has them) and of a Tuple one after another, Discrete and MultiDiscrete one-hot. Images and texts
are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cqlray.data.episode import Array
from cqlray.data.formats.files import first_line
from cqlray.errors import UserError
from cqlray.storage.outside import parse_json

WIDEST = 1_000_000  # numbers in a vector

Part = Callable[[Any, str], Any]  # (values of a Dict or Tuple, key of a part) -> values of the part


def parse(text: Any, what: str) -> dict[str, Any]:
    """The space that a string in metadata.json describes.

    Raises:
        UserError: it is no description of a space, or of one that cqlray does not support.
    """
    try:
        space = parse_json(text, f"{what}: not a space as Minari writes it")
        numbers = width(space, what)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise UserError(f"{what}: not a space as Minari writes it ({first_line(error)})") from None
    if not 0 <= numbers <= WIDEST:
        raise UserError(f"{what}: {numbers:,} numbers; {WIDEST:,} at most can be read")
    parsed: dict[str, Any] = space
    return parsed


def width(space: dict[str, Any], what: str) -> int:
    """How many numbers a flat value of the space has.

    Raises:
        UserError: images, texts and other spaces that cqlray does not support.
    """
    kind = space["type"]
    if kind == "Box":
        shape = space["shape"]
        if len(shape) > 1 and space["dtype"] == "uint8":
            raise UserError(
                f"{what}: images, {tuple(shape)} of uint8, are not supported yet; record vectors"
                " instead"
            )
        return math.prod(int(size) for size in shape)
    if kind == "Discrete":
        return int(space["n"])
    if kind == "MultiDiscrete":
        return int(np.sum(space["nvec"]))
    if kind == "MultiBinary":
        return int(np.prod(space["n"]))
    if kind in ("Dict", "Tuple"):
        return sum(width(part, what) for _, part in _parts(space))
    raise UserError(
        f"{what}: {kind} spaces are not supported; Box, Discrete, MultiDiscrete, MultiBinary, Dict"
        " and Tuple are"
    )


def flatten(space: dict[str, Any], values: Any, rows: int, part: Part) -> Array:
    """[rows, width]: so many values of a space, flattened. Values that are not in the space stay as
    they are, or become NaN where they would be one-hot.
    """
    kind = space["type"]
    if kind in ("Dict", "Tuple"):
        flat = [flatten(below, part(values, key), rows, part) for key, below in _parts(space)]
        return np.concatenate(flat, axis=1) if flat else np.zeros((rows, 0), np.float32)
    array = np.asarray(values).reshape(rows, -1)
    if kind == "Discrete":
        return _one_hot(array[:, 0] - space.get("start", 0), int(space["n"]))
    if kind == "MultiDiscrete":
        sizes = np.ravel(space["nvec"])
        moved = array - np.ravel(space.get("start", 0))
        return np.concatenate(
            [_one_hot(moved[:, i], int(size)) for i, size in enumerate(sizes)], axis=1
        )
    return array


def _one_hot(values: Array, size: int) -> Array:
    """[rows, size] float32; a row of NaN where the value is not one of the space's, so that
    validation finds it.
    """
    flat: Array = (values[:, None] == np.arange(size)).astype(np.float32)
    flat[flat.sum(axis=1) != 1] = np.nan
    return flat


def _parts(space: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    below = space["subspaces"]
    return (
        list(below.items())
        if space["type"] == "Dict"
        else [(str(index), part) for index, part in enumerate(below)]
    )


def action_bounds(space: dict[str, Any], what: str) -> dict[str, Any]:
    """action_dim, action_low and action_high; the bounds None where they are infinite.

    Raises:
        UserError: the actions are not a one-dimensional Box.
    """
    if space["type"] != "Box" or len(space["shape"]) != 1:
        shape = f" of shape {tuple(space['shape'])}" if space["type"] == "Box" else ""
        raise UserError(
            f"{what}: actions are a {space['type']}{shape}; cqlray needs a one-dimensional Box"
            " (continuous actions)"
        )
    bounds = {key: np.asarray(space[key], np.float64).reshape(-1) for key in ("low", "high")}
    if any(bound.shape != (space["shape"][0],) for bound in bounds.values()):
        raise UserError(f"{what}: the bounds are not of shape {tuple(space['shape'])}")
    finite = all(np.isfinite(bound).all() for bound in bounds.values())
    known = {f"action_{key}": bound.tolist() if finite else None for key, bound in bounds.items()}
    return {"action_dim": int(space["shape"][0]), **known}


def box(dimension: int, low: list[float] | None = None, high: list[float] | None = None) -> str:
    """A Box of float32 vectors as Minari writes it; unbounded where no bounds are given."""
    bounds = {"low": low or [-math.inf] * dimension, "high": high or [math.inf] * dimension}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [dimension], **bounds})
