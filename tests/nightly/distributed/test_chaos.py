"""Three trials of the chaos command, and what it is worth: it must see what is lost, doubled or
different.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from cqlray.data.shards import from_parquet
from tests.nightly.distributed import chaos
from tests.nightly.distributed.nodes import ROLES

pytestmark = [pytest.mark.ray, pytest.mark.sample]


@pytest.mark.timeout(600)  # a minute where nobody else uses the machine
def test_three_trials_end_as_the_undisturbed_run(capsys: pytest.CaptureFixture[str]) -> None:
    status = chaos.main(["--trials", "3", "--seed", "0", "--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert (result["trials"], result["equal"], result["lost_transitions"]) == (3, 3, 0), "\n".join(
        lines
    )
    assert status == 0
    assert len([line for line in lines if line.startswith("trial ")]) == 3


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def examined(out: Path, reference: Path) -> chaos.Trial:
    trial = chaos.Trial(0, "", "")
    chaos.examine(trial, out, reference)
    return trial


def test_a_copy_is_equal(finished_run: Path, copy: Path) -> None:
    assert examined(copy, finished_run).equal


def test_lost_and_doubled_transitions_are_counted(finished_run: Path, copy: Path) -> None:
    shards = [copy / "dataset" / f"shard-{index:05d}.parquet" for index in (4, 5)]
    sizes = [from_parquet(path.read_bytes(), path.name).num_transitions for path in shards]
    shutil.copy(*shards)
    trial = examined(copy, finished_run)
    assert not trial.equal
    assert (trial.lost_transitions, trial.doubled_transitions) == (sizes[1], sizes[0])
    shards[1].unlink()
    trial = examined(copy, finished_run)
    assert (trial.lost_transitions, trial.doubled_transitions) == (sizes[1], 0)


def test_one_bit_and_one_row_are_seen(finished_run: Path, copy: Path) -> None:
    rows = (copy / "evaluations.jsonl").read_text()
    last = rows.splitlines()[-1]
    (copy / "evaluations.jsonl").write_text(f"{rows}{last}\n")
    trial = examined(copy, finished_run)
    assert trial.equal and trial.repeated_tests == 1
    other = {**json.loads(last), "value": 1e6}
    (copy / "evaluations.jsonl").write_text(f"{rows}{json.dumps(other)}\n{last}\n")
    assert "repetitions of test" in examined(copy, finished_run).problem
    (copy / "evaluations.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    assert "evaluations differ" in examined(copy, finished_run).problem
    (copy / "evaluations.jsonl").write_text(rows)
    path = copy / "checkpoints" / "population-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    trial = examined(copy, finished_run)
    assert "checkpoints/population-1.safetensors differ" in trial.problem and not trial.equal


def test_a_seed_is_a_choice_of_victims_and_moments() -> None:
    files = {"config.yaml": 2.0, "teacher/teacher.json": 5.0, "report.html": 9.0}
    timeline = chaos.Timeline(files, dict.fromkeys(ROLES, (1.0, 8.0)), 10.0)

    def drawn(seed: int) -> list[tuple[str, chaos.Moment]]:
        victims = [chaos.choose_victim(chaos.Series(seed), trial) for trial in range(240)]
        moments = [
            chaos.choose_moment(timeline, v, random.Random(f"{seed}/{t}/0"))
            for t, v in enumerate(victims)
        ]
        return list(zip(victims, moments, strict=True))

    assert drawn(0) == drawn(0) != drawn(1)
    assert Counter(victim for victim, _ in drawn(0)) == dict.fromkeys(chaos.VICTIMS, 30)
    assert {moment.file for _, moment in drawn(0)} == set(files)
    assert all(2.0 <= files[moment.file] + moment.delay <= 10.0 for _, moment in drawn(0))
