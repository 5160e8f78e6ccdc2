"""Ten thousand damaged files."""

from __future__ import annotations

from pathlib import Path

from tests.unit.data.fuzz_readers import READERS
from tests.unit.data.test_fuzz import assert_refused_or_read, make_sound

FILES = 10_000


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    (sound := tmp_path / "sound").mkdir()
    make_sound(sound)
    outcomes = assert_refused_or_read(sound, tmp_path, FILES)
    # The damage is real, and not every damage is the end of a file.
    for name in READERS:
        total = sum(count for outcome, count in outcomes.items() if outcome.startswith(f"{name} "))
        assert 0.2 * total < total - outcomes[f"{name} read"], (name, outcomes)
