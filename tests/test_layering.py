"""Who may import whom (DESIGN section 2): read from the source, so that a wrong arrow fails here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cqlray"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"config", "errors", "seeding", "filesystem"}
MAY_IMPORT = {
    **{name: set() for name in ("config", "errors", "seeding")},
    "filesystem": {"errors", "object_store"},
    "object_store": {"errors", "parts"},
    "parts": set(),
    "lease": {"errors", "filesystem"},
    "jobs": {"errors", "filesystem"},
    "submit": {"arguments", "errors", "jobs"},
    "algorithms": {"config"},
    "data": {"errors", "filesystem", "storage"},
    "envs": {"config", "errors", "data"},
    "evaluation": BASE,
    "storage": BASE | {"lease"},
    "checkpoint": BASE,
    "validate": BASE,
    "placement": BASE,
    "actors": BASE | {"placement"},
    "metrics": BASE,
    "policies": BASE | {"algorithms", "envs", "storage", "checkpoint"},
    "workers": BASE | {"algorithms", "data", "envs", "evaluation", "checkpoint", "storage", "writer"},
    "writer": set(),
    "crew": BASE
    | {"actors", "data", "envs", "evaluation", "metrics", "placement", "reporting", "storage", "workers", "writer"},
    "judges": BASE | {"actors", "algorithms", "crew", "workers"},
    "students": BASE | {"actors", "checkpoint", "crew", "judges", "workers"},
    "reporting": BASE | {"data", "evaluation", "storage"},
    "datasets": BASE | {"data", "envs", "validate"},
    "arguments": BASE | {"validate", "datasets"},
    "driver": BASE
    | {
        "actors",
        "crew",
        "judges",
        "students",
        "placement",
        "policies",
        "workers",
        "data",
        "datasets",
        "envs",
        "storage",
        "checkpoint",
    }
    | {"reporting"},
    "policy_files": BASE | {"algorithms", "checkpoint", "policies"},
    "export": BASE | {"algorithms", "data", "envs", "evaluation", "policies", "policy_files", "reporting", "storage"},
    "session": BASE
    | {"actors", "driver", "jobs", "placement", "policies", "validate", "data", "datasets", "envs", "evaluation", "storage"}
    | {"reporting", "video"},
    "benchmarks": BASE | {"actors", "algorithms", "crew", "data", "students", "envs", "placement", "workers"},
    "video": BASE | {"algorithms", "checkpoint", "envs", "filesystem", "policies", "storage", "validate"},
    "doctor": BASE | {"actors", "algorithms", "envs"},
    "api": BASE | {"session", "evaluation", "reporting", "storage"},
}
THIRD_PARTY_ONLY_IN = {
    "ray": {"actors", "metrics", "jobs"},
    "torch": {"algorithms", "benchmarks", "workers", "doctor", "reporting", "policy_files"},
    "gymnasium": {"envs", "video"},
    "tyro": {"arguments", "cli"},
    "pydantic": {"validate"},
}


def imports(path: Path) -> list[str]:
    """Dotted names of everything a file imports, at its top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" if node.module == "cqlray" else node.module for alias in node.names]
    return names


def home(path: Path) -> str:
    """The folder or module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = home(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "cqlray" and rest and own in MAY_IMPORT:
            assert rest[0] == own or rest[0] in MAY_IMPORT[own], f"{own} must not import cqlray.{rest[0]}"
        if top in THIRD_PARTY_ONLY_IN:
            assert own in THIRD_PARTY_ONLY_IN[top], f"{own} must not import {top}"


def test_every_module_has_a_rule() -> None:
    free = {"cli", "dataset_commands", "__init__", "__main__"}
    assert {home(path) for path in FILES} - free == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cqlray", ["ray", "torch", "numpy"]),
        ("cqlray.cli.main", ["ray", "torch", "gymnasium"]),
        ("cqlray.cli.submit", ["ray", "torch"]),
        ("cqlray.api.session", ["ray", "torch"]),
        ("cqlray.workers.rollout_worker", ["ray", "torch", "pydantic"]),
        ("cqlray.workers.evaluator", ["ray", "torch", "pydantic"]),
        ("cqlray.workers.learner", ["ray", "gymnasium", "pydantic"]),
        ("cqlray.workers.teacher", ["ray", "gymnasium", "pydantic"]),
        ("cqlray.algorithms.cql", ["ray", "gymnasium", "pyarrow", "pydantic"]),
    ],
)
def test_importing_does_not_load(module: str, forbidden: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
