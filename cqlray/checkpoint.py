"""Named arrays and a little JSON as one safetensors file's bytes; never pickle.

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

Array = np.ndarray[Any, np.dtype[Any]]
_KEY = "cqlray"


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> bytes:
    """Arrays and JSON-able metadata -> bytes."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    data: bytes = save(ordered, metadata={_KEY: json.dumps(metadata, sort_keys=True)})
    return data


def decode(data: bytes, name: str = "checkpoint") -> tuple[dict[str, Array], dict[str, Any]]:
    """Bytes -> arrays and metadata; `name` is what messages call them.

    Raises:
        UserError: the bytes are cut off or are something else.
    """
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        metadata: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
        return load(data), metadata
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: not a readable cqlray checkpoint ({type(error).__name__}: {error})") from None
