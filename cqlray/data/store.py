"""A dataset's transitions looked up by their index: in the machine's memory (HostColumns) or in one
file (ColumnFile), which may be larger than memory.

The file holds a record for each observation row: observation and
action as trained on, reward, termination, all float32. The next observation stands in the record
behind, so a transition is one contiguous read. An episode's closing record has NaN in place of
action, reward and termination: taken for a transition it could not go unnoticed. After the records
come the episodes' ends, and the mean and standard deviation that observations were normalised by.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cqlray.data.columns import Columns, check_dimensions, normalize_in_place, scale_in_place
from cqlray.data.episode import Array, Shard
from cqlray.errors import UserError
from cqlray.storage.scratch import open_private

MAGIC = b"cqlray column file, version 2\n"
HEADER_BYTES = 4096
COUNTS = ("observation_dim", "action_dim", "transitions", "episodes")
# A disk serves many random reads at a time: on the machine this was written on, 14,000 a second for
# one thread, 100,000 for 32 threads, and no more for 64. Threads that wait do not hold the GIL.
READERS = 32
# Touching a row maps the whole folio of the page cache that holds it, 4 KiB to 2 MiB at the
# kernel's choice. So every few rows we look how much is mapped, and give it back beyond this.
RESIDENT_BYTES = 256 * 2**20
ROWS_AT_A_TIME = 512


def _check(index: Array, transitions: int) -> None:
    """Raises IndexError where an index is out of range: a mistake of this program, not a user's."""
    if len(index) and not 0 <= index.min() <= index.max() < transitions:
        raise IndexError(f"transition {index.min()} or {index.max()} of {transitions}")


class HostColumns:
    """A dataset in memory."""

    def __init__(
        self, data: Columns, mean: Array, std: Array, to_unit: Callable[[Array], Array]
    ) -> None:
        """Takes over writable columns: observations are normalised and actions scaled in place."""
        normalize_in_place(data.observations, mean, std)
        scale_in_place(data.actions, to_unit)
        self.data = data
        self.num_transitions = len(data.rewards)

    def gather(self, index: Array) -> dict[str, Array]:
        """Transitions at `index` [n] int64: observations and next_observations
        [n, observation_dim], actions [n, A], rewards and terminations [n], float32 each.
        """
        _check(index, self.num_transitions)
        rows = self.data.rows[index]
        return {
            "observations": self.data.observations.take(rows, axis=0),
            "actions": self.data.actions.take(index, axis=0),
            "rewards": self.data.rewards.take(index),
            "next_observations": self.data.observations.take(rows + 1, axis=0),
            "terminations": self.data.terminations.take(index).astype(np.float32),
        }


class ColumnFile:
    """A dataset in a file that is mapped into memory; about RESIDENT_BYTES of it are resident at
    most.

    One number for each episode is held in memory, to find a transition's record.
    """

    def __init__(self, file: BinaryIO, counts: dict[str, int], mean: Array, std: Array) -> None:
        """Made by `open_store` and `write_store`."""
        self.mean, self.std = mean, std
        self.observation_dim, self.action_dim = counts["observation_dim"], counts["action_dim"]
        self.num_transitions, episodes = counts["transitions"], counts["episodes"]
        self._mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for advice in ("MADV_RANDOM", "MADV_NOHUGEPAGE"):
            with contextlib.suppress(AttributeError, OSError):
                self._mapping.madvise(getattr(mmap, advice))
        rows, width = self.num_transitions + episodes, self.observation_dim + self.action_dim + 2
        records = np.frombuffer(self._mapping, np.float32, rows * width, HEADER_BYTES)
        self._records = records.reshape(rows, width)
        self._ends = np.frombuffer(
            self._mapping, np.int64, episodes, _ends_offset(rows, width)
        ).copy()
        self._others_bytes = _file_bytes_resident()
        self._readers = ThreadPoolExecutor(READERS, "cqlray-store")

    def gather(self, index: Array) -> dict[str, Array]:
        """As `HostColumns.gather`; one caller at a time."""
        _check(index, self.num_transitions)
        shapes: dict[str, tuple[int, ...]] = {
            "observations": (self.observation_dim,),
            "actions": (self.action_dim,),
            "rewards": (),
            "next_observations": (self.observation_dim,),
            "terminations": (),
        }
        arrays = {
            name: np.empty((len(index), *shape), np.float32) for name, shape in shapes.items()
        }
        for start in range(0, len(index), ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, len(index))
            bounds = np.linspace(start, stop, min(READERS, stop - start) + 1).astype(int)
            list(
                self._readers.map(
                    lambda lo, hi: self._read(index[lo:hi], arrays, slice(lo, hi)),
                    bounds,
                    bounds[1:],
                )
            )
            self._release()
        return arrays

    def _read(self, index: Array, arrays: dict[str, Array], into: slice) -> None:
        rows = index + np.searchsorted(self._ends, index, side="right")
        pairs = self._records.take(rows[:, None] + np.arange(2), axis=0)  # [n, 2, width]
        actions = slice(self.observation_dim, self.observation_dim + self.action_dim)
        arrays["observations"][into] = pairs[:, 0, : self.observation_dim]
        arrays["actions"][into] = pairs[:, 0, actions]
        arrays["rewards"][into] = pairs[:, 0, -2]
        arrays["next_observations"][into] = pairs[:, 1, : self.observation_dim]
        arrays["terminations"][into] = pairs[:, 0, -1]

    def _release(self) -> None:
        """Unmap pages where more than RESIDENT_BYTES are mapped; they stay in the page cache."""
        if _file_bytes_resident() - self._others_bytes > RESIDENT_BYTES:
            self._mapping.madvise(mmap.MADV_DONTNEED)
            self._others_bytes = _file_bytes_resident()

    def close(self) -> None:
        """End the reading threads; the mapping goes with the last reference to it."""
        self._readers.shutdown()


