"""What `cqlray collect` and `resume` print of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from cqlray import load_dataset
from cqlray.cli.run import _print_dataset


def test_a_data_set_s_names_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"episode": [0, 0, 1, 1], "observation": [1.0, 2.0, 3.0, 4.0], "reward": [1.0] * 4}
    frame = pandas.DataFrame(
        {**rows, "action": [0.1, 0.2, 0.3, 0.4], "truncated": [False, True] * 2}
    )
    place = tmp_path / "data"
    load_dataset(frame, {"action_low": -1, "action_high": 1}).save(place)
    description = json.loads((place / "dataset.json").read_text())
    description["environment"]["id"] = "\x1b[2JPendulum-v1"
    (place / "dataset.json").write_text(json.dumps(description))
    assert _print_dataset(place, as_json=False) == 0
    assert capsys.readouterr().out.startswith("environment  \\x1b[2JPendulum-v1\n")
