"""A data set's card: lines for the terminal, and the page."""

from __future__ import annotations

import base64
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqlray.data.card import Card, Histogram, card
from cqlray.data.episode import Shard
from cqlray.results.report.dataset_card import COLUMNS, bars, card_lines
from cqlray.results.report.dataset_card_page import write_card
from cqlray.results.report.formatting import number
from tests.datasets import describe
from tests.unit.data.test_card import ENVIRONMENT, SHARDS, shard
from tests.unit.results.report.test_html import HOSTILE, Page

Sample = tuple[Card, dict[str, Any]]


def sample(shards: list[Shard], environment: dict[str, Any] | None = None, **said: Any) -> Sample:
    description = {**describe(shards, {**ENVIRONMENT, **(environment or {})}), **said}
    return card(description, lambda: iter(shards)), description


def wide() -> Sample:
    """Many dimensions, no bounds, no environment: a log."""
    environment = {
        "id": None,
        "observation_dim": 5,
        "action_dim": 30,
        "action_low": None,
        "action_high": None,
    }
    return sample([shard([40, 50], 0, dims=(5, 30))], environment)


def constant() -> Sample:
    one = shard([200], 0, dims=(1, 1))
    one.observations[:] = 0.0
    one.rewards[:] = -1e9
    return sample(
        [one], {"observation_dim": 1, "action_dim": 1, "action_low": [-1.0], "action_high": [1.0]}
    )


SAMPLES = {
    "tiers": lambda: sample(SHARDS),
    "wide": wide,
    "constant": constant,
    "hostile": lambda: sample(
        SHARDS,
        {"id": HOSTILE},
        licence=HOSTILE,
        provenance=[{"source": HOSTILE, "author": HOSTILE}],
    ),
    "own references": lambda: sample(
        SHARDS, reference_returns={"teacher": [900.0], "random": [-100.0, 100.0]}
    ),
}


@pytest.fixture(params=SAMPLES)
def any_sample(request: pytest.FixtureRequest) -> Sample:
    found: Sample = SAMPLES[request.param]()
    return found


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ([0, 1, 8], " ▁█"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"),
        ([1, 10**9], "▁█"),
        ([0, 0], "  "),
        ([3], "█"),
    ],
)
def test_bars_by_hand(counts: list[int], drawn: str) -> None:
    assert bars(Histogram(0.0, 1.0, np.array(counts))) == drawn


def test_lines_fit_the_terminal_and_draw_every_count(any_sample: Sample) -> None:
    found, description = any_sample
    lines = card_lines(found, description)
    assert all(len(line) <= COLUMNS and "\n" not in line for line in lines)
    assert (
        lines[0].startswith("environment  ")
        and lines[-1] == f"digest       {description['digest']}"
    )
    for histogram in (found.returns, found.lengths, found.rewards, found.actions[0]):
        assert any(bars(histogram) in line for line in lines)
    assert "None" not in "\n".join(lines) and "nan" not in "\n".join(lines)


def test_lines_say_what_the_description_says() -> None:
    found, description = sample(SHARDS)
    lines = card_lines(found, description)
    assert lines[:4] == [
        "environment  X-v0",
        "episodes     45, 643 transitions",
        f"  random     5 episodes, mean return {description['tiers']['random']['mean_return']:.1f}",
        (
            "  expert     40 episodes, mean return"
            f" {description['tiers']['expert']['mean_return']:.1f}"
        ),
    ]
    assert "ends         93.3% of the episodes terminated, 6.7% truncated" in lines
    assert any(
        line.startswith("actions      cover") and "dimension by dimension" in line for line in lines
    )
    assert any(line.startswith("returns      mean") and "quantiles 0%" in line for line in lines)


