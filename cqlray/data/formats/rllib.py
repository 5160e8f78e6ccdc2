"""Read RLlib's recordings (new API stack) without RLlib: a folder of Parquet files, one for each
call of its writer.

With `output_write_episodes=True` (RLlib's default) each row is one SingleAgentEpisode, packed by
msgpack and msgpack_numpy; with False there is a row for each step. Arrays are taken from their
bytes, and only where they are plain numbers: what RLlib pickles (columns in
`output_compress_columns`, arrays of objects) is refused, since unpickling runs code. msgpack comes
with Ray.

RLlib records a long episode in several parts; each part is read as an episode, with a final
observation of its own, and without an end where the episode went on. Actions are those of RLlib's
module: with `normalize_actions` (its default) they are in [-1, 1] and not in the environment's
bounds. The files do not say which, so their bounds are not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cqlray.data.episode import Array, Episode, Shard
from cqlray.data.formats.files import DataPath, readable
from cqlray.data.formats.log import open_log
from cqlray.data.formats.log_columns import ColumnNames
from cqlray.data.parquet import open_parquet
from cqlray.data.source import PIECE_SIZE, UNKNOWN_TIER, Piece, Source, describe_environment, narrow
from cqlray.errors import UserError

COLUMNS = ColumnNames(
    observation=("obs",),
    action=("actions",),
    reward="rewards",
    episode="eps_id",
    terminated="terminateds",
    truncated="truncateds",
    next_observation=("new_obs",),
)
_NEEDED = {"obs", "actions", "rewards", "eps_id", "new_obs"}


def open_if_rllib(name: str, files: list[DataPath]) -> Source | None:
    """The Parquet files as an RLlib recording, or None where they are none.

    Raises:
        UserError: they are one that cannot be read without unpickling.
    """
    with readable(files[0].name, "Parquet file"), files[0].open() as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    if schema.names == ["item"] and str(schema.field("item").type) in ("binary", "large_binary"):
        return _open_episodes(name, files)
    if not _NEEDED.issubset(schema.names):
        return None
    packed = [
        key for key in ("obs", "new_obs", "actions") if "string" in str(schema.field(key).type)
    ]
    if packed:
        raise UserError(
            f"dataset {name!r}: RLlib pickled the columns {', '.join(packed)}, and unpickling would"
            " run what the file says; record again with output_compress_columns=[], or with"
            " output_write_episodes=True"
        )
    return open_log(name, "rllib", files, COLUMNS, rejoining=True)


def _open_episodes(name: str, files: list[DataPath]) -> Source:
    first = next(_episodes(files[:1]), None)
    if first is None:
        raise UserError(f"dataset {name!r} has no episodes")
    environment = describe_environment(first.observations.shape[1], first.actions.shape[1])

    def pieces() -> Iterator[Piece]:
        for file in files:
            held: list[Episode] = []
            steps = 0
            for episode in _episodes([file]):
                held.append(episode)
                steps += len(episode)
                if steps >= PIECE_SIZE:
                    yield Piece(Shard.of(held, UNKNOWN_TIER), file.name)
                    held, steps = [], 0
            if held:
                yield Piece(Shard.of(held, UNKNOWN_TIER), file.name)

    return Source(name, "rllib", environment, pieces)


def _episodes(files: list[DataPath]) -> Iterator[Episode]:
    for file in files:
        row = 0
        with readable(file.name, "Parquet file"), file.open() as stream:
            parquet = open_parquet(stream, file.name, stream.size(), ["item"], rows=16)
            for batch in parquet.iter_batches(16, columns=["item"]):
                for value in batch.column(0):
                    yield _episode(value.as_py(), f"{file.name}, row {row}")
                    row += 1


def _episode(packed: bytes, place: str) -> Episode:
    """The episode in a packed state.

    Raises:
        UserError: it is not an episode, or holds something else than plain numbers.
    """
    try:
        import msgpack
    except ImportError:
        raise UserError(
            "RLlib's episodes need msgpack, which is not installed: pip install msgpack"
        ) from None
    with readable(place, "RLlib episode"):
        state = msgpack.unpackb(packed, object_hook=_array, strict_map_key=False)
        arrays = {
            key: _series(state[key], place, key) for key in ("observations", "actions", "rewards")
        }
        ends = [bool(state["is_terminated"]), bool(state["is_truncated"])]
    steps = len(arrays["rewards"])
    if len(arrays["observations"]) != steps + 1 or len(arrays["actions"]) != steps or not steps:
        raise UserError(
            f"{place}: {len(arrays['observations'])} observations, {len(arrays['actions'])} actions"
            f" and {steps} rewards; an episode of T steps, one at least, has T + 1, T and T"
        )
    flags = np.zeros((2, steps), bool)
    flags[:, -1] = ends
    return Episode(
        arrays["observations"], arrays["actions"], arrays["rewards"][:, 0], flags[0], flags[1]
    )


def _series(buffer: dict[str, Any], place: str, key: str) -> Array:
    """[n, width] of one of the state's buffers, without what it looks back on from the part
    before.
    """
    values = np.asarray(buffer["data"])[int(buffer["lookback"]) :]
    if values.dtype.kind not in "fiub":
        raise UserError(
            f"{place}: {key} are no flat vectors of numbers; cqlray reads Box spaces of RLlib's"
            " recordings"
        )
    if values.ndim > 2:
        raise UserError(
            f"{place}: {key} have shape {values.shape[1:]}; images are not supported yet"
        )
    return narrow(values.reshape(len(values), math.prod(values.shape[1:])))


def _array(value: dict[Any, Any]) -> Any:
    """msgpack_numpy's arrays and numbers from their bytes.

    Its kinds V and O stay as they are: O is a pickle.
    """
    if b"nd" not in value or value.get(b"kind", b"") not in (b"", None):
        return value
    dtype = value[b"type"]
    plain = np.dtype(dtype.decode() if isinstance(dtype, bytes) else dtype)
    if plain.kind not in "fiub":
        return value
    array = np.frombuffer(value[b"data"], plain)
    return array.reshape(value[b"shape"]) if value[b"nd"] else array[0]
