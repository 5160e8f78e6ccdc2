"""Who may import whom (DESIGN section 2): read from the source, so that a wrong arrow fails
here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cqlray"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"config", "errors", "seeding"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "seeding": set(),
    "config": {"errors"},
    "storage": BASE,
    "algorithms": {"config"},
    "data": BASE | {"storage"},
    "envs": BASE | {"storage", "data"},
    "workers": BASE | {"storage", "algorithms", "data", "envs"},
    "runtime": BASE | {"storage", "data", "envs"},
    "stages": BASE | {"storage", "algorithms", "data", "envs", "workers", "runtime"},
    "driver": BASE | {"storage", "data", "envs", "workers", "runtime", "stages"},
    "results": BASE | {"storage", "algorithms", "data", "envs"},
    "api": BASE | {"storage", "data", "envs", "runtime", "stages", "driver", "results"},
    "benchmarks": (
        BASE | {"storage", "algorithms", "data", "envs", "workers", "runtime", "stages", "driver"}
    ),
    "cli": (
        BASE | {"storage", "algorithms", "data", "envs", "runtime", "results", "benchmarks", "api"}
    ),
}
THIRD_PARTY_ONLY_IN = {
    "ray": {"runtime"},
    "torch": {"algorithms", "benchmarks", "workers", "cli", "results"},
    "gymnasium": {"envs", "results"},
    "pydantic": {"config"},
}


def imports(path: Path) -> list[str]:
    """Dotted names of everything a file imports, at its top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = node.module.startswith("cqlray")
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names] if own else [node.module]
            )
    return names


def door(path: Path) -> str:
    """The folder or module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = door(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "cqlray" and rest and own in MAY_IMPORT:
            allowed = rest[0] == own or rest[0] in MAY_IMPORT[own]
            assert allowed, f"{own} must not import cqlray.{rest[0]}"
        if top in THIRD_PARTY_ONLY_IN:
            assert own in THIRD_PARTY_ONLY_IN[top], f"{own} must not import {top}"


def test_every_door_has_a_rule() -> None:
    assert {door(path) for path in FILES} - {"__init__", "__main__"} == set(MAY_IMPORT)
    assert len(MAY_IMPORT) <= 15


def module_of(name: str) -> Path | None:
    """The file that a dotted name of the package stands in."""
    parts = name.split(".")[1:]
    for count in (len(parts), len(parts) - 1):
        place = PACKAGE.joinpath(*parts[:count])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if count and file.is_file():
                return file
    return None


def test_no_file_imports_itself_by_a_circle() -> None:
    arrows = {
        path: {module_of(n) for n in imports(path) if n.startswith("cqlray.")} for path in FILES
    }
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        if path in trail:
            circle = [str(p.relative_to(PACKAGE)) for p in trail[trail.index(path) :]]
            raise AssertionError(f"a circle of imports: {' -> '.join(circle)}")
        if path not in done:
            for target in sorted(filter(None, arrows[path] - {path})):
                visit(target, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("cqlray", ["ray", "torch", "numpy"]),
        ("cqlray.cli.main", ["ray", "torch", "gymnasium"]),
        ("cqlray.cli.submit, cqlray.api.session", ["ray", "torch"]),
        ("cqlray.workers.rollout_worker, cqlray.workers.evaluator", ["ray", "torch", "pydantic"]),
        ("cqlray.workers.learner, cqlray.workers.teacher", ["ray", "gymnasium", "pydantic"]),
        ("cqlray.algorithms.cql", ["ray", "gymnasium", "pyarrow", "pydantic"]),
    ],
)
def test_importing_does_not_load(modules: str, forbidden: list[str]) -> None:
    code = f"import sys, {modules}; print([m for m in {forbidden!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_the_house_is_drawn_as_it_is() -> None:
    """cqlray/README.md names every module, and none that is not there."""
    page = (PACKAGE / "README.md").read_text()
    named = {name.rpartition("/")[2] for name in re.findall(r"[\w/]+\.py\b", page)}
    assert named - {"test_layering.py"} == {path.name for path in FILES}
