"""Readers that make a Source of data from anywhere, and writers: importing this loads numpy and
pyarrow alone.
"""

from cqlray.data.formats.detect import open_source
from cqlray.data.formats.log_columns import ColumnNames
from cqlray.data.formats.log_writer import write_log
from cqlray.data.formats.minari_writer import write_minari

__all__ = ["ColumnNames", "open_source", "write_log", "write_minari"]
