"""Policies of a real run, exported, and loaded by programs that have no cqlray."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cqlray import load_policy
from cqlray.algorithms.policy import Array
from cqlray.cli import main as cli
from cqlray.errors import UserError
from cqlray.results import export as exporting
from cqlray.results.export import Exported, export
from cqlray.results.policies import LoadedPolicy
from cqlray.results.policy_files import FORMATS, policy_arrays
from cqlray.results.report.formatting import number
from cqlray.storage.run_directory import RunDirectory
from cqlray.storage.trust import trusted_config
from tests.object_store import s3_bucket
from tests.unit.results.test_export import observations_of

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.ray

CODE_BEFORE = {
    "torchscript": "import torch\nobservations = torch.from_numpy(batch)",
    "onnx": "observations = batch",
    "safetensors": "observations = batch",
}


def run_without_cqlray(exported: Exported, batches: list[Array]) -> list[Array]:
    """The actions that the card's own code computes, in a process of its own."""
    directory = Path(exported.path).parent
    (code,) = re.findall(r"```python\n(.*?)```", Path(exported.card).read_text(), re.DOTALL)[:1]
    np.savez(directory / "in.npz", *batches)
    program = f"""
import sys, numpy
results = []
for batch in numpy.load("in.npz").values():
    exec({CODE_BEFORE[exported.format]!r})
    exec({code!r})
    results.append(numpy.asarray(actions))
numpy.savez("out.npz", *results)
assert not [name for name in sys.modules if name.startswith("cqlray")]
"""
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True, timeout=120)
    with np.load(directory / "out.npz") as results:
        return list(results.values())


@pytest.mark.parametrize("format", FORMATS)
def test_the_cards_code_gives_the_policys_actions(
    finished_run: Path, tmp_path: Path, format: str
) -> None:
    exported = export(finished_run, 1, format, tmp_path / f"policy{FORMATS[format][0]}")
    policy = load_policy(finished_run, 1)
    assert (exported.member, exported.updates, exported.max_difference < 1e-6) == (1, 330, True)
    observations = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    batches = [observations, observations[:1], *([] if format == "onnx" else [observations[0]])]
    for batch, actions in zip(batches, run_without_cqlray(exported, batches), strict=True):
        expected = policy(batch)
        assert actions.shape == expected.shape and actions.dtype == np.float32
        np.testing.assert_allclose(actions / 5.0, expected / 5.0, rtol=0, atol=1e-6)
    with pytest.raises(subprocess.CalledProcessError):
        # would broadcast to the right size, unseen
        run_without_cqlray(exported, [observations[:, :1]])


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_says_whose_policy_it_is(finished_run: Path, tmp_path: Path, format: str) -> None:
    import onnx
    import torch
    from safetensors import safe_open

    path = Path(export(finished_run, 2, format, tmp_path / "file").path)
    if format == "torchscript":
        files = {"cqlray.json": ""}
        torch.jit.load(path, _extra_files=files)  # type: ignore[no-untyped-call]
        said = json.loads(files["cqlray.json"])
    elif format == "onnx":
        said = json.loads(
            {prop.key: prop.value for prop in onnx.load(path).metadata_props}["cqlray"]
        )
    else:
        with safe_open(path, "np") as file:
            said = json.loads(file.metadata()["cqlray"])
            assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype(np.float32)}  # noqa: SIM118
    assert (said["member"], said["updates"], said["observation"], said["action"]) == (
        2,
        330,
        ["n", 2],
        ["n", 1],
    )
    assert said["observation_names"] == ["observation[0]", "observation[1]"]
    assert said["action_names"] == ["action[0]"]
    assert said["environment"] == "tests.toy_envs:Point-v0" and len(said["compute"]) == 3


def with_wrong_weight(arrays: dict[str, Array]) -> None:
    arrays["0.weight"] = arrays["0.weight"] + np.float32(1e-3)


def with_nan(arrays: dict[str, Array]) -> None:
    arrays["1.bias"] = arrays["1.bias"] * np.float32("nan")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", [with_wrong_weight, with_nan])
