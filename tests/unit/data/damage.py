"""Ways to damage a data file at random: its bytes, its columns, its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STRANGE: tuple[Any, ...] = (
    None,
    "",
    "strange",
    -1,
    0,
    3,
    1e308,
    True,
    [],
    [None],
    [[1, 2], [3]],
    {},
    {"a": 1},
    "../x",
    "\0",
)


def damage(folder: Path, rng: np.random.Generator) -> None:
    """Damage one file under the folder: two times of three its bytes, else its columns or
    values.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = files[rng.integers(len(files))]
    structured = {
        ".parquet": columns_of_parquet,
        ".arrow": columns_of_arrow,
        ".json": values_of_json,
        ".csv": cells_of_csv,
        ".hdf5": parts_of_hdf5,
    }
    change = structured.get(file.suffix)
    if change is not None and rng.random() < 0.4:
        change(file, rng)
    else:
        file.write_bytes(changed_bytes(file.read_bytes(), rng))


def changed_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut off, filled with zeros, put in, or taken from elsewhere in the file."""
    content = np.frombuffer(data, np.uint8).copy()
    # Headers and footers hold what a parser trusts: half of all damage is near one of the two ends.
    near = min(len(content), 600)
    span = [(0, len(content)), (0, near), (len(content) - near, len(content)), (0, len(content))][
        rng.integers(4)
    ]
    at = int(rng.integers(*span))
    length = min(int(rng.integers(1, 200)), len(content) - at)
    match rng.integers(5):
        case 0:
            where = rng.integers(*span, int(rng.integers(1, 12)))
            content[where] ^= rng.integers(1, 256, len(where)).astype(np.uint8)
        case 1:
            content = content[:at]
        case 2:
            content[at : at + length] = 0
        case 3:
            content = np.insert(content, at, rng.integers(0, 256, length).astype(np.uint8))
        case 4:
            other = int(rng.integers(len(content) - length + 1))
            content[at : at + length] = content[other : other + length].copy()
    return content.tobytes()


def columns_of_parquet(file: Path, rng: np.random.Generator) -> None:
    """Columns or rows of a Parquet file changed."""
    pq.write_table(changed_columns(pq.read_table(file), rng), file)


def columns_of_arrow(file: Path, rng: np.random.Generator) -> None:
    """The same in Arrow's own file format."""
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    changed = changed_columns(table, rng)
    with pa.ipc.new_file(file, changed.schema) as writer:
        writer.write_table(changed)


