"""The Dockerfile, read instruction by instruction: there is no Docker where the tests run."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess

import pytest

from tests.unit.cluster.commands import CLUSTER, REPOSITORY, simple_commands

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest of its line), with continued lines joined and comments left out."""
    lines = "".join(
        line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#")
    )
    joined = lines.replace("\\\n", " ")
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def sources(rest: str) -> list[str]:
    return [word for word in shlex.split(rest) if not word.startswith("--")][:-1]


def is_let_in(path: str, ignore: str) -> bool:
    """Whether Dockerfile.dockerignore, which refuses all that it does not name with !, lets a path
    into the build.
    """
    patterns = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    return any(
        fnmatch.fnmatch(path, pattern[1:]) for pattern in patterns if pattern.startswith("!")
    )


def mistakes(text: str) -> list[str]:
    """What is wrong with a Dockerfile, as far as reading can tell."""
    found = []
    steps = instructions(text)
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text()
    found += [f"unknown instruction {name}" for name, _ in steps if name not in INSTRUCTIONS]
    users = [rest for name, rest in steps if name == "USER"]
    if not users or re.match(r"(root|0)\b", users[-1]):
        found.append("runs as root")
    for name, rest in steps:
        if name in ("ARG", "ENV") and SECRET.search(rest):
            found.append(f"a secret in {rest}")
        if "://" in rest:
            found.append(f"an address in {rest}")
        if name == "COPY":
            found += [
                f"{path} is not there" for path in sources(rest) if not (REPOSITORY / path).exists()
            ]
            found += [
                f"{path} is kept out" for path in sources(rest) if not is_let_in(path, ignore)
            ]
        if name == "RUN":
            found += _wrong_shell(rest)
    return found


def _wrong_shell(script: str) -> list[str]:
    found = []
    if subprocess.run(
        ["sh", "-n"], input=script, text=True, capture_output=True, check=False
    ).returncode:
        found.append(f"no shell command: {script}")
        return found
    for words in simple_commands(script):
        pinned = "--no-deps" in words or words[2:4] == ["-c", "cluster/constraints.txt"]
        if words[:2] == ["pip", "install"] and not pinned:
            found.append(f"not pinned: {' '.join(words)}")
    return found


def test_nothing_is_wrong_with_it() -> None:
    assert mistakes(DOCKERFILE) == []
    assert [name for name, _ in instructions(DOCKERFILE)][:2] == ["ARG", "FROM"]


@pytest.mark.parametrize(
    ("before", "after", "mistake"),
    [
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000\n", "", "runs as root"),
        ("COPY cqlray cqlray", "COPY cqlrey cqlray", "cqlrey is not there"),
        ("COPY cqlray cqlray", "COPY tests tests", "tests is kept out"),
        ("COPY cqlray cqlray", "KOPY cqlray cqlray", "unknown instruction KOPY"),
        ('ARG PACKAGES=""', 'ARG RAY_AUTH_TOKEN=""', "a secret in"),
        ('ARG TORCH_INDEX=""', "ARG TORCH_INDEX=https://example.org/whl", "an address in"),
        ("pip install --no-deps .", "pip install .", "not pinned"),
        ("&& rm -rf build", "&& rm -rf 'build", "no shell command"),
    ],
)
def test_a_broken_copy_is_refused(before: str, after: str, mistake: str) -> None:
    assert DOCKERFILE.count(before) == 1
    assert [
        line for line in mistakes(DOCKERFILE.replace(before, after)) if line.startswith(mistake)
    ]


def test_no_file_of_the_cluster_holds_a_secret_or_names_a_registry() -> None:
    for path in (path for path in CLUSTER.rglob("*") if path.is_file()):
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|auth_token=[0-9a-f]{16}", text), path
        if path.suffix == ".yaml":
            assert set(re.findall(r"image: *(\S+)", text)) <= {
                "your-registry/cqlray:cpu",
                "your-registry/cqlray:cuda",
            }, path
