"""The config: no option that nothing reads, and what a sweep multiplies into."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqlray.config import schema as configs
from cqlray.config.members import Member, members, without_repeats
from cqlray.config.schema import CQLConfig, RunConfig, SACConfig, SweepConfig

SCHEMA = Path(configs.__file__)
PACKAGE = SCHEMA.parents[1]
DATACLASSES = [
    value
    for name, value in vars(configs).items()
    if name.endswith("Config") and dataclasses.is_dataclass(value) and isinstance(value, type)
]


def own_fields(cls: type) -> Iterator[str]:
    """Fields that a dataclass brings itself, and does not inherit."""
    inherited = {
        f.name
        for base in cls.__mro__[1:]
        if dataclasses.is_dataclass(base)
        for f in dataclasses.fields(base)
    }
    yield from (f.name for f in dataclasses.fields(cls) if f.name not in inherited)


def names_read(tree: ast.AST) -> set[str]:
    """`x.name` where it is read, x["name"], and getattr(x, "name")."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                found.add(name)
            case ast.Subscript(slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                found.add(name)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                found.add(name)
    return found


def all_names_read() -> set[str]:
    """Over the package; of the schema the bodies of its functions and methods alone."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path == SCHEMA:
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            found |= set().union(*(names_read(function) for function in functions))
        else:
            found |= names_read(tree)
    return found


READ = all_names_read()
# Each option of the sweep is a field of CQLConfig, and members() reads it by that name.
FIELDS = [(cls, name) for cls in DATACLASSES if cls is not SweepConfig for name in own_fields(cls)]


@pytest.mark.parametrize(
    ("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_field_is_read_somewhere(cls: type, name: str) -> None:
    assert name in READ, f"nothing reads {cls.__name__}.{name}"


def test_reading_is_told_from_mentioning() -> None:
    source = (
        "config.written = 1\nf(keyword=2)\n# config.comment\n'config.text'\nx = config.read +"
        " s['key'] + getattr(c, 'got')"
    )
    assert names_read(ast.parse(source)) == {"read", "key", "got"}


def test_all_config_dataclasses_are_found() -> None:
    assert {cls.__name__ for cls in DATACLASSES} == {
        *(
            "EnvConfig",
            "SACConfig",
            "TeacherConfig",
            "CollectionConfig",
            "CQLConfig",
            "SweepConfig",
        ),
        *("ColumnsConfig", "EvaluationConfig", "ResourcesConfig", "RunConfig"),
    }


def test_every_config_is_frozen_and_every_number_of_a_member_is_declared_once() -> None:
    for cls in DATACLASSES:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
    for field in dataclasses.fields(SACConfig):
        for child in (CQLConfig, configs.TeacherConfig):
            inherited = child.__dataclass_fields__[field.name]
            assert ("per_member" in inherited.metadata) == ("per_member" in field.metadata), (
                field.name
            )


def test_sweep_offers_every_option_but_the_number_of_updates() -> None:
    assert {f.name for f in dataclasses.fields(SweepConfig)} == {
        f.name for f in dataclasses.fields(CQLConfig)
    } - {"num_updates"}


def swept(num_seeds: int, **lists: object) -> list[Member]:
    return members(RunConfig(num_seeds=num_seeds, sweep=SweepConfig(**lists)))


def test_no_sweep_is_one_setting_for_each_seed() -> None:
    found = swept(3)
    assert [(m.index, m.seed, m.swept) for m in found] == [(0, 0, {}), (1, 1, {}), (2, 2, {})]
    assert all(m.cql == CQLConfig() for m in found)


def test_a_sweep_multiplies_in_order() -> None:
    found = swept(2, conservative_weight=(1.0, 5.0), lagrange=(False, True))
    assert [m.index for m in found] == list(range(8))
    assert [m.seed for m in found] == [
        0,
        1,
    ] * 4, "seeds are paired across settings, and a setting's members stand together"
    options = [tuple(m.swept.values()) for m in found[::2]]
    assert len(set(options)) == 4
    for member in found:
        assert set(member.swept) == {"conservative_weight", "lagrange"}
        assert member.cql == dataclasses.replace(CQLConfig(), **member.swept)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.lists(st.floats(0.0, 10.0), max_size=3, unique=True),
    st.lists(st.integers(1, 5), max_size=3, unique=True),
    st.lists(st.floats(-5.0, 5.0), max_size=2, unique=True),
)
def test_members_are_seeds_times_the_product(
    num_seeds: int, weights: list[float], samples: list[int], entropies: list[float]
) -> None:
    lists = {
        "conservative_weight": tuple(weights),
        "num_action_samples": tuple(samples),
        "target_entropy": tuple(entropies),
    }
    found = swept(num_seeds, **lists)
    given_lists = {name: values for name, values in lists.items() if values}
    expected = {
        (*zip(given_lists, values, strict=True), ("seed", seed))
        for values in itertools.product(*given_lists.values())
        for seed in range(num_seeds)
    }
    assert {
        (*((name, m.swept[name]) for name in given_lists), ("seed", m.seed)) for m in found
    } == expected
    assert len(found) == len(expected)
    assert [m.index for m in found] == list(range(len(found)))


def test_structure_parts_members_by_what_cannot_be_stacked() -> None:
    by_number = swept(2, conservative_weight=(1.0, 5.0), discount=(0.9, 0.99))
    assert len({m.structure for m in by_number}) == 1
    by_shape = swept(2, num_critics=(1, 2), layer_norm=(False, True))
    assert len({m.structure for m in by_shape}) == 4


def test_what_is_the_same_is_trained_once() -> None:
    """Offline SAC is CQL with weight 0; with another weight in the sweep it is none of them."""
    config = RunConfig(
        sweep=SweepConfig(conservative_weight=(0.0, 5.0)), baselines=("bc", "sac"), num_seeds=2
    )
    assert len(members(config)) == 8
    found, lines = without_repeats(config)
    assert found.baselines == ("bc",) and len(members(found)) == 6
    assert lines == [
        "baseline sac: the same as CQL's setting (conservative_weight 0.0); trained once, as that"
    ]
    other = dataclasses.replace(config, sweep=SweepConfig(conservative_weight=(1.0, 5.0)))
    assert without_repeats(other) == (other, [])
    plain = dataclasses.replace(
        config,
        sweep=SweepConfig(),
        cql=dataclasses.replace(config.cql, conservative_weight=0.0),
        baselines=("sac",),
    )
    found, lines = without_repeats(plain)
    assert not found.baselines and "(the config's own)" in lines[0]
