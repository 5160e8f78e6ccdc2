"""The card of an exported policy: what it says, and that it says no more."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cqlray.config.schema import CQLConfig, EnvConfig, RunConfig
from cqlray.results.record import load_run
from cqlray.results.report.model_card import ExportedPolicy, model_card
from tests.unit.results.run_directories import (
    Row,
    dataset,
    make_run,
    reference,
    student,
    write_lines,
)

POLICY = ExportedPolicy(
    file="member-1.onnx",
    format="onnx",
    member=1,
    updates=500,
    chosen_by=None,
    sizes=[3, 64, 1],
    layer_norm=False,
    action_low=[-2.0],
    action_high=[2.0],
    code="import this",
    layout=[],
    observation_names=["CGM mg/dL", "carbs", "time"],
    action_names=["action[0]"],
    checked="on 7 observations, to 1e-07",
    versions={"cqlray": "0.1.0", "onnx": "1.23"},
)
# Member 1's means: last 150, best 400, last third of five tests, rounded up, 225.
MEANS = (400.0, 200.0, 0.0, 300.0, 150.0)
TESTS = [
    student(member, 100 * (index + 1), [mean - 10.0 + shift, mean + 10.0 + shift])
    for index, mean in enumerate(MEANS)
    for member, shift in ((0, -50.0), (1, 0.0))
]
REFERENCES = [reference("teacher", [500.0]), reference("random", [-100.0, -300.0])]


def card_of(directory: Path, policy: ExportedPolicy = POLICY, **changes: Any) -> str:
    return model_card(
        load_run(make_run(directory, **{"evaluations": [*REFERENCES, *TESTS], **changes})), policy
    )


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def table(card: str) -> list[list[str]]:
    """Cells of the scores' table, without its head."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_three_scores_stand_side_by_side(tmp_path: Path) -> None:
    card = card_of(tmp_path / "run")
    cells = table(card)
    assert [name for name, *_ in cells] == [
        "last test, after 500 updates",
        "best of 5 tests (flatters: chosen by these returns)",
        "mean over the last third of the tests (2)",
    ]
    # Two episodes, ten above and ten below: their resampled mean is at one of them in a quarter of
    # the resamples each.
    own = ["150.0 [140.0, 160.0]", "400.0 [390.0, 410.0]", "225.0 [215.0, 235.0]"]
    assert [mean for _, mean, _ in cells] == own
    # IQM of x-60, x-40, x-10, x+10
    assert [float(group.split()[0]) for *_, group in cells] == [125.0, 375.0, 200.0]
    scores = section(card, "Scores")
    assert (
        "over its 2 episodes" in scores
        and "The exported policy is the one of the first line" in scores
    )
    assert "- Beside it: the teacher 500.0, a random policy -200.0." in scores
    assert "chosen as the best" not in card


def test_a_choice_by_the_same_returns_is_named(tmp_path: Path) -> None:
    card = card_of(tmp_path / "run", dataclasses.replace(POLICY, chosen_by="return"))
    assert "It was chosen as the best of 2 members by its last test" in section(card, "Scores")


def test_a_snapshot_that_is_not_the_last_tested(tmp_path: Path) -> None:
    scores = section(card_of(tmp_path / "run", dataclasses.replace(POLICY, updates=700)), "Scores")
    assert (
        "The exported policy is of 700 updates: the table is of other snapshots" in scores
        and "first line" not in scores
    )


def test_normalised_by_the_datas_own_references(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=TESTS)
    said = {**dataset(), "reference_returns": {"random": [-50.0], "teacher": [350.0]}}
    (run / "dataset" / "dataset.json").write_text(json.dumps(said))
    scores = section(model_card(load_run(run), POLICY), "Scores")
    whose = "(the random policy and the teacher of this data set)"
    assert (
        f"- Normalised score at the last test: 50.00, where 0 is -50.00, 100 is 350.0 {whose}."
        in scores
    )
    assert "Beside it" not in scores


def test_references_that_the_run_did_not_test_are_told(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in row if key != "lengths"} for row in REFERENCES]
    scores = section(card_of(tmp_path / "run", evaluations=[*rows, *TESTS]), "Scores")
    assert (
        "- Teacher and random policy: as tested when the data was collected, on episodes that need"
        " not be" in scores
    )
    assert "as tested when" not in section(card_of(tmp_path / "other"), "Scores")


