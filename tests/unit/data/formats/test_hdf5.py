"""HDF5 stores what was never written in no space: such sizes are checked before they are read."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from cqlray.data.formats import minari
from cqlray.data.formats.hdf5 import read_part
from cqlray.errors import UserError


def test_sizes_that_a_file_only_says(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("huge", (2**40, 4), "f4", chunks=(1024, 4))
        file.create_dataset("large", (2**27, 4), "f4", chunks=(1024, 4))
        file.create_dataset("chunk", (2**28, 2), "f4", chunks=(2**28, 2), compression="gzip")
        file["sound"] = [[1.0, 2.0]] * 3
        file["empty"] = h5py.Empty("f4")
        for name in ("huge", "large", "chunk"):
            with pytest.raises(UserError, match="no recording packs like this"):
                read_part(file[name], "x.hdf5", slice(0, 10))
        with pytest.raises(UserError, match="empty"):
            read_part(file["empty"], "x.hdf5")
        for name in ("large", "chunk"):  # as Minari's observations are read
            with pytest.raises(UserError, match="no recording packs like this"):
                minari._hdf5_part(file, name)
        assert read_part(file["sound"], "x.hdf5").shape == (3, 2)
        assert read_part(file["sound"], "x.hdf5", slice(1, 9)).shape == (2, 2)
