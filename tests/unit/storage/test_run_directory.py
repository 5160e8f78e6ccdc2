"""Run directories, checkpoints and random streams."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqlray import seeding
from cqlray.errors import StorageFailure, UserError
from cqlray.storage import checkpoint, locks
from cqlray.storage.run_directory import (
    RunDirectory,
    read_json,
    write_bytes,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"old")
    with pytest.raises(TypeError):
        write_bytes(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    assert read_json(tmp_path / "x.json") == {"a": [None, 1.0], "b": {"c": None}}


def test_a_line_cut_off_is_passed_over_and_the_next_survives(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    directory.append("rows.jsonl", [{"a": 1}, {"a": 2}])
    path = directory / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert directory.rows("rows.jsonl") == [{"a": 1}]
    directory.append("rows.jsonl", [{"a": 3}])
    assert directory.rows("rows.jsonl") == [{"a": 1}, {"a": 3}]
    assert directory.rows("none.jsonl") == []


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        RunDirectory.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_was_killed_as_it_was_made_is_made_anew(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", {"id": "a"})
    (tmp_path / "run" / ".config.yaml.tmp").write_bytes(b"half")
    RunDirectory.create(tmp_path / "run", {"id": "b"})
    assert read_json(tmp_path / "run" / "manifest.json")["id"] == "b"
    (tmp_path / "run" / "mine.txt").write_text("not a run's")
    with pytest.raises(UserError, match="exists already"):
        RunDirectory.create(tmp_path / "run", {"id": "c"})


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_what_is_not_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        RunDirectory.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunDirectory.open(tmp_path)


@contextmanager
def held_elsewhere(directory: RunDirectory) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the run until it is killed."""
    code = (
        "import sys; from pathlib import Path; from cqlray.storage.run_directory import"
        " RunDirectory\nwith RunDirectory(Path(sys.argv[1])).locked(): print('held', flush=True);"
        " sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(directory.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        yield other
        other.kill()


def on_another_machine(lock: Path) -> None:
    """Have a lock's holder seem to be on another machine."""
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"boot": "another"}))


def test_two_processes_cannot_hold_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    with held_elsewhere(directory) as other:
        who = rf"in use by another cqlray process \(process {other.pid} on {socket.gethostname()},"
        refused = rf"{who} since \d{{4}}-.* UTC\); wait for it or stop it first"
        with pytest.raises(UserError, match=refused):
            directory.locked(
                lambda _: pytest.fail("the holder is on this machine and lives")
            ).__enter__()
        assert directory.in_use()
        on_another_machine(directory.path / ".lock")
        monkeypatch.setattr(locks, "LOCK_WAIT", 0.5)
        with pytest.raises(UserError, match=refused):
            directory.locked().__enter__()
    with directory.locked():
        pass


def test_the_lock_of_a_holder_that_is_gone_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    said: list[str] = []
    with held_elsewhere(directory) as other:
        on_another_machine(directory.path / ".lock")

        def say(line: str) -> None:
            assert said or other.poll() is None, "it is said at once"
            said.append(line)
            other.kill()

        started = time.monotonic()
        with directory.locked(say):
            waited = time.monotonic() - started
    waiting, followed = said
    holder = rf"process {other.pid} on {socket.gethostname()}, since .* UTC"
    run = re.escape(str(directory.path))
    assert re.fullmatch(
        rf"{run} is in use by another cqlray process \({holder}\); waiting up to 90 s, for its"
        " machine may have died",
        waiting,
    )
    assert re.fullmatch(rf"{run} was held by {holder}, which did not.*; taken over", followed)
    assert waited < 30


def test_a_disk_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    (tmp_path / "run" / ".lock").mkdir()
    with pytest.raises(
        UserError,
        match=r"/run/\.lock cannot be locked: Is a directory; a run directory or dataset needs a",
    ):
        directory.locked().__enter__()
    (tmp_path / "run" / ".lock").rmdir()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        UserError,
        match=r"/run/\.lock cannot be locked: Function not implemented; .* has locks \(flock\)$",
    ):
        directory.locked().__enter__()
    assert not directory.in_use(), "which is for a report, and no reason to write none"


