"""Ten thousand damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.fuzz_readers import READERS
from tests.unit.data.test_fuzz import assert_refused_or_read, make_sound

FILES = 10_000


@pytest.mark.timeout(3600)  # a quarter of an hour on two busy cores
def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    (sound := tmp_path / "sound").mkdir()
    make_sound(sound)
    outcomes = assert_refused_or_read(sound, tmp_path, FILES)
    print(f"{outcomes.total():,} damaged files: {dict(sorted(outcomes.items()))}")
    # The damage is real, and not every damage is the end of a file.
    for name in READERS:
        total = sum(count for outcome, count in outcomes.items() if outcome.startswith(f"{name} "))
        assert 0.2 * total < total - outcomes[f"{name} read"], (name, outcomes)
