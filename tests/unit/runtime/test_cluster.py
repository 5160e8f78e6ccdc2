"""What we use of Ray that it does not promise to keep."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cqlray.runtime.cluster import PRIVATE

RUNTIME = Path(__file__).parents[3] / "cqlray" / "runtime"


@pytest.mark.parametrize("name", PRIVATE)
def test_rays_private_name_is_still_there(name: str) -> None:
    """A new version of Ray that moved one fails here, and not in a run."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[count:]:
        if part.startswith("__"):  # methods that Ray gives every actor's class
            assert part in Path(import_module("ray.actor").__file__ or "").read_text()
            return
        found = getattr(found, part)
    assert callable(found) or isinstance(found, property)


def test_nothing_else_of_rays_is_used() -> None:
    used: set[str] = set()
    for path in RUNTIME.glob("*.py"):
        text = path.read_text()
        used |= {f"ray.{name}" for name in re.findall(r"from ray\.(_\w[\w.]*) import", text)}
        used |= {f"state.{name}" for name in re.findall(r"\bstate\.(\w+)\(", text)}
        used |= set(re.findall(r"(?:internal_kv|handle)\.(_\w+)", text))
    for name in used:
        assert any(name in private for private in PRIVATE), f"{name} is not in PRIVATE"
    assert len(used) >= 6
