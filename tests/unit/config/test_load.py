"""Every mistake in a config gets its one line, and a config survives YAML bit for bit."""

from __future__ import annotations

import dataclasses
import math
import struct
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqlray.config.load import build, check, dump_yaml, merge, validate
from cqlray.config.presets import PRESETS
from cqlray.config.read_yaml import load_yaml, parse_yaml
from cqlray.config.schema import (
    TIERS,
    CollectionConfig,
    CQLConfig,
    EnvConfig,
    EvaluationConfig,
    RunConfig,
    SweepConfig,
    TeacherConfig,
    to_dict,
)
from cqlray.errors import UserError

NAN, INFINITY = float("nan"), float("inf")


def lines(text: str) -> list[str]:
    """The lines that a YAML text is refused with."""
    with pytest.raises(UserError) as caught:
        validate(parse_yaml(text, "my.yaml"), "my.yaml")
    return str(caught.value).splitlines()


def fields(
    cls: type = RunConfig, section: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Path, type and dataclass field of every option."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from fields(hints[f.name], (*section, f.name))
        else:
            yield (*section, f.name), hints[f.name], f


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {first: nested(tuple(rest), value) if rest else value}


# One line for each mistake

MISTAKES = {
    "cql: {batch_size: -3}": "cql.batch_size is -3; it must be at least 1",
    "cql: {conservativ_weight: 5}": (
        "unknown key cql.conservativ_weight; did you mean cql.conservative_weight?"
    ),
    "batch_size: 3": "unknown key batch_size; did you mean cql.batch_size or teacher.batch_size?",
    "cq1: {batch_size: 3}": "unknown key cq1; did you mean cql?",
    "sweep: {num_updates: [1, 2]}": "unknown key sweep.num_updates; did you mean cql.num_updates?",
    "sweep: {conservativ_weight: [1]}": (
        "unknown key sweep.conservativ_weight; did you mean sweep.conservative_weight?"
    ),
    "cql.batch_size: 3": (
        "unknown key cql.batch_size; write batch_size below cql, as in cql: {batch_size: ...}"
    ),
    "zzzzz: 3": "unknown key zzzzz",
    "1: 3": "unknown key 1",
    "cql: {discount: abc}": "cql.discount is 'abc'; it must be a number",
    "cql: {discount: true}": "cql.discount is true; it must be a number",
    "cql: {discount: .nan}": "cql.discount is nan; it must be a number",
    "cql: {gradient_clip: .nan}": "cql.gradient_clip is nan; it must be a number",
    "cql: {policy_learning_rate: .inf}": (
        "cql.policy_learning_rate is inf; it must be a finite number"
    ),
    "cql: {discount: 1}": "cql.discount is 1; it must be less than 1",
    "cql: {target_update_rate: 0}": "cql.target_update_rate is 0; it must be greater than 0",
    "cql: {target_update_rate: 1.5}": "cql.target_update_rate is 1.5; it must be at most 1",
    "cql: {batch_size: 2.0}": "cql.batch_size is 2.0; it must be a whole number",
    "cql: {batch_size: true}": "cql.batch_size is true; it must be a whole number",
    "cql: {batch_size: 1e3}": "cql.batch_size is 1000.0; it must be a whole number",
    "cql: {lagrange: 1}": "cql.lagrange is 1; it must be true or false",
    "cql:": "cql is empty; it must be a mapping of names to values",
    "cql: [1]": "cql is [1]; it must be a mapping of names to values",
    "out: 3": "out is 3; it must be text, in quotes where it looks like something else",
    "sweep: {discount: [0.9, 1.0]}": "sweep.discount[1] is 1.0; it must be less than 1",
    "sweep: {discount: 0.9}": "sweep.discount is 0.9; it must be a list",
    "sweep: {batch_size: [abc]}": "sweep.batch_size[0] is 'abc'; it must be a whole number",
    "sweep: {temperature_learning_rate: [.inf]}": (
        "sweep.temperature_learning_rate[0] is inf; it must be a finite number"
    ),
    "env: {kwargs: {gravity: .nan}}": "env.kwargs.gravity is nan; it must be a finite number",
    "env: {kwargs: {gravity: [1]}}": (
        "env.kwargs.gravity is [1]; it must be a number, text, true or false"
    ),
    "env: {kwargs: {3: 1}}": "env.kwargs has the name 3; it must be text",
    "collection: {episodes: []}": "collection.episodes is []; it must be a list of at least 1",
    "collection: {episodes: [0]}": "collection.episodes[0] is 0; it must be at least 1",
    "collection: {episodes: [1, 2]}": (
        "collection.episodes has 2 numbers for the 3 of collection.tiers; "
        "it must have one for all or one for each"
    ),
    "collection: {tiers: []}": (
        "collection.tiers is empty; it must name at least one of replay, random, medium, expert"
    ),
    "collection: {tiers: [expret]}": (
        "collection.tiers: there is no tier 'expret'; did you mean expert?"
    ),
    "collection: {tiers: [zzz]}": (
        "collection.tiers: there is no tier 'zzz'; the tiers are replay, random, medium, expert"
    ),
    "collection: {tiers: [random, random]}": (
        "collection.tiers names random 2 times; once is enough"
    ),
    "cql: {difference_clip_min: 2, difference_clip_max: 2}": (
        "cql.difference_clip_min is 2.0; it must be less than cql.difference_clip_max, which is 2.0"
    ),
    "{cql: {difference_clip_min: 5}, sweep: {difference_clip_max: [9, 1]}}": (
        "cql.difference_clip_min is 5.0; "
        "it must be less than sweep.difference_clip_max, which is 1.0"
    ),
    "teacher: {rounds: 3, warmup_rounds: 3}": (
        "teacher.warmup_rounds is 3; it must be less than teacher.rounds, which is 3"
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_gets_its_line(text: str) -> None:
    assert lines(text) == [f"my.yaml: {MISTAKES[text]}"]


def test_every_mistake_gets_a_line_in_the_order_of_the_file() -> None:
    assert lines(
        "zzzzz: 1\ncql: {batch_size: 0, zzzzzz: 1, discount: 2}\nseed: -1\nenv:"
        " {max_episode_steps: 0}"
    ) == [
        "my.yaml: unknown key zzzzz",
        "my.yaml: cql.batch_size is 0; it must be at least 1",
        "my.yaml: unknown key cql.zzzzzz",
        "my.yaml: cql.discount is 2; it must be less than 1",
        "my.yaml: seed is -1; it must be at least 0",
        "my.yaml: env.max_episode_steps is 0; it must be at least 1",
    ]


def test_a_message_stays_short_and_on_one_line() -> None:
    with pytest.raises(UserError) as caught:
        validate(
            {"cql": {"discount": "a\n" * 500}, "a\nb": 1, "seed": "x" * 9000, "num_seeds": 1.5},
            "python",
        )
    found = str(caught.value).splitlines()
    assert len(found) == 4
    assert all(len(line) < 160 for line in found)


BOUNDS = {"gt": 0, "ge": -1, "lt": 0, "le": 1}
BOUNDED = [
    (path, name, bound, is_list)
    for path, _, f in fields()
    for metadata, is_list in ((f.metadata, False), (f.metadata.get("item_bounds", {}), True))
    for name, bound in metadata.items()
    if name in BOUNDS
]


@pytest.mark.parametrize(
    ("path", "name", "bound", "is_list"), BOUNDED, ids=[f"{'.'.join(b[0])}-{b[1]}" for b in BOUNDED]
)
def test_every_bound_is_enforced_and_named(
    path: tuple[str, ...], name: str, bound: float, is_list: bool
) -> None:
    beyond = bound + BOUNDS[name]
    with pytest.raises(UserError) as caught:
        build(nested(path, [beyond] if is_list else beyond), "python")
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}[name]
    dotted = ".".join(path) + ("[0]" if is_list else "")
    assert str(caught.value) == f"python: {dotted} is {beyond}; it must be {words} {bound:g}"


def test_there_are_bounds_to_enforce() -> None:
    assert len(BOUNDED) > 70


FLOATS = [found for found in fields() if found[1] is float]


@pytest.mark.parametrize(
    ("path", "hint", "field"), FLOATS, ids=[".".join(path) for path, _, _ in FLOATS]
)
def test_nan_is_refused_and_infinity_too_unless_it_is_the_default(
    path: tuple[str, ...], hint: type, field: Any
) -> None:
    dotted = ".".join(path)
    with pytest.raises(UserError, match=f"python: {dotted} is nan; it must be a number"):
        build(nested(path, NAN), "python")
    if math.isinf(field.default):
        build(nested(path, field.default), "python")
    else:
        with pytest.raises(UserError, match=f"python: {dotted} is inf; it must be"):
            build(nested(path, INFINITY), "python")


# What is accepted


def test_nothing_given_is_the_default_config() -> None:
    assert validate({}, "python") == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_in_order(name: str) -> None:
    assert check(PRESETS[name], name) == PRESETS[name]


def test_integers_stand_for_floats_and_lists_for_tuples() -> None:
    config = validate(
        {"cql": {"conservative_weight": 3}, "collection": {"tiers": ["random"], "episodes": [4]}},
        "python",
    )
    assert repr(config.cql.conservative_weight) == "3.0"
    assert config.collection == CollectionConfig(tiers=("random",), episodes=(4,))


def test_sweeps_may_be_infinite_where_the_option_may() -> None:
    config = validate(parse_yaml("sweep: {gradient_clip: [1, .inf]}", "my.yaml"), "my.yaml")
    assert config.sweep.gradient_clip == (1.0, INFINITY)


def test_check_refuses_what_python_lets_through() -> None:
    with pytest.raises(UserError) as caught:
        check(RunConfig(num_seeds=0, cql=CQLConfig(discount=NAN)), "python")
    assert str(caught.value).splitlines() == [
        "python: num_seeds is 0; it must be at least 1",
        "python: cql.discount is nan; it must be a number",
    ]
    with pytest.raises(UserError, match=r"^python: a RunConfig is needed, not {'seed': 3}$"):
        check({"seed": 3}, "python")  # type: ignore[arg-type]


def test_check_turns_lists_into_tuples() -> None:
    config = RunConfig(collection=CollectionConfig(tiers=["random"], episodes=[5]))  # type: ignore[arg-type]
    assert check(config, "python").collection == CollectionConfig(tiers=("random",), episodes=(5,))


def test_build_leaves_the_rules_between_fields_to_the_whole() -> None:
    assert build({"cql": {"num_updates": 10}}, "my.yaml").cql.num_updates == 10


# YAML


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.3e-3", ".3e-3", "3.e-4", "0.0003", "3.0e-4"])
def test_numbers_are_read_as_people_write_them(text: str) -> None:
    assert parse_yaml(f"a: {text}", "my.yaml") == {"a": 3e-4}


def test_quoted_numbers_and_dates_are_text() -> None:
    assert parse_yaml("{a: '3e-4', b: 2024-01-01, c: 1e, d: e5, e: .e5}", "my.yaml") == {
        "a": "3e-4",
        "b": "2024-01-01",
        "c": "1e",
        "d": "e5",
        "e": ".e5",
    }


BAD_YAML = {
    "a: [": "line 1, column 5: not YAML: expected the node content, but found '<stream end>'",
    "a: 1\n  b: 2": "line 2, column 4: not YAML: mapping values are not allowed here",
    "a: 1\nb: 2\na: 3": "line 3, column 1: not YAML: the key a stands twice",
    "- 1": "it must be a mapping of names to values, not [1]",
    "text": "it must be a mapping of names to values, not 'text'",
    "[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_bad_yaml_gets_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(caught.value) == f"{path}: {BAD_YAML[text]}"


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.getcwd []", "seed: " + "1" * 5000, "a: \x01"],
    ids=range(3),
)
def test_hostile_yaml_gets_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^my.yaml: .*not YAML: [^\n]*$"):
        parse_yaml(text, "my.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/none.yaml: no such file$"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=f"^{tmp_path}: cannot be read: Is a directory$"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"latin.yaml: not a text file in UTF-8"):
        load_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert load_yaml(tmp_path / "my.yaml") == {}


def test_dumped_yaml_is_in_order_with_lists_on_one_line() -> None:
    text = dump_yaml(RunConfig())
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")] == list(
        to_dict(RunConfig())
    )
    assert "  tiers: [replay, medium, random]\n" in text
    assert "  gradient_clip: .inf\n" in text
    assert "  difference_clip_min: -.inf\n" in text


def numbers(hint: Any, metadata: Any, infinite: bool) -> st.SearchStrategy[Any]:
    """Values of one option within its bounds."""
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(metadata.get("ge", -(10**9)), 10**12)
    low, high = metadata.get("ge", metadata.get("gt")), metadata.get("le", metadata.get("lt"))
    return st.floats(
        low,
        high,
        exclude_min="gt" in metadata,
        exclude_max="lt" in metadata,
        allow_nan=False,
        allow_infinity=infinite and low is None and high is None,
    )


def options(path: tuple[str, ...], hint: Any, field: Any) -> st.SearchStrategy[Any]:
    swept = "item_bounds" in field.metadata
    default = getattr(CQLConfig, field.name, None) if swept else field.default
    infinite = isinstance(default, float) and math.isinf(default)
    if swept:
        item = numbers(typing.get_args(hint)[0], field.metadata["item_bounds"], infinite)
        return st.lists(item, max_size=3).map(tuple)
    if path == ("env", "kwargs"):
        scalars = (
            st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text()
        )
        return st.dictionaries(st.text(), scalars, max_size=3)
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(options(path, typing.get_args(hint)[0], field), max_size=3).map(tuple)
    if typing.get_origin(hint) is not None:
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
        return st.none() | options(path, hint, field)
    tricky = st.sampled_from(
        [
            "3e-4",
            "1e5",
            ".inf",
            "null",
            "yes",
            "2024-01-01",
            "1:30",
            "0x1f",
            " a ",
            "a: b",
            "#",
            "~",
            "\n",
        ]
    )
    return st.text() | tricky if hint is str else numbers(hint, field.metadata, infinite)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """A config that keeps every rule, with some of its options drawn anew."""
    every = [f for f in fields() if f[0][0] != "collection"]
    values: dict[str, Any] = {}
    for path, hint, field in draw(
        st.lists(st.sampled_from(every), max_size=12, unique_by=lambda f: f[0])
    ):
        values = merge(values, nested(path, draw(options(path, hint, field))))
    tiers = draw(st.lists(st.sampled_from(TIERS), min_size=1, unique=True))
    episodes = draw(
        st.lists(st.integers(1, 99), min_size=1, max_size=1)
        | st.tuples(*[st.integers(1, 99)] * len(tiers))
    )
    values["collection"] = {"tiers": tiers, "episodes": list(episodes)}
    if scratch := values.get("resources", {}).get("scratch"):
        values["resources"]["scratch"] = f"/{scratch}"
    elif "resources" in values:
        values["resources"].pop("scratch", None)
    for name in ("out", "dataset"):
        values[name] = values.get(name) or None
    for name in ("difference_clip_min", "difference_clip_max"):
        values.get("sweep", {}).pop(name, None)
    values["cql"] = {
        **values.get("cql", {}),
        "difference_clip_min": draw(st.floats(-INFINITY, 0.0)),
        "difference_clip_max": 1.5,
    }
    values["evaluation"] = {**values.get("evaluation", {}), "interval": 1}
    values["teacher"] = {**values.get("teacher", {}), "warmup_rounds": 0}
    default = RunConfig()
    parts = {
        name: dataclasses.replace(getattr(default, name), **v)
        for name, v in values.items()
        if isinstance(v, dict)
    }
    return dataclasses.replace(default, **{**values, **parts})


def bits(value: Any) -> Any:
    """Equal exactly where every float has the same bits (so -0.0 is not 0.0)."""
    if isinstance(value, dict):
        return {key: bits(below) for key, below in value.items()}
    if isinstance(value, list):
        return [bits(below) for below in value]
    return struct.pack("<d", value) if isinstance(value, float) else (type(value), value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_a_config_survives_yaml_bit_for_bit(config: RunConfig) -> None:
    checked = check(config, "python")
    assert bits(to_dict(checked))["env"] == bits(to_dict(config))["env"]
    again = validate(parse_yaml(dump_yaml(checked), "my.yaml"), "my.yaml")
    assert again == checked
    assert bits(to_dict(again)) == bits(to_dict(checked))


@settings(max_examples=100, deadline=None)
@given(number=st.floats(allow_nan=False))
def test_every_float_survives_yaml(number: float) -> None:
    config = RunConfig(teacher=TeacherConfig(stop_return=number))
    again = parse_yaml(dump_yaml(config), "my.yaml")["teacher"]["stop_return"]
    assert struct.pack("<d", again) == struct.pack("<d", number)


# Layers


def test_merge_goes_into_sections_and_changes_neither() -> None:
    base = {
        "seed": 1,
        "cql": {"batch_size": 2, "discount": 0.5},
        "collection": {"tiers": ["random", "expert"]},
    }
    over = {"cql": {"batch_size": 3}, "collection": {"tiers": ["replay"]}, "out": "x"}
    before = repr((base, over))
    assert merge(base, over) == {
        "seed": 1,
        "cql": {"batch_size": 3, "discount": 0.5},
        "collection": {"tiers": ["replay"]},
        "out": "x",
    }
    assert repr((base, over)) == before


def test_merge_of_a_preset_and_yaml() -> None:
    merged = merge(
        to_dict(RunConfig(seed=5, evaluation=EvaluationConfig(episodes=3))),
        {"env": {"id": "Hopper-v5"}},
    )
    assert validate(merged, "my.yaml") == RunConfig(
        seed=5,
        env=EnvConfig(id="Hopper-v5"),
        evaluation=EvaluationConfig(episodes=3),
        sweep=SweepConfig(),
    )


def test_neither_ray_nor_torch_nor_gymnasium_is_loaded() -> None:
    code = (
        "import cqlray.config.load, cqlray.cli.flags, sys; print({'ray', 'torch', 'gymnasium'}"
        " & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )
