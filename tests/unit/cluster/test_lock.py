"""image.lock: every package of the image by hash, in the versions that are tested."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.cluster.commands import CLUSTER, REPOSITORY

LOCK = (CLUSTER / "image.lock").read_text()
SCRIPT = (CLUSTER / "lock.sh").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = re.findall(r"--extra (\S+)", SCRIPT)
TESTED = dict(
    line.split("==") for line in (CLUSTER / "constraints.txt").read_text().split() if "==" in line
)


def locked(lock: str) -> dict[str, tuple[str, int]]:
    """Of each package its version, and how many hashes it has.

    Raises ValueError: a line that is neither of these, such as an option or a package by address.
    """
    found: dict[str, tuple[str, int]] = {}
    for line in re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE).replace("\\\n", " ").splitlines():
        package = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*) *", line)
        if not package:
            raise ValueError(line)
        found[package[1]] = package[2], package[3].count("--hash")
    return found


def of_the_image() -> list[Requirement]:
    """What is installed in the image, and what it is built with."""
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    texts = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    texts += [text for name in EXTRAS for text in extras[name]]
    return [Requirement(text) for text in texts]


def mistakes(lock: str) -> list[str]:
    """What is wrong with a lock."""
    packages = locked(lock)
    found = [f"no hash: {name}" for name, (_, hashes) in packages.items() if not hashes]
    for requirement in of_the_image():
        version, _ = packages.get(canonicalize_name(requirement.name), (None, 0))
        if version is None:
            found.append(f"missing: {requirement}")
        elif not requirement.specifier.contains(version):
            found.append(f"too old or too new: {requirement.name} {version}")
    return found + [
        f"not the tested one: {name} {version}"
        for name, (version, _) in packages.items()
        if TESTED.get(name, version) != version
    ]


def test_nothing_is_wrong_with_it() -> None:
    assert mistakes(LOCK) == []
    assert {"minari", "tensorboard"} <= {*EXTRAS}
    assert "# via" in LOCK and "    cluster/lock.sh\n" in LOCK.partition("==")[0]


def test_it_is_for_the_python_of_the_image() -> None:
    (version,) = re.findall(r"--python-version (\S+)", SCRIPT)
    assert f"ARG PYTHON_IMAGE=python:{version}-" in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("before", "after", "mistake"),
    [
        (rf"torch=={TESTED['torch']}", "torch==2.5.0", "too old or too new: torch 2.5.0"),
        (rf"numpy=={TESTED['numpy']}", "numpy==2.4.99", "not the tested one: numpy 2.4.99"),
        (r"(h5py==\S+)( \\\n +--hash=\S+)+", r"\1", "no hash: h5py"),
        (r"h5py==\S+( \\\n +--hash=\S+)+\n", "", "missing: h5py>=3.11"),
        (r"setuptools==\S+( \\\n +--hash=\S+)+\n", "", "missing: setuptools>=77"),
    ],
)
def test_a_broken_copy_is_refused(before: str, after: str, mistake: str) -> None:
    broken, times = re.subn(rf"^{before}", after, LOCK, flags=re.MULTILINE)
    assert times == 1
    assert mistake in mistakes(broken)


@pytest.mark.parametrize(
    "line", ["--extra-index-url a", "ray @ file:///a.whl", "-e .", "ray>=2", "ray==2 --hash=md5:0"]
)
def test_nothing_else_stands_in_it(line: str) -> None:
    with pytest.raises(ValueError, match=line):
        locked(f"{LOCK}{line}\n")
