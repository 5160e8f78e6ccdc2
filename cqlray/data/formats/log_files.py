"""The files of a log, or a DataFrame, as Arrow record batches in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cqlray.data.formats.files import DataPath, readable
from cqlray.data.formats.log_columns import ColumnNames, LogColumns, resolve
from cqlray.data.formats.log_text import MISSING, Found, NoNumberError, with_numbers
from cqlray.data.parquet import open_parquet
from cqlray.data.source import PIECE_SIZE
from cqlray.errors import UserError

if TYPE_CHECKING:
    import pandas

PARQUET, CSV = (".parquet", ".parq", ".pq"), (".csv", ".tsv")
FRAME = "the DataFrame"  # what messages call it
_CSV_BLOCK = 8 * 2**20  # bytes; a row must fit in
# What stands for no value in a CSV file, as people write it.
_NULLS = [
    *dict.fromkeys(spelt for word in MISSING for spelt in (word, word.upper(), word.capitalize())),
    *(" " * blanks for blanks in range(1, 9)),
]

Batches = Iterator[tuple[LogColumns, pa.RecordBatch]]


def batches(file: DataPath, names: ColumnNames, order: Sequence[str], found: Found) -> Batches:
    """The rows of one Parquet or CSV file, the needed columns alone.

    Args:
        order: the columns of the log's first file.
        found: takes up what is found in text.

    Raises:
        UserError: it is not readable, or a column is missing.
    """
    yield from (_csv if file.suffix in CSV else _parquet)(file, names, order, found)


def column_names(file: DataPath) -> list[str]:
    """All columns of a Parquet or CSV file, in its order.

    Raises:
        UserError: it is not readable.
    """
    if file.suffix in CSV:
        with readable(file.name, "CSV file"):
            return _header(file)[0]
    with readable(file.name, "Parquet file"), file.open() as opened:
        names: list[str] = pq.ParquetFile(opened).schema_arrow.names
        return names


def frame_columns(frame: pandas.DataFrame) -> list[str]:
    """All columns of a pandas DataFrame, in its order."""
    return [str(label) for label in frame.columns]


def _parquet(file: DataPath, names: ColumnNames, order: Sequence[str], found: Found) -> Batches:
    with readable(file.name, "Parquet file"), file.open() as opened:
        columns = resolve(names, pq.ParquetFile(opened).schema_arrow.names, file.name, order)
        parquet = open_parquet(opened, file.name, opened.size(), columns.needed, PIECE_SIZE)
        row = 0
        for batch in parquet.iter_batches(PIECE_SIZE, columns=list(columns.needed)):
            yield columns, _converted(columns, batch, found, file.name, row)
            row += batch.num_rows


def _converted(
    columns: LogColumns, batch: pa.RecordBatch, found: Found, file: str, row: int
) -> pa.RecordBatch:
    try:
        return with_numbers(columns, batch, found, row)
    except NoNumberError as error:
        raise UserError(
            f"{file}: column {error.column} holds string; it should hold numbers, or vectors of one"
            f" length ({error})"
        ) from None


def _csv(file: DataPath, names: ColumnNames, order: Sequence[str], found: Found) -> Batches:
    """Numbers are parsed as float64, which rounds to the nearest float32; all else is text.

    So are numbers at first where decimal commas may be: commas part no columns, or quotes are used.
    """
    with readable(file.name, "CSV file"):
        header, delimiter, quotes = _header(file)
        of_numbers = pa.string() if quotes or delimiter != "," else pa.float64()
        columns = resolve(names, header, file.name, order)
        types = {
            name: of_numbers if name in columns.numbers else pa.string() for name in columns.needed
        }
        convert: Any = pyarrow.csv.ConvertOptions(
            column_types=types,
            include_columns=list(columns.needed),
            null_values=_NULLS,
            strings_can_be_null=True,
        )
        options: dict[str, Any] = {
            "read_options": pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK),
            "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter),
            "convert_options": convert,
        }
        with file.stream() as stream, pyarrow.csv.open_csv(stream, **options) as reader:
            row = 0
            for batch in reader:
                yield columns, with_numbers(columns, batch, found, row)
                row += batch.num_rows


def _header(file: DataPath) -> tuple[list[str], str, bool]:
    """The column names of a CSV file; its delimiter, comma, semicolon or tab; and whether values
    stand in quotes near its beginning.
    """
    with file.stream() as stream:
        first, _, rest = stream.read(2**20).partition(b"\n")
        line = first.decode("utf-8-sig").strip("\r")
    if not line.strip():
        raise UserError(f"{file.name}: the first line is empty; it should name the columns")
    delimiter = max(",;\t", key=line.count)
    try:
        return next(csv.reader([line], delimiter=delimiter)), delimiter, b'"' in rest
    except csv.Error as error:
        raise UserError(f"{file.name}: its first line names no columns ({error})") from None


def frame_batches(frame: pandas.DataFrame, names: ColumnNames, found: Found) -> Batches:
    """The rows of a pandas DataFrame; its NaN are null.

    Raises:
        UserError: a column is missing, or holds what Arrow has no type for.
    """
    labels = frame_columns(frame)
    columns = resolve(names, labels, FRAME)
    for start in range(0, len(frame), PIECE_SIZE):
        arrays = []
        for name in columns.needed:
            part = frame.iloc[start : start + PIECE_SIZE, labels.index(name)]
            with readable(f"{FRAME}, column {name}", "column of numbers, vectors, flags or names"):
                array = pa.Array.from_pandas(part)
            arrays.append(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array)
        batch = pa.RecordBatch.from_arrays(arrays, list(columns.needed))
        yield columns, _converted(columns, batch, found, FRAME, start)