def test_a_file_that_differs_is_not_written(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    damage: Callable[[dict[str, Array]], None],
) -> None:
    def damaged(policy: LoadedPolicy) -> dict[str, Array]:
        arrays = policy_arrays(policy)
        damage(arrays)
        return arrays

    monkeypatch.setattr(exporting, "policy_arrays", damaged)
    with pytest.raises(
        UserError,
        match=rf"^the {format} file's actions differ from the policy's by \S+ of their range",
    ):
        export(finished_run, 0, format, tmp_path / "sub" / "file")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_the_observations_are_the_datas_where_it_is_there(copied_run: Path) -> None:
    exported = export(copied_run)
    assert exported.path == copied_run / "export" / f"member-{load_policy(copied_run).member}.onnx"
    card = Path(exported.card).read_text()
    assert (
        "observations of its data, to" in card and "It was chosen as the best of 3 members" in card
    )
    shutil.rmtree(copied_run / "dataset")
    exported = export(copied_run, 0, "safetensors")
    card = Path(exported.card).read_text()
    assert "on 1,000 random observations, to" in card
    assert "Nothing is known of it" in card and "It was chosen" not in card


def means(run: Path, updates: int) -> dict[int, float]:
    """Each member's mean return in its test after so many updates."""
    rows = RunDirectory(run).rows("evaluations.jsonl")
    return {
        row["member"]: float(np.mean(row["returns"])) for row in rows if row["updates"] == updates
    }


def card_of(exported: Exported) -> str:
    return Path(exported.card).read_text()


