"""What workers leave: written where every node sees the run, handed back elsewhere; storage that
fails for a moment.
"""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from cqlray.errors import NotShared, StorageFailure, UserError
from cqlray.storage import locations, patience
from cqlray.storage.outbox import HandedBack, SharedDirectory, StoredFiles, contents
from cqlray.storage.run_directory import RunDirectory
from cqlray.workers.files import StoredData


def test_workers_write_to_the_run_and_to_nothing_of_the_same_name(tmp_path: Path) -> None:
    """A path that another node has on a disk of its own is not the run directory."""
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    shared = SharedDirectory(tmp_path / "run", "a")
    shared.leave("dataset/shard-00000.parquet", b"whole")
    assert shared.read("dataset/shard-00000.parquet") == b"whole"
    assert not list((tmp_path / "run").rglob("*.tmp"))
    for elsewhere in (
        SharedDirectory(tmp_path / "run", "b"),
        SharedDirectory(tmp_path / "nothing", "a"),
    ):
        assert not elsewhere.is_here()
        with pytest.raises(UserError, match=r"is not on node .*; mount it there too, or use s3://"):
            elsewhere.leave("dataset/shard-00001.parquet", b"")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "run" / "snapshots").write_bytes(b"")
    with pytest.raises(
        StorageFailure, match=r"snapshots/a cannot be written: (Not a directory|File exists)"
    ):
        shared.leave("snapshots/a", b"")


def test_what_is_handed_back_is_written_by_nobody(tmp_path: Path) -> None:
    left = HandedBack().in_background()
    assert left.leave("dataset/shard-00000.parquet", b"whole") == b"whole"
    left.flush()
    assert not list(tmp_path.iterdir())


def test_a_thread_writes_in_order_and_is_waited_for(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    left = SharedDirectory(tmp_path / "run", "a").in_background()
    for number in range(50):
        assert left.leave(f"snapshots/{number % 5}", bytes([number])) is None
    left.flush()
    found = [(tmp_path / "run" / "snapshots" / str(place)).read_bytes() for place in range(5)]
    assert found == [bytes([45 + place]) for place in range(5)]
    (tmp_path / "run" / "checkpoints").write_bytes(b"in the way")
    left.leave("checkpoints/population-0", b"")
    with pytest.raises(StorageFailure, match="cannot be written"):
        left.flush()
    with pytest.raises(NotShared):
        SharedDirectory(tmp_path / "nothing", "a").in_background()


def test_sources_are_bytes_or_files_and_come_in_their_order(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    shared = SharedDirectory(tmp_path / "run", "a")
    for name in ("one", "two", "three"):
        shared.leave(name, name.encode())
    sources = (StoredFiles(shared, ("three", "one")), b"between", StoredFiles(shared, ("two",)))
    sent = pickle.loads(pickle.dumps(sources))
    assert list(contents(*sent)) == [b"three", b"one", b"between", b"two"]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Failures of the next looks at a file, each for once."""
    failures: list[OSError] = []
    stat = Path.stat

    def looked(self: Path, **options: Any) -> os.stat_result:
        if failures and self.suffix == ".json":
            raise failures.pop(0)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", looked)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    return failures


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_failure_that_passes_is_not_a_node_without_the_disk(
    flaky: list[OSError], tmp_path: Path, number: int
) -> None:
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    shared = SharedDirectory(tmp_path / "run", "a")
    flaky += [OSError(number, os.strerror(number))] * (patience.TRIES - 1)
    assert shared.is_here()
    (tmp_path / "run" / "dataset.json").write_text("{}")
    flaky += [OSError(number, os.strerror(number))]
    StoredData(tmp_path / "run").require()
    flaky += [OSError(number, os.strerror(number))] * patience.TRIES
    with pytest.raises(
        StorageFailure, match=rf"manifest.json cannot be read .*{os.strerror(number)}"
    ):
        shared.require()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.ENOENT, errno.ENOTDIR])
def test_a_node_that_does_not_have_it_says_so_at_once(
    flaky: list[OSError], tmp_path: Path, number: int
) -> None:
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    for require in (SharedDirectory(tmp_path / "run", "a").require, StoredData(tmp_path).require):
        flaky += [OSError(number, os.strerror(number))]
        with pytest.raises(NotShared, match="is not on node"):
            require()
        assert not flaky


def test_a_read_that_fails_in_passing_after_the_look_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the manifest, which would else be another run's, and of the files that workers read."""
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    shared = SharedDirectory(tmp_path / "run", "a")
    shared.leave("checkpoints/population-0.safetensors", b"saved")
    opened, failed = locations.open_regular, set[Path]()

    def stale(path: Path) -> Any:
        if path not in failed:
            failed.add(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path)

    monkeypatch.setattr(locations, "open_regular", stale)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    source = StoredFiles(shared, ("checkpoints/population-0.safetensors",))
    assert list(contents(source)) == [b"saved"] and len(failed) == 2
