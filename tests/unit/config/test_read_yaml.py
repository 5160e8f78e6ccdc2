"""YAML that was made to do harm is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cqlray.config.mistakes import shown
from cqlray.config.read_yaml import load_yaml, parse_yaml
from cqlray.errors import UserError

LAUGHS = "a0: &a0 [ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "more than 100,000 values, aliases written out"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("? " + "[" * 400 + "]" * 400 + "\n: 1", "nested too deeply|not YAML"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        ("a: 1\n" + " " * 1_000_000, "more than 1,000,000 bytes"),
        ("a: !!bool maybe", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: !!float ''", "not YAML"),
        ("a: \0", "not YAML"),
    ],
    ids=range(9),
)
def test_yaml_that_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        parse_yaml(text, "my.yaml")
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: *a", "my.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_pipe_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="it is a pipe"):
        load_yaml(tmp_path / "c.yaml")


def test_a_message_does_not_write_out_a_whole_value() -> None:
    """This one would have 10^30 parts."""
    value: list[object] = [1]
    for _ in range(30):
        value = [value] * 10
    assert len(shown(value)) == len(shown({"a": value})) == 60
    assert shown("x" * 10**8).endswith("...")
    assert shown(()) == "[]"
    assert shown({}) == "{}"
    assert shown((1, "a", {"b": [2.5, None]})) == "[1, 'a', {'b': [2.5, None]}]"