def test_without_tests_nothing_is_claimed(tmp_path: Path) -> None:
    card = card_of(
        tmp_path / "run", evaluations=[], config=RunConfig(env=EnvConfig("none"), dataset="log.csv")
    )
    assert (
        card.startswith("# Policy for logged data, member 1\n")
        and "environment named above" not in card
    )
    assert "environment named above" not in card_of(tmp_path / "other", evaluations=REFERENCES)
    assert (
        section(card, "Scores").strip()
        == "It was not tested: no episode was played with it. Nothing is known of how well it acts."
    )


def judged(run: Path, estimate: float) -> None:
    """Rows of fitted Q, the last of member 1 made again."""
    rows = [
        {"member": 0, "updates": 500, "fqe_return": -7.0},
        {"member": 1, "updates": 400, "fqe_return": -6.0},
    ]
    write_lines(
        run / "fqe.jsonl",
        [*rows, *({"member": 1, "updates": 500, "fqe_return": v} for v in (-9.0, estimate))],
    )


BY_FQE = dataclasses.replace(POLICY, chosen_by="fqe")


def test_a_choice_by_fitted_q_is_told_without_tests_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", config=RunConfig(env=EnvConfig("none"), dataset="log.csv"))
    chosen = (
        "- It was chosen as the best of 2 members by fitted Q evaluation, from the dataset alone."
    )
    judged(run, -5.25)
    untested, told = section(model_card(load_run(run), BY_FQE), "Scores").strip().split("\n\n")
    assert (
        untested.startswith("It was not tested: no episode") and "Nothing is known" not in untested
    )
    assert told == f"{chosen} Its estimated discounted return is -5.25: to rank by, no score."
    write_lines(run / "fqe.jsonl", [])  # as where the file was lost
    assert section(model_card(load_run(run), BY_FQE), "Scores").strip().endswith(f"\n\n{chosen}")


def test_a_choice_by_fitted_q_is_told_beside_tests(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=[*REFERENCES, *TESTS])
    judged(run, 12.5)
    scores = section(model_card(load_run(run), BY_FQE), "Scores")
    assert (
        "by fitted Q evaluation, from the dataset alone. Its estimated discounted return is 12.50"
        in scores
    )
    assert "last test, after 500 updates" in scores


@pytest.mark.parametrize(
    ("excesses", "verdict"),
    [
        ([-5.0, -4.0, -5.5, -4.5], "held."),
        ([5.0, 4.0, 5.5, 4.5], "did not hold (overestimates by 4.75)."),
        ([-5.0, 5.0, -4.0, 4.0], "cannot be told from 4 episodes."),
    ],
)
def test_whether_the_lower_bound_held(tmp_path: Path, excesses: list[float], verdict: str) -> None:
    rows = [student(member, 500, [1.0, 2.0, 3.0, 4.0], excesses=excesses) for member in (0, 1)]
    scores = section(card_of(tmp_path / "run", evaluations=rows), "Scores")
    assert f"in rewards as trained on: {verdict}\n" in scores


def test_one_member_has_no_group(tmp_path: Path) -> None:
    card = card_of(
        tmp_path / "run", dataclasses.replace(POLICY, member=0), seeds=1, evaluations=TESTS[::2]
    )
    assert [len(cells) for cells in table(card)] == [2, 2, 2] and "IQM" not in section(
        card, "Scores"
    )


@pytest.mark.parametrize("others", [[], TESTS[0:1]])
def test_a_running_run_whose_other_member_is_behind(tmp_path: Path, others: list[Row]) -> None:
    """What the members have in common is not what this one has: it stands alone, or both are cut to
    the same tests.
    """
    own = TESTS[1::2] if not others else TESTS[3::2]
    cells = table(card_of(tmp_path / "run", evaluations=[*others, *own], finished=False))
    assert [len(line) for line in cells] == [2, 2, 2] and cells[0][1] == "150.0 [140.0, 160.0]"


SETTINGS: list[Row] = [{"algorithm": name} for name in ("cql", "bc", "sac")]


