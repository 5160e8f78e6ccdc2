"""Ways to make a file do harm: to hang, to fill memory, to end a parser by its own recursion."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TERABYTES = 2**42
VALUES = 24_000_000  # as float32, 96 MB
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(40)
NO_TEXT = (b"\0", b"\xff", b"\xed\xa0\x80", b"\r", b"\x1b[2J")
Change = Callable[[Path, np.random.Generator], None]


def harm(folder: Path, rng: np.random.Generator) -> None:
    """Change one file under the folder, or put something beside it."""
    file = _one([path for path in sorted(folder.rglob("*")) if path.is_file()], rng)
    ways = [*ANY, *OF_KIND.get(file.suffix, []) * 3]
    _one(ways, rng)(file, rng)


def _one(values: Any, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


# Anything in place of a file


def pipe(file: Path, rng: np.random.Generator) -> None:
    """A pipe that nobody writes to, or a link to one."""
    file.unlink()
    os.mkfifo(file)
    if rng.random() < 0.3:
        file.rename(file.with_name("a pipe"))
        file.symlink_to("a pipe")


def link(file: Path, rng: np.random.Generator) -> None:
    """A link to nothing, to itself, to a directory or to a device without an end."""
    file.unlink()
    file.symlink_to(_one(["nothing", file.name, "..", "/dev/zero", "/dev/full"], rng))


def directory(file: Path, rng: np.random.Generator) -> None:
    """A directory, empty or not."""
    file.unlink()
    file.mkdir()
    if rng.random() < 0.5:
        (file / "x").write_text("x")


def sparse(file: Path, rng: np.random.Generator) -> None:
    """Terabytes of zeros that take no space, behind the content or in place of it."""
    with file.open("ab") as opened:
        opened.truncate(TERABYTES if rng.random() < 0.5 else 0)
        opened.truncate(TERABYTES)


def beside(file: Path, rng: np.random.Generator) -> None:
    """What macOS leaves beside a file, and other files that are hidden."""
    prefix = _one(["._", ".", ".~"], rng)
    content = _one([APPLE_DOUBLE, file.read_bytes(), b""], rng)
    file.with_name(f"{prefix}{file.name}").write_bytes(content)


def coded(file: Path, rng: np.random.Generator) -> None:
    """Text in another encoding, or with bytes that are none."""
    data = file.read_bytes()
    text, at = data.decode("utf-8", "replace"), int(rng.integers(len(data) + 1))
    ways = [
        lambda: text.encode("utf-8-sig"),
        lambda: text.encode("utf-16"),
        lambda: data[:at] + _one(NO_TEXT, rng) + data[at:],
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data + bytes(int(rng.integers(1, 10_000))),
        lambda: data * int(rng.integers(2, 5)),
    ]
    file.write_bytes(_one(ways, rng)())


# Text


def deep(rng: np.random.Generator) -> str:
    """A value that is nested too deeply for any parser, or just for this one."""
    levels = int(_one([70, 500, 990, 20_000, 200_000], rng))
    opened, closed = _one([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")], rng)
    return opened * levels + "1" + closed * levels * int(rng.random() < 0.8)


def strange_text(rng: np.random.Generator) -> str:
    """A JSON value that parsers take, and whoever uses it perhaps not."""
    values = [
        deep(rng),
        "1" * 5000,
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "1e-400",
        "9" * 30,
        f'"{"x" * 100_000}"',
        '"\\ud800"',
        '"\\u0000"',
        '"$x^$"',
        '"\\u001b[2J"',
        "[" + "{}," * 20_000 + "{}]",
    ]
    return str(_one(values, rng))


def text_of_json(text: str, rng: np.random.Generator) -> str:
    """A value of a JSON text replaced by a strange one, a key doubled, or all of it nested."""
    starts = [index + 1 for index, sign in enumerate(text) if sign == ":"]
    if not starts or rng.random() < 0.1:
        return strange_text(rng)
    at = _one(starts[:30] if rng.random() < 0.5 else starts, rng)
    if rng.random() < 0.15:
        name = text[:at].rpartition('"')[0].rpartition('"')[2]
        return f'{text[:at]} 1, "{name}": {text[at:]}'
    try:
        _, end = json.JSONDecoder().raw_decode(text[at:].lstrip())
    except ValueError:
        end = 1
    gap = len(text[at:]) - len(text[at:].lstrip())
    return text[:at] + strange_text(rng) + text[at + gap + end :]


def json_file(file: Path, rng: np.random.Generator) -> None:
    """One value of a JSON file."""
    file.write_text(text_of_json(file.read_text(), rng))


def json_lines(file: Path, rng: np.random.Generator) -> None:
    """One line of a file of rows."""
    lines = file.read_text().splitlines() or ["{}"]
    at = int(rng.integers(len(lines)))
    ways = [text_of_json(lines[at], rng), strange_text(rng), lines[at][:-9], "x" * 10**6]
    lines[at] = _one(ways, rng)
    file.write_text("\n".join(lines))


def yaml_file(file: Path, rng: np.random.Generator) -> None:
    """A value of a YAML file replaced, aliases that multiply, tags and deep nesting."""
    lines = file.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    laughs = "x0: &x0 [ha]\n" + "".join(
        f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 20)
    )
    name = lines[at].partition(":")[0]
    values = ["*x9", "&a [*a]", "!!python/object/apply:os.abort []", "!!bool x", "!!int ''"]
    values += ["[" * 100_000, "{a: " * 3000, ".nan", ".inf", "1e999", "1" * 5000, "!!binary =", "~"]
    values += ["'" + "x" * 100_000 + "'", "2024-99-99", "-1", "[[1]]", "{a: 1}", "<<: 1"]
    lines[at] = f"{name}: {_one(values, rng)}"
    file.write_text(laughs * int(rng.random() < 0.3) + "\n".join(lines))


def safetensors_file(file: Path, rng: np.random.Generator) -> None:
    """The header: its length, its JSON, the JSON in that, the arrays' types and shapes."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size].decode(), data[8 + size :]
    match rng.integers(6):
        case 0:
            length = int(_one([0, 1, size - 1, size + 1, 10**8, 2**31, 2**63, 2**64 - 1], rng))
            file.write_bytes(length.to_bytes(8, "little") + data[8:])
            return
        case 1:
            header = text_of_json(header, rng)
        case 2:
            tree = json.loads(header)
            tree["__metadata__"]["cqlray"] = text_of_json(tree["__metadata__"]["cqlray"], rng)
            header = json.dumps(tree)
        case 3:
            header = header.replace("F32", str(_one(["F64", "BF16", "U8", "I64", "F99"], rng)))
        case 4:
            tree = json.loads(header)
            name = _one([key for key in tree if key != "__metadata__"], rng)
            tree[name]["shape"] = _one([[], [2**40], [0], [-1], [1, 1, 1], [2**62, 4], "x"], rng)
            header = json.dumps(tree)
        case 5:
            tree = json.loads(header)
            name = _one(list(tree), rng)
            tree[f"{name}_"] = tree.pop(name)
            header = json.dumps(tree)
    file.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + rest)