def changed_columns(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """A column dropped, renamed, doubled, of another type, partly null; or rows left out or
    moved.
    """
    index = int(rng.integers(table.num_columns))
    name, column = table.column_names[index], table.column(index)
    match rng.integers(7):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns([f"{n}_" if n == name else n for n in table.column_names])
        case 2:
            table = table.append_column(name, column)
        case 3:
            table = table.set_column(index, name, another_type(column, rng))
        case 4:
            nulls = rng.random(len(column)) < rng.choice([0.1, 0.9, 1.0])
            values = [
                None if null else value
                for null, value in zip(nulls, column.to_pylist(), strict=True)
            ]
            table = table.set_column(index, name, pa.array(values, column.type))
        case 5:
            table = table.filter(pa.array(rng.random(table.num_rows) < rng.choice([0.0, 0.5, 0.9])))
        case 6:
            table = table.take(pa.array(rng.permutation(table.num_rows)))
    return table


def another_type(column: pa.ChunkedArray, rng: np.random.Generator) -> pa.Array:
    """The column's values, or others of its length, as another type."""
    values, count = column.to_pylist(), len(column)
    choices = [
        lambda: pa.array([str(value) for value in values]),
        lambda: pa.array([value if isinstance(value, list) else [value] for value in values]),
        lambda: pa.array([[1.0] * int(n) for n in rng.integers(0, 4, count)]),
        lambda: pa.array([{"a": 1}] * count),
        lambda: pa.nulls(count),
        lambda: pa.array([b"\x00\xff"] * count),
        lambda: pa.array(rng.integers(-(2**62), 2**62, count)),
        lambda: pa.array(rng.random(count) * 1e300),
        lambda: pa.array(rng.random(count) < 0.5),
        pa.array(["a", "b"] * count)[:count].dictionary_encode,
        lambda: pa.array(rng.integers(0, 2**40, count), pa.timestamp("us")),
    ]
    return choices[rng.integers(len(choices))]()


def values_of_json(file: Path, rng: np.random.Generator) -> None:
    """One value of the tree left out or replaced by a strange one."""
    tree = json.loads(file.read_text())
    parents: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in (
            node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        ):
            parents.append((node, key))
            walk(node[key])

    walk(tree)
    # Few keys stand near the root and matter; many numbers of a histogram do not.
    shallow = [pair for pair in parents if pair[0] is tree]
    pool = shallow if rng.random() < 0.4 else parents
    parent, key = pool[rng.integers(len(pool))]
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = STRANGE[rng.integers(len(STRANGE))]
    file.write_text(
        json.dumps(tree if rng.random() < 0.95 else STRANGE[rng.integers(len(STRANGE))])
    )


def cells_of_csv(file: Path, rng: np.random.Generator) -> None:
    """A column dropped or renamed, a cell replaced, a row cut, doubled or left out."""
    rows = [line.split(",") for line in file.read_text().splitlines()]
    row, column = int(rng.integers(1, len(rows))), int(rng.integers(len(rows[0])))
    match rng.integers(7):
        case 0:
            rows = [cells[:column] + cells[column + 1 :] for cells in rows]
        case 1:
            rows[0][column] += "_"
        case 2:
            cells = (
                "",
                "nan",
                "inf",
                "-",
                '"',
                "1e999",
                "TRUE",
                "2",
                "x,y",
                "\u00e9",
                "0x1",
                "1;2",
                "9" * 400,
            )
            rows[row][column] = str(rng.choice(cells))
        case 3:
            rows[row] = rows[row][:column]
        case 4:
            rows.insert(row, rows[int(rng.integers(len(rows)))])
        case 5:
            rows = rows[: 1 + row % 2]
        case 6:
            rows = [rows[0], *(rows[1 + i] for i in rng.permutation(len(rows) - 1))]
    file.write_text("\n".join(",".join(cells) for cells in rows))


def parts_of_hdf5(file: Path, rng: np.random.Generator) -> None:
    """A data set or group left out, renamed, of another type or shape; or an attribute replaced."""
    import h5py

    with h5py.File(file, "r+") as root:
        names: list[str] = []
        root.visit(names.append)
        name = names[rng.integers(len(names))]
        part = root[name]
        attributes = list(part.attrs)
        if attributes and rng.random() < 0.3:
            key = attributes[rng.integers(len(attributes))]
            del part.attrs[key]
            if rng.random() < 0.7:
                part.attrs[key] = [-1, 0, 2**40, "strange", 1.5, [1, 2]][rng.integers(6)]
        elif rng.random() < 0.3:
            del root[name]
        elif rng.random() < 0.3:
            root.move(name, f"{name}_")
        else:
            replace_part(root, name, rng)


def replace_part(root: Any, name: str, rng: np.random.Generator) -> None:
    """Another data set, or a group, under the same name."""
    import h5py

    old = root[name]
    values = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
    count = len(values) if np.ndim(values) else 3
    choices = [
        lambda: np.asarray(values)[..., None],
        lambda: np.ravel(values)[: count // 2],
        lambda: np.asarray(values)[: count // 2] if np.ndim(values) else 1,
        lambda: np.array([b"strange"] * count),
        lambda: np.full(count, 7, np.int64),
        lambda: np.zeros((count, 0), np.float32),
        lambda: np.zeros(0, np.float32),
        lambda: 3.0,
        lambda: np.zeros(count, [("a", "f4"), ("b", "i4")]),
        lambda: np.full(np.shape(values), np.nan),
        lambda: np.zeros(np.shape(values), np.complex64),
        lambda: h5py.Empty("f4"),
    ]
    new = choices[rng.integers(len(choices))]()
    del root[name]
    if rng.random() < 0.1:
        root.create_group(name)
    elif rng.random() < 0.1:
        # a size that no memory holds
        root.create_dataset(name, shape=(2**40,), dtype="f4", chunks=(1024,))
    else:
        root[name] = new
