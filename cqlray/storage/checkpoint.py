"""Encode named arrays and a little JSON as the bytes of one safetensors file; never pickle.

The same arrays give the same bytes: names are sorted, and the metadata is one JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, Location

Array = np.ndarray[Any, np.dtype[Any]]
_KEY = "cqlray"
_LARGEST_HEADER = 100_000_000  # bytes; the format's limit
_LIKELY_HEADER = 2**16  # bytes; one request to an object store then, as a rule


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> bytes:
    """Encode arrays and JSON-compatible metadata as bytes."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    data: bytes = save(ordered, metadata={_KEY: json.dumps(metadata, sort_keys=True)})
    return data


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """Read a file's metadata without its arrays.

    Raises:
        UserError: as `decode`. FileNotFoundError.
    """
    place = Location.parse(path)
    start = place.read_start(_LIKELY_HEADER)
    header_size = int.from_bytes(start[:8], "little")
    if len(start) - 8 < header_size <= _LARGEST_HEADER:
        start = place.read_start(8 + header_size)
    try:
        metadata: dict[str, Any] = json.loads(
            json.loads(start[8 : 8 + header_size])["__metadata__"][_KEY]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a readable cqlray checkpoint ({type(error).__name__}: {error})"
        ) from None
    return metadata


def decode(data: bytes, name: str = "checkpoint") -> tuple[dict[str, Array], dict[str, Any]]:
    """Decode bytes to arrays and metadata; `name` stands for them in error messages.

    Raises:
        UserError: the bytes are truncated or are not a checkpoint.
    """
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        metadata: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
        return load(data), metadata
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{name}: not a readable cqlray checkpoint ({type(error).__name__}: {error})"
        ) from None
