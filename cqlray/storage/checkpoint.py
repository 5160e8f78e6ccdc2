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
from cqlray.storage.outside import LARGEST_JSON, parse_json, readable

Array = np.ndarray[Any, np.dtype[Any]]
_KEY = "cqlray"
_UNREADABLE = "not a readable cqlray checkpoint"
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
    with readable(path):
        start = place.read_start(_LIKELY_HEADER)
        header_size = int.from_bytes(start[:8], "little")
        if len(start) - 8 < header_size <= LARGEST_JSON:
            start = place.read_start(8 + header_size)
    return _metadata(start, str(path))


def decode(data: bytes, name: str = "checkpoint") -> tuple[dict[str, Array], dict[str, Any]]:
    """Decode bytes to arrays and metadata; `name` stands for them in error messages.

    Raises:
        UserError: the bytes are truncated or are not a checkpoint.
    """
    metadata = _metadata(data, name)
    try:
        return load(data), metadata
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{name}: {_UNREADABLE} ({reason})") from None


def _metadata(start: bytes, name: str) -> dict[str, Any]:
    """The metadata in a file's first bytes. Raises UserError."""
    size = int.from_bytes(start[:8], "little")
    if not 8 < 8 + size <= min(len(start), 8 + LARGEST_JSON):
        raise UserError(f"{name}: {_UNREADABLE} (its header is not whole)")
    header = parse_json(start[8 : 8 + size], f"{name}: {_UNREADABLE}, header")
    try:
        text = header["__metadata__"][_KEY]
    except (KeyError, TypeError, IndexError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{name}: {_UNREADABLE} (its header has no {_KEY})")
    metadata = parse_json(text, f"{name}: {_UNREADABLE}, metadata")
    if not isinstance(metadata, dict):
        raise UserError(f"{name}: {_UNREADABLE} (its metadata is no object)")
    return metadata
