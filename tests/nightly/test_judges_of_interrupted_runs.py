"""Fitted Q afterwards, of a run that did not come to its end: what there is, is judged, and harms
nothing later.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray import load_policy
from cqlray.algorithms.fqe import FQEConfig
from cqlray.api import runs as api
from cqlray.cli.main import main
from cqlray.config.schema import ResourcesConfig, RunConfig
from cqlray.errors import Interrupted
from cqlray.results.record import events, fitted_q_rows, load_run
from cqlray.results.report.selection_sentences import judged_snapshots
from cqlray.results.report.timeline import time_line
from cqlray.stages import evaluate as judges
from cqlray.stages.evaluate import Evaluation
from cqlray.storage import checkpoint
from cqlray.storage.run_directory import RunDirectory
from tests.conftest import small_config

pytestmark = pytest.mark.ray
Key = tuple[int, int]  # member and updates


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fits of few updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "FQEConfig", partial(FQEConfig, num_updates=60))
        yield


def estimates(run: Path) -> dict[Key, dict[str, Any]]:
    """The last row of each snapshot, without the seconds it took."""
    rows = RunDirectory(run).rows("fqe.jsonl")
    return {
        (row["member"], row["updates"]): {k: v for k, v in row.items() if k != "seconds"}
        for row in rows
    }


def rewrite(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    rows = RunDirectory(run).rows("fqe.jsonl")
    (run / "fqe.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def fit(run: Path) -> int:
    return main(["evaluate", str(run), "--fitted-q", "--quiet"])


@pytest.fixture(scope="module")
def cut_short(quick: None, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it was before its last snapshots, and judged then."""
    out = tmp_path_factory.mktemp("judged") / "cut-short"
    shutil.copytree(finished_run, out)
    for path in out.glob("snapshots/*/*330.safetensors"):
        path.unlink()
    assert fit(out) == 0
    return out


def test_the_snapshots_of_a_block_that_is_not_full_are_judged(
    cut_short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimates(cut_short).keys() == {
        (member, updates) for member in range(3) for updates in (110, 220)
    }
    before = (cut_short / "fqe.jsonl").read_bytes()
    assert fit(cut_short) == 0
    assert (cut_short / "fqe.jsonl").read_bytes() == before, "nothing is judged twice"
    printed = capsys.readouterr().out
    assert printed.count("      220  ") == 3 and f"cqlray export {cut_short} --by fqe" in printed
    last = {
        member: row["fqe_return"]
        for (member, updates), row in estimates(cut_short).items()
        if updates == 220
    }
    assert load_policy(cut_short, by="fqe").member == max(last, key=lambda member: last[member]), (
        "what it points to works"
    )


def test_a_population_without_snapshots_does_not_keep_the_others_from_being_judged(
    cut_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(cut_short, out)
    (out / "fqe.jsonl").unlink()
    first, second = RunDirectory(out).manifest()["plan"]["populations"]
    shutil.rmtree(out / "snapshots" / "population-1")
    assert fit(out) == 0
    assert {member for member, _ in estimates(out)} == set(first) and second
    shutil.rmtree(out / "snapshots" / "population-0")
    capsys.readouterr()
    assert fit(out) == 2
    assert (
        "has no snapshot of its students yet; go on with: cqlray resume" in capsys.readouterr().err
    )


def test_once_the_block_is_full_it_is_judged_as_if_nothing_had_been(
    cut_short: Path, finished_run: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    shutil.copytree(cut_short, out)
    shutil.copytree(finished_run, undisturbed)
    # rows of a part differ by rounding alone, which need not show
    rewrite(out, lambda row: {**row, "fqe_return": 1e6})
    for path in finished_run.glob("snapshots/*/*330.safetensors"):
        shutil.copy(path, out / path.relative_to(finished_run))
    assert fit(out) == fit(undisturbed) == 0
    assert estimates(out) == estimates(undisturbed)
    record = load_run(out)
    assert all(
        snapshot.estimate < 1e6 for snapshot in judged_snapshots(record, fitted_q_rows(record))
    )
    assert load_policy(out, by="fqe").member == load_policy(undisturbed, by="fqe").member


def one_population(out: Path, dataset: Path) -> RunConfig:
    config = small_config(
        out,
        dataset=str(dataset),
        resources=ResourcesConfig(rollout_workers=2, evaluators=1, learners=1),
    )
    return dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, fitted_q=True)
    )


def test_a_run_that_was_stopped_is_judged_and_ends_with_the_same_bits(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = api.run(
        one_population(tmp_path / "undisturbed", finished_run), quiet=True
    ).run_dir
    out, evaluate = tmp_path / "stopped", Evaluation.evaluate

    def stopping(self: Evaluation, population: int, updates: int, snapshot: Any) -> None:
        evaluate(self, population, updates, snapshot)
        self.run.stop.request()  # as Ctrl-C does

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="cqlray resume"):
        patch.setattr(Evaluation, "evaluate", stopping)
        api.run(one_population(out, finished_run), quiet=True)
    there = {int(path.stem) for path in out.glob("snapshots/*/*.safetensors")}
    assert there in ({110}, {110, 220}) and not estimates(out)
    assert fit(out) == 0
    assert estimates(out).keys() == {(member, updates) for member in range(3) for updates in there}
    rewrite(out, lambda row: {**row, "fqe_return": 1e6})
    api.resume(out, quiet=True)
    assert estimates(out) == estimates(undisturbed)


def without_numbers(run: Path) -> None:
    """Make every policy's last layer NaN."""
    for path in run.glob("snapshots/*/*.safetensors"):
        arrays, metadata = checkpoint.decode(path.read_bytes(), str(path))
        name = max(name for name in arrays if name.startswith("policy.") and name.endswith(".bias"))
        arrays[name] = np.full_like(arrays[name], np.nan)
        path.write_bytes(checkpoint.encode(arrays, metadata))


def test_where_nothing_can_be_judged_one_line_says_so(
    finished_run: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    without_numbers(out)
    assert fit(out) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.count("\n") == 1
        and "no finite estimate of any member's newest snapshot" in captured.err
    )
    assert "--by fqe" not in captured.out + captured.err
    assert (
        all(row["fqe_return"] is None for row in estimates(out).values())
        and len(estimates(out)) == 9
    )
    record = load_run(out)
    assert time_line(events(record), False).sessions[-1].ending == "finished"
