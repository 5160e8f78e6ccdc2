"""The Dockerfile, read instruction by instruction: there is no Docker where the tests run."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.cluster.commands import CLUSTER, REPOSITORY, fenced, simple_commands

NOBODYS = f"your-registry/cqlray@sha256:{'0' * 64}"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
BY_DIGEST = re.compile(r"[\w.:/-]+@sha256:[0-9a-f]{64}")
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
    words = shlex.split(rest.replace("${LOCK}", "cluster/image.lock"))
    return [word for word in words if not word.startswith("--")][:-1]


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
    base = dict(rest.split("=", 1) for name, rest in steps if name == "ARG").get("PYTHON_IMAGE", "")
    if [rest for name, rest in steps if name == "FROM"] != ["${PYTHON_IMAGE}"]:
        found.append("another base image")
    if not BY_DIGEST.fullmatch(base):
        found.append(f"no digest: {base}")
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
        offline = {"--no-index", "--no-deps", "--no-build-isolation"} <= {*words}
        hashed = {"--require-hashes", "--only-binary", ":all:"} <= {*words}
        if words[:2] == ["pip", "install"] and not offline and not hashed:
            found.append(f"not by hash: {' '.join(words)}")
        if {"--extra-index-url", "--find-links", "-f", "--trusted-host"} & {*words}:
            found.append(f"more than one index: {' '.join(words)}")
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
        ('ARG INDEX=""', 'ARG RAY_AUTH_TOKEN=""', "a secret in"),
        ('ARG INDEX=""', "ARG INDEX=https://example.org/simple", "an address in"),
        ("--no-index --no-deps", "--no-deps", "not by hash"),
        ("--no-deps --no-build-isolation", "--no-deps", "not by hash"),
        ("--require-hashes ", "", "not by hash"),
        ("--only-binary :all: ", "", "not by hash"),
        ("-r image.lock", '--extra-index-url "$TORCH" -r image.lock', "more than one index"),
        ("FROM ${PYTHON_IMAGE}", "FROM python:3.11-slim", "another base image"),
        ("3.11-slim@sha256:be", "3.11-slim@sha256:", "no digest"),
        ("&& rm -rf build", "&& rm -rf 'build", "no shell command"),
    ],
)
def test_a_broken_copy_is_refused(before: str, after: str, mistake: str) -> None:
    assert DOCKERFILE.count(before) == 1
    assert [
        line for line in mistakes(DOCKERFILE.replace(before, after)) if line.startswith(mistake)
    ]


def images(text: str) -> list[str]:
    """What a manifest, or a file for `ray up`, has its machines run."""
    return re.findall(r"^ *(?:- )?(?:worker_)?image: *(\S+)", text, re.MULTILINE)


MANIFESTS = [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml")]


def test_no_file_of_the_cluster_holds_a_secret() -> None:
    for path in (path for path in CLUSTER.rglob("*") if path.is_file()):
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|auth_token=[0-9a-f]{16}", text), path


def test_what_is_deployed_is_named_by_digest() -> None:
    """By one that no image has, until README's command writes yours: then it is yours everywhere,
    since Ray wants the same on every node.
    """
    named = {path: images(path.read_text()) for path in MANIFESTS}
    assert sum(map(len, named.values())) == 8
    assert {image for found in named.values() for image in found} == {NOBODYS}


def test_readme_has_the_command_that_writes_your_digest(tmp_path: Path) -> None:
    (command,) = re.findall(
        r"^sed -i .*", fenced((CLUSTER / "README.md").read_text()), re.MULTILINE
    )
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    yours = f"registry.example:5000/me/cqlray@sha256:{'ab' * 32}"
    subprocess.run(["bash", "-c", f"image={yours}; {command}"], cwd=tmp_path, check=True)
    changed = [(tmp_path / path.relative_to(REPOSITORY)).read_text() for path in MANIFESTS]
    assert [image for text in changed for image in images(text)] == [yours] * 8
    assert not any("your-registry" in text for text in changed)