@pytest.mark.parametrize(
    ("member", "algorithm", "options"),
    [
        (0, "Conservative Q-Learning", ["conservative_weight 7.0", "bc_warmup_updates 0"]),
        (1, "behaviour cloning", ["conservative_weight 7.0", "bc_warmup_updates 900"]),
        (2, "offline Soft Actor-Critic", ["conservative_weight 0.0", "bc_warmup_updates 0"]),
    ],
)
def test_baselines_are_told_from_cql(
    tmp_path: Path, member: int, algorithm: str, options: list[str]
) -> None:
    rows = [
        student(index, 500, [10.0 * index + 1.0] * 3, excesses=[-1.0, -2.0, -3.0])
        for index in range(3)
    ]
    config = RunConfig(cql=CQLConfig(conservative_weight=7.0, num_updates=900))
    changes = {"settings": SETTINGS, "seeds": 1, "evaluations": rows, "config": config}
    card = card_of(tmp_path / "run", dataclasses.replace(POLICY, member=member), **changes)
    assert algorithm in card.split("\n## ")[0]
    training = " ".join(section(card, "Training").split())
    assert "- 500 of 900 updates; seed 0 of run seed 0." in training
    assert all(f"{option}," in training for option in options)
    assert "behaviour cloning of the same data (IQM, last test) 11.0" in section(card, "Scores")
    assert ("Lower bound" in card) == (algorithm != "behaviour cloning")


def test_what_the_sweep_chose_is_what_is_told(tmp_path: Path) -> None:
    settings = [{"conservative_weight": 1.5}, {"conservative_weight": 9.0}]
    training = section(
        card_of(tmp_path / "run", settings=settings, seeds=1, evaluations=[]), "Training"
    )
    assert (
        "the run's sweep chose for it: `conservative weight 9`" in training
        and "conservative_weight 9.0" in training
    )


def test_inputs_and_outputs(tmp_path: Path) -> None:
    bounds = {"sizes": [5, 8, 2], "action_low": [-1.0, 0.0], "action_high": [1.0, 1.0]}
    policy = dataclasses.replace(
        POLICY, format="torchscript", layout=["number 0: observation['a']"], **bounds
    )  # type: ignore[arg-type]
    told = section(card_of(tmp_path / "run", policy), "Input and output")
    assert (
        "Observation: float32, [5] or [n, 5]; raw" in told
        and "  - `number 0: observation['a']`" in told
    )
    assert "Action: float32, [2] or [n, 2];" in told and "-1 to 1; 0 to 1." in told
    unknown = dataclasses.replace(POLICY, layout=None)
    assert "If the environment's observation is no vector" in card_of(tmp_path / "other", unknown)


def test_where_the_data_is_from(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=TESTS, config=RunConfig(dataset="log.csv"))
    origin = {"source": "log.csv", "format": "csv", "author": "somebody"}
    (run / "dataset" / "dataset.json").write_text(
        json.dumps({**dataset(), "licence": "CC-BY-4.0", "provenance": [origin]})
    )
    card = model_card(load_run(run), POLICY)
    data = section(card, "Training data")
    assert "- 6 episodes, 1,234 transitions; digest `abc123`." in data
    assert "  - `replay`: 4 episodes, mean return -500.0." in data
    assert (
        "- From: source `log.csv`, format `csv`, author `somebody`." in data
        and "- Licence: `CC-BY-4.0`." in data
    )
    assert "teacher" not in data and "cqlray train --config" in section(card, "Make it again")
    ours = section(card_of(tmp_path / "ours"), "Training data")
    assert "Collected by this run" in ours and "- Licence: the data says none." in ours


HOSTILE = "`<script>` | [x](y)\n## Scores\n```"


def test_no_ones_text_is_markup(tmp_path: Path) -> None:
    config = RunConfig(env=EnvConfig(HOSTILE))
    run = make_run(
        tmp_path / "run",
        [{HOSTILE: HOSTILE}],
        evaluations=TESTS,
        config=config,
        created=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    said = {
        **dataset(),
        "digest": HOSTILE,
        "licence": HOSTILE,
        "provenance": [{"source": HOSTILE, "author": HOSTILE}],
    }
    said["tiers"] = {HOSTILE: said["tiers"]["replay"]}
    (run / "dataset" / "dataset.json").write_text(json.dumps(said))
    policy = dataclasses.replace(
        POLICY,
        file="x.onnx",
        layout=[HOSTILE],
        observation_names=[HOSTILE] * 3,
        versions={HOSTILE: HOSTILE},
    )
    card = model_card(load_run(run), policy)
    plain = re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```\w*\n.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    )
    assert "script" not in plain and "](" not in plain and "`" not in plain
    assert card.count("\n## Scores\n") == 1 and card.count("script") > 10
    assert "nan" not in card and "None" not in plain