def test_what_goes_wrong_while_a_run_is_held_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(BrokenPipeError), directory.locked():
        raise BrokenPipeError


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_a_run_from_elsewhere_leads_no_write_outside(tmp_path: Path, there: bool) -> None:
    outside, run = tmp_path / "bashrc", RunDirectory(tmp_path / "run")
    if there:
        outside.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in (".report.html.tmp", "events.jsonl", ".lock"):
        (tmp_path / "run" / name).symlink_to(outside)
    with pytest.raises(StorageFailure, match=r"report\.html cannot be written: .*symbolic links"):
        write_bytes(run / "report.html", b"x")
    with pytest.raises(StorageFailure, match=r"events\.jsonl cannot be written: .*symbolic links"):
        run.append("events.jsonl", [{"event": "$(id)"}])
    with pytest.raises(UserError, match=r"\.lock cannot be locked: .*symbolic links"), run.locked():
        pass
    assert outside.exists() == there and (not there or outside.read_text() == "mine")


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {"id": "a"})
    (tmp_path / "run" / "dataset").mkdir()
    (tmp_path / "run" / "dataset" / ".shard-00000.parquet.0badcafe.tmp").write_bytes(b"half")
    write_bytes(run / "dataset" / "shard-00000.parquet", b"whole")
    with run.locked():
        assert [path.name for path in (tmp_path / "run" / "dataset").iterdir()] == [
            "shard-00000.parquet"
        ]


def test_metadata_is_read_without_the_arrays(tmp_path: Path) -> None:
    """Also where the header is longer than what is read at first."""
    for names in (3, 5_000):
        arrays = {f"array.{index}": np.zeros(3) for index in range(names)}
        write_bytes(
            tmp_path / "file", checkpoint.encode(arrays, {"updates": names, "members": [1]})
        )
        assert checkpoint.read_metadata(tmp_path / "file") == {"updates": names, "members": [1]}
    for damaged in (b"", b"short", b"\xff" * 100):
        write_bytes(tmp_path / "file", damaged)
        with pytest.raises(UserError, match="not a readable cqlray checkpoint"):
            checkpoint.read_metadata(tmp_path / "file")


@given(st.dictionaries(st.text("abc.", min_size=1), st.lists(st.floats(width=32), max_size=5)))
def test_checkpoints_come_back_equal_and_are_the_same_bytes(values: dict[str, list[float]]) -> None:
    arrays = {name: np.array(numbers, np.float32) for name, numbers in values.items()}
    data = checkpoint.encode(arrays, {"updates": 3, "z": [1, None]})
    assert checkpoint.encode(dict(reversed(arrays.items())), {"z": [1, None], "updates": 3}) == data
    back, metadata = checkpoint.decode(data)
    assert metadata == {"updates": 3, "z": [1, None]}
    assert back.keys() == arrays.keys()
    assert all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_damaged_checkpoints_get_one_line() -> None:
    data = checkpoint.encode({"x": np.arange(100.0)}, {})
    for damaged in (b"", data[:7], data[:50], data[:-5], b"\x80\x04pickle" * 20):
        with pytest.raises(UserError, match=r"^here: not a readable cqlray checkpoint"):
            checkpoint.decode(damaged, "here")


def test_streams_differ_by_seed_purpose_and_index_and_are_repeatable() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 1, 0)]
    seeds = [seeding.integer_seed(*name) for name in names]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(names)
    assert seeds == [seeding.integer_seed(*name) for name in names]  # type: ignore[arg-type]
    assert all(0 <= s < 2**31 for s in seeding.integer_seeds(0, "a", count=100))


def test_hash_randomisation_plays_no_part() -> None:
    code = "from cqlray import seeding; print(seeding.integer_seed(0, 'evaluation', 3))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(h)},
            capture_output=True,
            check=True,
        ).stdout
        for h in (1, 2)
    }
    assert len(outputs) == 1