def test_normalised_mean_says_by_what() -> None:
    shards = [shard([10], 0)]
    shards[0].rewards[:] = 20.0
    text = "\n".join(
        card_lines(
            *sample(shards, reference_returns={"teacher": [900.0], "random": [-100.0, 100.0]})
        )
    )
    assert (
        "normalised mean return 22.22, where 0 is 0.000, 100 is 900.0 (the random policy and the"
        in text
    )
    d4rl = [{"format": "d4rl", "source": "hopper_medium-v2.hdf5"}]
    text = " ".join(" ".join(card_lines(*sample(shards, provenance=d4rl))).split())
    assert "0 is -20.27, 100 is 3,234 (D4RL's published reference scores)" in text
    assert "normalised" not in "\n".join(card_lines(*sample(shards)))


def test_page_is_sound_and_needs_nothing_else(any_sample: Sample, tmp_path: Path) -> None:
    write_card(*any_sample, tmp_path / "card.html")
    found = Page((tmp_path / "card.html").read_text())
    names = [tag for tag, _ in found.tags]
    assert names.count("h1") == 1 and not {"script", "link", "iframe", "object"} & set(names)
    for tag, attrs in found.tags:
        assert (attrs.get("src") or "data:").startswith("data:")
        if tag == "img":
            assert len(attrs["alt"] or "") > 20 and "nan" not in (attrs["alt"] or "")
    assert [figure.tag.rpartition("}")[2] for figure in found.figures()] == ["svg"] * 5
    assert "None" not in found.text and "nan" not in found.text.split()
    assert [path.name for path in tmp_path.iterdir()] == ["card.html"]


def test_same_data_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_card(*sample(SHARDS), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_page_has_the_tiers_and_where_it_is_from(tmp_path: Path) -> None:
    inner = {"source": "old.hdf5", "format": "d4rl", "algorithm": "SAC"}
    origin = [{"source": "mine", "format": "cqlray", "sources": [inner]}]
    found, description = sample(SHARDS, provenance=origin, licence="CC-BY-4.0")
    write_card(found, description, tmp_path / "card.html")
    text = Page((tmp_path / "card.html").read_text()).text
    assert "643 transitions in 45 episodes; observations of 3 numbers, actions of 2" in text
    for tier in found.tiers:
        assert tier.name in text and number(tier.mean_return) in text
    assert "source old.hdf5; format d4rl; algorithm SAC" in text and "licence CC-BY-4.0" in text


def test_lines_do_without_matplotlib() -> None:
    code = "import sys, cqlray.results.report.dataset_card; print('matplotlib' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_tiers_are_shown_literally(tmp_path: Path) -> None:
    """Matplotlib takes `$x^$` for mathematics, and leaves out a label that begins with "_"."""
    tiers = ["$x^$", "_hidden", r"\$", "$" * 3, "a" * 300]
    shards = [dataclasses.replace(shard([40, 50], 0), tier=tier) for tier in tiers]
    drawn, description = sample(shards)
    write_card(drawn, description, tmp_path / "card.html")
    figures = re.findall(r"svg\+xml;base64,([^\"]*)", (tmp_path / "card.html").read_text())
    shown = [base64.b64decode(figure).decode() for figure in figures]
    for expected in [*tiers[:-1], f"{'a' * 61}..."]:
        assert any(f"{expected}</text>" in svg for svg in shown), expected


def test_control_characters_do_not_reach_the_terminal() -> None:
    """An escape sequence would clear it, `\\u202e` turn the text around."""
    drawn, description = sample([shard([40, 50], 0)], {"id": "Env\x1b[2J\u202e-v0"})
    shown = "\n".join(card_lines(drawn, description))
    assert r"Env\x1b[2J\u202e-v0" in shown
    assert "\x1b" not in shown


def test_actions_have_their_columns_names(tmp_path: Path) -> None:
    columns = {"action": ["a dose that is named at length $x_1$"]}
    made, description = sample(SHARDS, columns=columns)
    lines = "\n".join(card_lines(made, description))
    assert "a dose th" in lines and "action a dose that is named at length $x_1$" in lines
    write_card(made, description, tmp_path / "card.html")
    figures = re.findall(r"svg\+xml;base64,([^\"]*)", (tmp_path / "card.html").read_text())
    assert any("a dose that is named at" in base64.b64decode(svg).decode() for svg in figures)
