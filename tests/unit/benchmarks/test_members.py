"""The benchmark of many members beside one: who works on what, and what the command prints."""

from __future__ import annotations

import json

import pytest

from cqlray.benchmarks import members
from cqlray.cli.parser import OneLine
from cqlray.errors import UserError


def test_the_command_prints_what_programs_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workload", "pendulum", "--members", "3", "--cores", "2", "--updates", "4", "--json"]
    assert members.main(words, OneLine) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["members_per_learner"] == [2, 1]
    assert result["ratio"]["smallest"] <= result["ratio"]["median"] <= result["ratio"]["largest"]
    assert min(result["one_member_updates_per_s"], result["member_updates_per_s"]) > 0
    assert "2 + 1 members" in members.text(result)


@pytest.mark.parametrize(
    "words", [["--members", "0"], ["--cores", "-1"], ["--updates", "0"], ["--workload", "X"]]
)
def test_wrong_use_is_one_line(words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        members.main(words, OneLine)
    assert "\n" not in str(error.value)
