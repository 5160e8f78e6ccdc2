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
