"""Read files from outside, which may be damaged or made to do harm: a pipe does not hang, and no
size and no depth that a file states takes memory before it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, Location, file_size

LARGEST_JSON = 100_000_000  # bytes; as safetensors limits its headers, which are JSON
DEEPEST_JSON = 64  # levels; Python itself gives up at about a thousand


def read_file(path: AnyPath, largest: int | None = None) -> bytes:
    """A file's bytes, at most `largest` of them, and no more than there is memory for.

    Raises:
        UserError: it is larger, or no file but a directory or a pipe. FileNotFoundError.
    """
    place = Location.parse(path)
    with readable(path):
        size = file_size(place)
        require_memory(min(size, largest or size), str(path))
        data = place.read_bytes() if largest is None else place.read_start(largest + 1)
    if largest is not None and len(data) > largest:
        raise UserError(f"{path}: more than {largest:,} bytes, which no such file has")
    return data


@contextmanager
def readable(path: AnyPath) -> Iterator[None]:
    """Errors of opening and reading a file as one line, but that there is none."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None


def read_json(path: AnyPath) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: as read_file and parse_json. FileNotFoundError.
    """
    return parse_json(read_file(path, LARGEST_JSON), str(path))


def parse_json(text: str | bytes, name: str) -> Any:
    """The value of a JSON text; `name` stands for it in messages.

    Raises:
        UserError: it is not JSON, names a key twice, is nested too deeply or holds what is no text.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        value = _DECODER.decode(text)
        if "\\u" in text:  # half of a character, which nobody could print or write
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{name}: {_TOO_DEEP}") from None
    except ValueError as error:
        raise UserError(f"{name}: not readable JSON ({error})") from None
    if _is_deep(value):
        raise UserError(f"{name}: {_TOO_DEEP}")
    return value


_TOO_DEEP = f"not readable JSON (nested more than {DEEPEST_JSON} levels deep)"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs. Raises ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled[:60]!r} stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _is_deep(value: Any) -> bool:
    """Whether it is nested more than DEEPEST_JSON levels deep; level by level, not by recursion."""
    level: list[Any] = [value]
    for _ in range(DEEPEST_JSON + 1):
        level = [
            below
            for node in level
            if isinstance(node, dict | list)
            for below in _items(node)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def _items(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def require_memory(size: int, what: str) -> None:
    """Raises UserError where `size` bytes, which a file says that it takes, are not free."""
    free = free_memory()
    if size > free:
        raise UserError(
            f"{what}: it takes {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are"
            " free; split it into smaller files, or the file is damaged"
        )


def free_memory() -> int:
    """Bytes of memory that this process could take: the machine's, or its container's if that has
    less.
    """
    free = [2**63]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(next(line for line in lines if "MemAvailable" in line).split()[1]) * 1024]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = int(statistics["inactive_file"])
        free += [max(0, limit - int((group / "memory.current").read_text()) + cache)]
    return min(free)
