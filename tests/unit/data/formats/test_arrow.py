"""Arrow's own files: compressed ones are refused, because their size is not said."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cqlray.data.formats.arrow import read_arrow
from cqlray.errors import UserError


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_compressed_files_are_refused(tmp_path: Path, compression: str | None) -> None:
    table = pa.table({"a": pa.array([[0.0, 1.0]] * 1000), "b": [1] * 1000})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema, options=options) as writer:
        writer.write_table(table, 300)
    with pa.OSFile(str(tmp_path / "x.arrow")) as stream:
        if compression is None:
            assert read_arrow(stream, "x.arrow").equals(table)
        else:
            with pytest.raises(UserError, match=r"x\.arrow: it is compressed"):
                read_arrow(stream, "x.arrow")


def test_a_file_with_fewer_batches_than_it_counts_is_refused(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0] * 30})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table, 10)
    data = bytearray((tmp_path / "x.arrow").read_bytes())
    at = -4
    for _ in range(3):  # the schema, the first batch, and the second
        at = data.index(b"\xff\xff\xff\xff", at + 4)
    data[at + 4 : at + 8] = bytes(4)  # a length of 0 ends the messages
    (tmp_path / "x.arrow").write_bytes(data)
    with (
        pa.OSFile(str(tmp_path / "x.arrow")) as stream,
        pytest.raises(UserError, match=r"x\.arrow: it ends before all record batches"),
    ):
        read_arrow(stream, "x.arrow")
