"""What an equation asserts of its arguments: their dimensions, and which sizes are equal."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def shaped(letters: str, *tensors: Tensor) -> bool:
    """True where every tensor has one dimension for each of its letters, the same letter the same
    size everywhere: `assert shaped("MNB MB", q, target)`. A star before the letters stands for any
    dimensions before these, a 1 for a size of one.

    Raises:
        AssertionError: says what was expected and what came.
    """
    return _agree(letters, *[tensor.shape for tensor in tensors])


@lru_cache(maxsize=1024)  # the shapes of a run are few, and an update asks a thousand times
def _agree(letters: str, *shapes: torch.Size) -> bool:
    sizes: dict[str, int] = {"1": 1}
    for expected, shape in zip(letters.split(), shapes, strict=True):
        named = expected.lstrip("*")
        last = shape[max(0, len(shape) - len(named)) :] if expected != named else shape
        fits = len(last) == len(named) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(named, last, strict=True)
        )
        assert fits, f"expected {letters}, got {' '.join(str(tuple(s)) for s in shapes)}"
    return True
