"""What stands where: tests/unit mirrors cqlray/, and nothing else in it needs more than a moment of
one process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

UNIT = Path(__file__).parent
REPOSITORY = UNIT.parents[1]
TESTS = sorted(str(path.relative_to(UNIT)) for path in UNIT.rglob("test_*.py"))

# Files that test several modules together, with what they hold.
OF_SEVERAL_MODULES = {
    "cli/test_wrong_commands.py": "wrong commands, of every option of every command",
    "test_layering.py": "who may import whom",
    "test_tiers.py": "where tests stand",
    "algorithms/test_gradients.py": "each closed derivative against its equation",
    "algorithms/test_update.py": "a whole update against the reference",
    "algorithms/test_precision.py": "bf16 and float32, all algorithms",
    "data/test_fuzz.py": "damaged files, all formats",
    "data/formats/test_foreign.py": "files that other libraries wrote",
    "data/formats/test_round_trips.py": "from each format to each",
    "envs/test_envs.py": "make, rollout and scaling",
    "results/test_scale.py": "how the cost of a report grows",
    "workers/test_workers.py": "rollout worker, teacher, learner and evaluator, without Ray",
}


@pytest.mark.parametrize("name", TESTS)
def test_a_test_stands_where_its_module_does(name: str) -> None:
    """`tests/unit/X/test_Y.py` tests `cqlray/X/Y.py`, or the package `cqlray/X/Y`; those of
    tests/unit/cluster the files of cluster/.
    """
    path = Path(name)
    if path.parts[0] == "cluster":
        return
    module = REPOSITORY / "cqlray" / path.parent / path.stem.removeprefix("test_")
    there = module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()
    assert there != (name in OF_SEVERAL_MODULES), "rename the file, or say here what it is"