def _file_bytes_resident() -> int:
    """Resident bytes of all files that this process has mapped, libraries and shared memory
    included.
    """
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE


def _ends_offset(rows: int, width: int) -> int:
    return -(-(HEADER_BYTES + 4 * rows * width) // 8) * 8


def fingerprint(digest: str, *arrays: Array) -> str:
    """A hash of a digest and arrays; of the dataset's digest, whether observations are normalised,
    and the action bounds, which determine a file's content.
    """
    hasher = hashlib.sha256(digest.encode())
    for array in arrays:
        hasher.update(
            f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        )
    return hasher.hexdigest()


def open_store(path: Path, of: str) -> ColumnFile | None:
    """The file that `write_store` wrote with the fingerprint `of`; None where it is missing, cut
    off, of another fingerprint, or where its mean and standard deviation are damaged.
    """
    try:
        file = open(path, "rb", opener=open_private)  # noqa: SIM115
    except FileNotFoundError:
        return None
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as long as it is mapped: who sweeps leaves it alone
        header = file.read(HEADER_BYTES)
        try:
            description: dict[str, Any] = json.loads(header.removeprefix(MAGIC))
            counts = {name: int(description[name]) for name in COUNTS}
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        rows = counts["transitions"] + counts["episodes"]
        width = counts["observation_dim"] + counts["action_dim"] + 2
        moments_at = _ends_offset(rows, width) + 8 * counts["episodes"]
        size = moments_at + 8 * counts["observation_dim"]
        whole = os.fstat(file.fileno()).st_size == size
        if not header.startswith(MAGIC) or description.get("fingerprint") != of or not whole:
            return None
        file.seek(moments_at)
        mean, std = np.frombuffer(file.read(), np.float32).reshape(2, -1)
        if description.get("moments") != fingerprint(of, mean, std):
            return None
        return ColumnFile(file, counts, mean, std)


def write_store(
    path: Path,
    shards: Iterable[Shard],
    of: str,
    moments: Callable[[], tuple[Array, Array]],
    to_unit: Callable[[Array], Array],
) -> ColumnFile:
    """The column file at `path`, written first unless it is there with this fingerprint; one shard
    is in memory at a time.

    One process of a machine writes while the others wait. The file appears whole or not at all.
    `moments` computes the mean and standard deviation to normalise by; the file keeps them. A file
    that is there and is not the right one is written anew, with a line on stderr.

    Raises:
        UserError: the file cannot be written; shards differ in their dimensions.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "wb", opener=open_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (store := open_store(path, of)) is None:
                if path.exists():
                    print(f"{path}: damaged, or of other data; it is made again", file=sys.stderr)
                _write(path, shards, of, *moments(), to_unit)
                store = open_store(path, of)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); it takes the size of the data"
        ) from None
    assert store is not None
    return store


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """As `storage.locations.replacing`, for the owner alone and through no link."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of one that was killed
    try:
        with open(temporary, "xb", opener=open_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(
    path: Path,
    shards: Iterable[Shard],
    of: str,
    mean: Array,
    std: Array,
    to_unit: Callable[[Array], Array],
) -> None:
    with _replacing(path) as file:
        file.write(bytes(HEADER_BYTES))
        ends, transitions = [np.zeros(0, np.int64)], 0
        for shard in shards:
            if not transitions:
                dimensions = shard.observations.shape[1], shard.actions.shape[1]
            check_dimensions(shard, *dimensions)
            file.write(_records(shard, mean, std, to_unit).data)
            ends.append(transitions + np.cumsum(shard.lengths))
            transitions += shard.num_transitions
        if not transitions:
            raise UserError(f"{path}: there is no shard to write")
        file.write(bytes(-file.tell() % 8))
        all_ends = np.concatenate(ends)
        file.write(all_ends.data)
        file.write(np.stack([mean, std]).data)
        description = dict(zip(COUNTS, (*dimensions, transitions, len(all_ends)), strict=True))
        description |= {"fingerprint": of, "moments": fingerprint(of, mean, std)}
        file.seek(0)
        file.write((MAGIC + json.dumps(description).encode()).ljust(HEADER_BYTES))


def _records(shard: Shard, mean: Array, std: Array, to_unit: Callable[[Array], Array]) -> Array:
    """[N + E, observation_dim + A + 2] float32: the shard's records."""
    observation_dim = shard.observations.shape[1]
    records = np.full(
        (len(shard.observations), observation_dim + shard.actions.shape[1] + 2), np.nan, np.float32
    )
    records[:, :observation_dim] = (shard.observations - mean) / std
    rows = shard.step_rows
    records[rows, observation_dim:-2] = to_unit(shard.actions)
    records[rows, -2] = shard.rewards
    records[rows, -1] = shard.terminations
    return records