def test_the_best_of_a_run_under_way_is_the_snapshot_that_was_tested(copied_run: Path) -> None:
    lines = (copied_run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (copied_run / "evaluations.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["updates"] != 330)
    )
    tested = means(copied_run, 220)
    best = max(tested, key=lambda member: tested[member])
    policy = load_policy(copied_run)
    assert (policy.member, policy.updates, policy.chosen_by) == (best, 220, "return")
    observations = observations_of(policy, 50)
    np.testing.assert_array_equal(
        policy(observations), load_policy(copied_run, best, updates=220)(observations)
    )
    newest = load_policy(copied_run, best)
    assert newest.updates == 330 and not np.allclose(policy(observations), newest(observations))
    card = card_of(export(copied_run))
    assert (
        "- 220 of 330 updates;" in card
        and "The exported policy is the one of the first line" in card
    )
    assert "The exported policy is of 330 updates: the table is of other snapshots" in card_of(
        export(copied_run, best)
    )


def test_any_snapshot_can_be_exported_and_its_card_says_which(copied_run: Path) -> None:
    exported = export(copied_run, 1, "safetensors", updates=110)
    assert (
        exported.path == copied_run / "export" / "member-1-updates-110.safetensors"
        and exported.updates == 110
    )
    policy = load_policy(copied_run, 1, updates=110)
    observations = observations_of(policy, 50)
    (actions,) = run_without_cqlray(exported, [observations])
    np.testing.assert_allclose(actions / 5.0, policy(observations) / 5.0, rtol=0, atol=1e-6)
    card = card_of(exported)
    assert (
        "- 110 of 330 updates;" in card
        and "The exported policy is the one of the first line" in card
    )
    first = next(line for line in card.splitlines() if line.startswith("| last test"))
    assert first.startswith(
        f"| last test, after 110 updates | {number(means(copied_run, 110)[1])} "
    )
    assert "330 updates |" not in card and "best of 1 tests" in card, (
        "its later tests are not its own"
    )
    tested = means(copied_run, 110)
    best = export(copied_run, format="safetensors", updates=110)
    assert (best.member, best.updates) == (max(tested, key=lambda member: tested[member]), 110)
    assert "It was chosen as the best of 3 members" in card_of(best)


def test_a_snapshot_that_is_not_there_is_one_line(
    finished_run: Path, copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = r"has no snapshot of member 1 after 5 updates; it has those after 110, 220, 330$"
    with pytest.raises(UserError, match=missing):
        load_policy(finished_run, 1, updates=5)
    with pytest.raises(
        UserError,
        match=(
            r"has no test or fitted Q evaluation of its students after 5 updates, but after 110, 22"
        ),
    ):
        load_policy(finished_run, updates=5)
    with pytest.raises(
        UserError, match=r"has no test of its students after 5 updates, but after 110, 220, 330$"
    ):
        load_policy(finished_run, by="return", updates=5)
    assert cli.main(["export", str(finished_run), "--member", "1", "--updates", "5"]) == 2
    assert re.search(missing, capsys.readouterr().err.rstrip())
    assert (
        cli.main(
            [
                "export",
                str(copied_run),
                "--member",
                "1",
                "--updates",
                "220",
                "--format",
                "torchscript",
                "--json",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["updates"] == 220 and said["path"].endswith("member-1-updates-220.pt")


def test_mistakes_are_one_line(
    finished_run: Path, copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(said: str, *arguments: object) -> None:
        with pytest.raises(UserError, match=said) as caught:
            export(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refused("is not a run directory", tmp_path)
    refused("has no member 3; its members are 0 to 2", finished_run, 3)
    refused(
        "there is no format 'pickle'; they are torchscript, onnx, safetensors",
        finished_run,
        0,
        "pickle",
    )
    refused(
        "cannot be written: ", finished_run, 0, "onnx", tmp_path / "run" / "config.yaml" / "x.onnx"
    )
    refused("cannot be written: Is a directory", finished_run, 0, "onnx", tmp_path)
    shutil.rmtree(copied_run / "snapshots")
    refused("has no snapshot of its students yet", copied_run, 0)
    (copied_run / "evaluations.jsonl").unlink()
    refused("has no test of its students yet; name a member", copied_run)
    for missing in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            refused(
                rf'ONNX files need {missing}, .*: pip install "cqlray\[export\]"', finished_run, 0
            )
            export(finished_run, 0, "torchscript", tmp_path / "file.pt")


def test_from_an_object_store_to_an_object_store(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_bucket(monkeypatch, "exports") as bucket:
        run = bucket / "run"
        for path in finished_run.rglob("*"):
            if path.is_file():
                (run / str(path.relative_to(finished_run))).write(path.read_bytes())
        exported = export(str(run), 2, "safetensors")
        local = export(finished_run, 2, "safetensors", finished_run.parent / "local.safetensors")
        assert str(exported.path) == "s3://exports/run/export/member-2.safetensors"
        assert exported.path.read_bytes() == local.path.read_bytes(), (
            "and the same run gives the same bytes"
        )
        assert "observations of its data" in exported.card.read_text()


def test_the_command(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        str(finished_run),
        "--member",
        "1",
        "--format",
        "torchscript",
        "--out",
        str(tmp_path / "p.pt"),
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'p.pt'}\n"
    assert cli.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("max_difference") < 1e-6
    card = str(tmp_path / "p.pt.md")
    assert said == {
        "path": str(tmp_path / "p.pt"),
        "card": card,
        "format": "torchscript",
        "member": 1,
        "updates": 330,
        "algorithm": said["algorithm"],
        "chosen_by": None,
    }
    assert said["algorithm"].startswith("CQL with conservative weight ")
    assert cli.main(["export", str(finished_run), "--format", "h5"]) == 2
    assert "there is no format 'h5'" in capsys.readouterr().err


def test_a_run_notes_at_its_start_what_export_and_resume_need(
    finished_run: Path, copied_run: Path
) -> None:
    """Its observations' layout, so that no environment is made, and that it was made here."""
    run = RunDirectory.open(finished_run)
    assert run.manifest()["observation_layout"] == []
    assert trusted_config(run, False).env.id == "tests.toy_envs:Point-v0"
    config = copied_run / "config.yaml"
    config.write_text(config.read_text().replace("tests.toy_envs:Point-v0", "evil_mod:Evil-v0"))
    with pytest.raises(UserError, match=r"names the environment 'evil_mod:Evil-v0' and was not"):
        trusted_config(RunDirectory.open(copied_run), False)
    assert Path(export(copied_run, 0, "safetensors").path).is_file()
