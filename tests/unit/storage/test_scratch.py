"""The scratch file of data that exceeds memory: the user's own, on a disk, and given back."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cqlray.config.load import validate
from cqlray.data.store import write_store
from cqlray.errors import UserError
from cqlray.storage import scratch
from cqlray.storage.scratch import Scratch, is_in_memory
from tests.unit.data.test_shards import random_shard

HOURS = 3600


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's temporary directory."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def write(path: Path) -> None:
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    write_store(
        path, [random_shard([3, 2])], "it", lambda: (mean, std), lambda actions: actions
    ).close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_the_user_s_alone_and_given_back(temporary: Path) -> None:
    own = Scratch("run")
    path = own.path()
    assert path == temporary / f"cqlray-{os.geteuid()}" / "run"
    before = os.umask(0)
    try:
        write(path)
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    assert own.remove() and own.remove()
    assert list(temporary.iterdir()) == []


def test_the_run_directory_comes_first_and_a_named_place_alone(
    tmp_path: Path, temporary: Path
) -> None:
    for name in ("run", "big"):
        (tmp_path / name).mkdir()
    home = str(tmp_path / "run")
    assert Scratch("x", None, home).path().is_relative_to(home)
    assert Scratch("x", str(tmp_path / "big"), home).path().is_relative_to(tmp_path / "big")
    with pytest.raises(
        UserError, match=r"no-such: missing or in memory .*resources\.scratch names"
    ):
        Scratch("x", str(tmp_path / "no-such"), home).path()
    with pytest.raises(UserError, match=r"resources\.scratch is 'here'; it must be an absolute"):
        validate({"resources": {"scratch": "here"}}, "my.yaml")


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_a_planted_directory_is_refused(tmp_path: Path, temporary: Path, planted: str) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder = temporary / f"cqlray-{os.geteuid()}"
    if planted == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    with pytest.raises(UserError) as raised:
        Scratch("run").path()
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert Scratch("run").remove()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_somebody_else_s_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Scratch("run").path()
    own = scratch._own  # the same directory, for a user who did not make it
    folder = own(Path(tempfile.gettempdir()))
    monkeypatch.setattr(scratch, "_own", lambda place: folder)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UserError, match="is not a directory of this user alone"):
        Scratch("run").path()


@pytest.mark.parametrize("name", ["run", ".run.lock", ".run.tmp"])
def test_a_planted_link_is_not_followed(tmp_path: Path, name: str) -> None:
    path, victim = Scratch("run").path(), tmp_path / "victim"
    victim.write_text("mine")
    (path.parent / name).symlink_to(victim)
    if name == ".run.tmp":
        write(path)  # the link is removed, and a fresh file made
    else:
        with pytest.raises(UserError, match="cannot be written"):
            write(path)
    assert victim.read_text() == "mine"


def test_memory_is_no_disk(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")
    if memory.is_dir():
        assert is_in_memory(memory)
        with pytest.raises(UserError, match="/dev/shm: missing or in memory"):
            Scratch("run", str(memory)).path()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(scratch, "is_in_memory", lambda place: place == tmp_path / "run")
    assert Scratch("run", None, str(tmp_path / "run")).path().is_relative_to(temporary)


def test_what_a_killed_run_left_behind_is_swept() -> None:
    """Not what another run has open, or has just made."""
    left, held, fresh = (Scratch(name).path() for name in ("left", "held", "fresh"))
    for path in (left, held, fresh):
        write(path)
    for path in (left, held):
        os.utime(path, (0, path.stat().st_mtime - 2 * HOURS))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        Scratch("mine").path()
        assert not left.exists() and held.exists() and fresh.exists()
    Scratch("mine").path()
    assert not held.exists()


def test_a_mapped_file_is_held_and_survives_its_removal() -> None:
    own = Scratch("run")
    path = own.path()
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    columns = write_store(
        path, [random_shard([3, 2])], "it", lambda: (mean, std), lambda actions: actions
    )
    os.utime(path, (0, path.stat().st_mtime - 2 * HOURS))
    Scratch("another").path()
    assert path.exists(), "it is mapped"
    own.remove()
    assert not path.exists()
    assert len(columns.gather(np.arange(5))["rewards"]) == 5
    columns.close()
