"""No module is imported because a run that came from elsewhere names it."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cqlray
from cqlray.cli import main as cli
from cqlray.config.schema import EnvConfig, RunConfig
from cqlray.errors import UserError
from cqlray.results.export import export
from cqlray.results.video import record
from cqlray.storage import checkpoint, trust
from cqlray.storage.run_directory import RunDirectory, snapshot_name, write_bytes
from tests.unit.cli.test_main import mistake
from tests.unit.results.run_directories import make_run

EVIL = EnvConfig("evil_mod:Evil-v0", kwargs={"command": "ls", "g": 9.8})
PASSED_ON = EnvConfig("GymV26Environment-v0", kwargs={"env_id": "evil_mod:Evil-v0"})
PLAN = {"populations": [[0, 1]]}
SPACES = {"action_dim": 1, "action_low": [-2.0], "action_high": [2.0]}


@pytest.fixture(autouse=True)
def no_key_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has made no run, and an evil module where Python finds it."""
    (tmp_path / "evil_mod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "cqlray" / "key"


def run_in(place: Path, env: EnvConfig = EVIL, **given: object) -> RunDirectory:
    manifest: dict[str, Any] = {
        "id": "abc",
        "plan": PLAN,
        "environment": SPACES,
        trust.SIGNATURE: None,
        **given,
    }
    return RunDirectory.open(make_run(place, config=RunConfig(env=env), **manifest))


def snapshot() -> bytes:
    """Two members' policies: three observations, no hidden layer, one action."""
    arrays = {
        "observation_mean": np.zeros(3, np.float32),
        "observation_std": np.ones(3, np.float32),
        "log_std_min": np.full(2, -5.0, np.float32),
        "policy.0.weight": np.ones((2, 3, 2), np.float32),
        "policy.0.bias": np.zeros((2, 1, 2), np.float32),
    }
    return checkpoint.encode(arrays, {"updates": 10})


COMMANDS = ("resume", "evaluate", "evaluate --fitted-q", "video", "video --policy random")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("env", [EVIL, PASSED_ON])
def test_no_command_imports_the_module_of_a_run_from_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, env: EnvConfig
) -> None:
    run = str(run_in(tmp_path / "run", env).path)
    before = sorted(tmp_path.rglob("*"))
    name, *options = command.split()
    assert mistake(capsys, name, run, *options) == (
        f"{run} names the environment {env.id!r} with {env.kwargs} and was not made here, and no"
        f" module is imported on a file's word: --env {env.id} or --trust, where you know it"
    )
    assert mistake(capsys, name, run, "--env", "evil_mod:Other-v0", *options) == (
        f"{run} is a run in {env.id!r}, not in 'evil_mod:Other-v0'"
    )
    assert "evil_mod" not in sys.modules and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("told", ["--trust", "--env evil_mod:Evil-v0"])
def test_the_user_s_word_is_taken(tmp_path: Path, told: str) -> None:
    run = str(run_in(tmp_path / "run").path)
    for command in ("resume", "video --policy random"):
        name, *options = command.split()
        with pytest.raises(SystemExit, match="imported"):
            cli.main([name, run, *told.split(), *options])


def test_python_does_not_import_it_either(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run").path
    with pytest.raises(UserError, match="was not made here"):
        cqlray.resume(str(run))
    with pytest.raises(UserError, match="was not made here"):
        record(str(run), ["random"])
    with pytest.raises(SystemExit, match="imported"):
        cqlray.resume(str(run), quiet=True, trust="evil_mod:Evil-v0")
    with pytest.raises(SystemExit, match="imported"):
        record(str(run), ["random"], trust=True)


def test_report_load_run_and_export_make_no_environment(tmp_path: Path) -> None:
    layout = ["numbers 0 to 2: observation['a']"]
    run = run_in(tmp_path / "run", observation_layout=layout).path
    assert cli.main(["report", str(run)]) == 0
    assert len(cqlray.load_run(str(run)).summary["members"]) == 2
    write_bytes(run / snapshot_name(0, 10), snapshot())
    assert export(str(run), 1, "safetensors").updates == 10
    assert (
        "numbers 0 to 2: observation['a']" in (run / "export/member-1.safetensors.md").read_text()
    )
    assert "evil_mod" not in sys.modules


def test_a_run_made_here_needs_no_flag_wherever_it_is(tmp_path: Path, no_key_yet: Path) -> None:
    signed = trust.signature("abc", EVIL)
    run = run_in(tmp_path / "run", environment_signature=signed)
    assert trust.trusted_config(run, False).env == EVIL
    moved = RunDirectory.open(shutil.copytree(run.path, tmp_path / "elsewhere" / "moved"))
    assert trust.trusted_config(moved, False).env == EVIL
    assert no_key_yet.stat().st_mode & 0o777 == 0o600 and len(no_key_yet.read_bytes()) == 32
    assert [file.name for file in no_key_yet.parent.iterdir()] == ["key"]
    assert trust.signature("abc", EVIL) == signed


def test_what_the_signature_does_not_cover_is_not_trusted(tmp_path: Path, no_key_yet: Path) -> None:
    signed = trust.signature("abc", EVIL)
    others = [
        run_in(
            tmp_path / "0",
            EnvConfig("other:Evil-v0", kwargs=EVIL.kwargs),
            environment_signature=signed,
        ),
        run_in(tmp_path / "1", EnvConfig(EVIL.id, kwargs={"g": 9.9}), environment_signature=signed),
        run_in(tmp_path / "2", id="another", environment_signature=signed),
        run_in(tmp_path / "3", environment_signature=None),
        run_in(tmp_path / "4", environment_signature="\u00e9" + str(signed)),
        run_in(tmp_path / "5", environment_signature=[signed]),
    ]
    for run in others:
        with pytest.raises(UserError, match="was not made here"):
            trust.trusted_config(run, False)
    ours = run_in(tmp_path / "6", environment_signature=signed)
    no_key_yet.chmod(0o644)  # a key that others can read proves nothing
    with pytest.raises(UserError, match="was not made here"):
        trust.trusted_config(ours, False)
    no_key_yet.write_bytes(b"")
    no_key_yet.chmod(0o600)
    with pytest.raises(UserError, match="was not made here"):
        trust.trusted_config(ours, False)


def test_runs_that_begin_at_once_are_signed_with_one_key(no_key_yet: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        signatures = set(pool.map(lambda _: trust.signature("abc", EVIL), range(64)))
    assert len(signatures) == 1 and None not in signatures
    assert [file.name for file in no_key_yet.parent.iterdir()] == ["key"]


def test_a_plain_environment_needs_no_key(tmp_path: Path, no_key_yet: Path) -> None:
    plain = EnvConfig("Pendulum-v1", kwargs={"g": 9.0, "render_mode": "rgb_array"})
    assert trust.signature("abc", plain) is None and not no_key_yet.exists()
    run = run_in(tmp_path / "run", plain)
    for word in (False, True, "Pendulum-v1"):
        assert trust.trusted_config(run, word).env == plain


def test_a_user_without_a_home_has_no_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file where the folder would be")
    assert trust.signature("abc", EVIL) is None
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trust.signature("abc", EVIL)
    assert (tmp_path / "home/.local/state/cqlray/key").is_file()
    assert json.dumps(trust.signature("b", EVIL)) != json.dumps(trust.signature("abc", EVIL))