# Few bytes that hold many values


def parquet_file(file: Path, rng: np.random.Generator) -> None:
    """The same row many times, texts that are long and the same, or one vector of everything."""
    table = pq.read_table(file)
    rows = VALUES // (800 if table.column_names == ["item"] else 80)
    match rng.integers(4):
        case 0:
            table = table.slice(0, 1).take(pa.array(np.zeros(rows, np.int64)))
        case 1:
            rows = 100_000
            text = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 500_000])
            table = table.slice(0, 1).take(pa.array(np.zeros(rows, np.int64)))
            index = int(rng.integers(table.num_columns))
            table = table.set_column(index, table.column_names[index], text)
        case 2:
            values = pa.array(np.zeros(VALUES, np.float32))
            lists = pa.ListArray.from_arrays(pa.array([0, VALUES], pa.int32()), values)
            index = int(rng.integers(table.num_columns))
            table = table.slice(0, 1).set_column(index, table.column_names[index], lists)
        case 3:
            metadata = {"ARROW:schema": "x" * 1000, "pandas": deep(rng)}
            table = table.replace_schema_metadata(metadata)
    pq.write_table(table, file, compression="zstd")


def arrow_file(file: Path, rng: np.random.Generator) -> None:
    """Arrays that Arrow compressed, many of them equal."""
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    if rng.random() < 0.7:
        table = table.take(pa.array(np.zeros(1_000_000, np.int64)))
    options = pa.ipc.IpcWriteOptions(compression=_one(["zstd", "lz4"], rng))
    with pa.ipc.new_file(str(file), table.schema, options=options) as writer:
        writer.write_table(table)


def hdf5_file(file: Path, rng: np.random.Generator) -> None:
    """Values that were never written, in small chunks or in one, or packed zeros."""
    import h5py

    with h5py.File(file, "r+") as root:
        names: list[str] = []
        root.visititems(lambda name, part: names.append(name) if hasattr(part, "shape") else None)
        name = _one(names, rng)
        width = root[name].shape[1:] if root[name].shape else ()
        del root[name]
        rows = int(_one([2**20, 2**25, 2**33, 2**50], rng))
        chunk = int(_one([1024, min(rows, 2**22)], rng))
        root.create_dataset(name, (rows, *width), "f4", chunks=(chunk, *width), compression="gzip")
        if rng.random() < 0.3:
            root[name][:1000] = 0


def csv_file(file: Path, rng: np.random.Generator) -> None:
    """A line without an end, a million columns, quotes that stay open, a NUL."""
    data = file.read_bytes()
    ways = [
        lambda: data + b"1," * 10**7,
        lambda: b"a," * 10**6 + b"\n" + data,
        lambda: data.replace(b",", b',"', 1),
        lambda: data.replace(b"\n", b"\n\0", 1),
        lambda: data.partition(b"\n")[0] + b"\n" + b"9" * 10**6 + b"\n",
        lambda: b"",
        lambda: b"\n" * 10**6,
    ]
    file.write_bytes(_one(ways, rng)())


def gzip_file(file: Path, rng: np.random.Generator) -> None:
    """Ten thousand bytes that unpack to ten million: of zeros, of commas, of rows."""
    what = _one([bytes(10**7), b"," * 10**7, b"a,b\n" + b"1,2\n" * 2_000_000], rng)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    file.write_bytes(packer.compress(what) + packer.flush())


def column_file(file: Path, rng: np.random.Generator) -> None:
    """Counts that lie."""
    data, at = file.read_bytes(), int(rng.integers(0, 200))
    file.write_bytes(data[:at] + struct.pack("<q", int(rng.integers(2**62))) + data[at + 8 :])


def leave_out(file: Path, rng: np.random.Generator) -> None:
    """The file is away."""
    file.unlink()


ANY: list[Change] = [pipe, link, directory, sparse, beside, coded, leave_out]
OF_KIND: dict[str, list[Change]] = {
    ".json": [json_file],
    ".jsonl": [json_lines],
    ".yaml": [yaml_file],
    ".safetensors": [safetensors_file],
    ".parquet": [parquet_file],
    ".arrow": [arrow_file],
    ".hdf5": [hdf5_file],
    ".csv": [csv_file],
    ".gz": [gzip_file],
    ".columns": [column_file],
}
