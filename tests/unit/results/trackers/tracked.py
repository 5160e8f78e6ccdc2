"""Runs to send to trackers, and what Weights & Biases (offline) and MLflow (local files) then hold,
read with the reader that each of them has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cqlray.storage.run_directory import RunDirectory
from tests.unit.results.run_directories import make_run, reference, student, write_lines

TESTS = [
    student(member, updates, [-100.0 * member - updates, -200.0])
    for member in (0, 1)
    for updates in (100, 200)
]
REFERENCES = [reference("teacher", [-150.0]), reference("random", [-1200.0, -1000.0])]
KEY = "0123456789" * 4  # of W&B, for nobody
Points = dict[tuple[str, int], float]
PROGRAM = """\
import sys
from pathlib import Path
from cqlray.errors import UserError
from cqlray.results.trackers.send import send_to
run, name, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
try:
    send_to(Path(run), [name])
except UserError as error:
    print(error)
"""


def unfinished(directory: Path) -> Path:
    """A run whose last test of member 0 is not there yet."""
    return make_run(
        directory, evaluations=[row for row in TESTS if row is not TESTS[1]], finished=False
    )


def finish(directory: Path) -> None:
    write_lines(directory / "evaluations.jsonl", TESTS)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"finished": True}))


def expected(directory: Path) -> dict[str, Points]:
    """Of each member its points, from the files themselves."""
    points: dict[str, Points] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = "teacher" if row["stage"] == "teacher" else f"member-{row['member']}"
        for key in row.keys() - {"stage", "member", "round", "updates"}:
            if row[key] is not None:
                points.setdefault(name, {})[f"train/{key}", row["updates"]] = row[key]
    for line in (directory / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["policy"] == "student":
            own = points.setdefault(f"member-{row['member']}", {})
            own["eval/return_mean", row["updates"]] = sum(row["returns"]) / len(row["returns"])
            own["eval/value", row["updates"]] = row["value"]
            own["eval/observed_return", row["updates"]] = (
                row["discounted_return"] + row["tail_value"]
            )
    for row in RunDirectory(directory).rows("fqe.jsonl"):
        if row["fqe_return"] is not None:
            points[f"member-{row['member']}"]["eval/fqe_return", row["updates"]] = row["fqe_return"]
    for test in json.loads((directory / "teacher" / "teacher.json").read_text())["tests"]:
        points["teacher"]["eval/return_mean", test["updates"]] = test["mean_return"]
    return points


def digest(directory: Path) -> dict[str, str]:
    """Every file of a folder and the digest of what is in it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def log_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, protocol
    buffers inside.
    """
    from wandb.proto import wandb_internal_pb2

    record: Any = wandb_internal_pb2
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record.Record.FromString(parts)
            parts = b""


@dataclasses.dataclass
class Logged:
    """What a .wandb file holds."""

    about: Any
    points: Points
    steps: list[int]
    config: dict[str, Any]
    summary: dict[str, Any]


def read_wandb(path: Path) -> Logged:
    logged = Logged(None, {}, [], {}, {})
    for record in log_records(path):
        if record.HasField("run"):
            logged.about = record.run
            logged.config |= {
                item.key: json.loads(item.value_json) for item in record.run.config.update
            }
        for item in record.summary.update:
            logged.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if row:
            logged.steps.append(row["_step"])
            logged.points |= {
                (key, row["_step"]): value for key, value in row.items() if not key.startswith("_")
            }
    return logged


def read_group(folder: Path) -> dict[str, Logged]:
    """W&B's runs by what they show; there must be one of each."""
    import wandb

    wandb.teardown()  # W&B's own process has written all there is
    runs = [read_wandb(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]
    named = {logged.about.display_name.split()[-1]: logged for logged in runs}
    assert len(named) == len(runs)
    return named


def read_mlflow(address: str) -> tuple[dict[str, Any], dict[str, Points]]:
    """Runs and points by name; a step that stands there twice fails."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("Pendulum-v1")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    points: dict[str, Points] = {}
    for name, run in runs.items():
        points[name] = {}
        for key in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, key):
                assert (key, metric.step) not in points[name]
                points[name][key, metric.step] = metric.value
    return runs, points
