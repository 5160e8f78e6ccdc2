"""`cqlray doctor`'s look at the storage, on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqlray.cli import doctor
from cqlray.cli import main as cli
from cqlray.config.schema import EnvConfig
from cqlray.storage.locations import AnyPath, Location
from tests.unit.storage.test_locations import Proxy, impatient, proxy, remote, server  # noqa: F401


def storage(out: AnyPath, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str]:
    """What is found of the storage; the rest of the examination takes its time, and a cluster."""
    for name in ("_packages", "_torch", "_environment", "_ray"):
        monkeypatch.setattr(doctor, name, lambda *_: "")
    ((good, found),) = [
        (good, found)
        for name, good, found in doctor.examine(EnvConfig("x"), out)
        if name == "storage"
    ]
    return good, found


def test_a_bucket_is_written_to_and_no_directory_of_its_name_is_made(
    remote: Location,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("_torch", "_environment", "_ray"):
        monkeypatch.setattr(doctor, name, lambda *_: "")
    (remote / "mine").write(b"x")
    assert cli.main(["doctor", "--out", str(remote)]) == 0
    assert (
        f"ok   storage      {remote} can be written, read and removed from\n"
        in capsys.readouterr().out
    )
    assert [place.name for place in remote.iterdir()] == ["mine"], (
        "what was there, and nothing of the trial"
    )
    assert {"PUT", "DELETE"} <= {method for method, _ in proxy.requests}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_bucket_that_refuses_is_said(
    method: str,
    remote: Location,  # noqa: F811
    proxy: Proxy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient(monkeypatch)
    proxy.only, proxy.share, proxy.status = method, 1.0, 403
    good, found = storage(remote, monkeypatch)
    assert not good
    assert found.startswith("s3://bucket: ACCESS_DENIED")


def test_a_bucket_that_is_not_there_is_said(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    good, found = storage(Location.parse("s3://no-such-bucket/x"), monkeypatch)
    assert not good
    assert found.startswith("s3://no-such-bucket: NO_SUCH_BUCKET")


def test_a_disk_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, found = storage(tmp_path / "runs", monkeypatch)
    assert good
    assert found.startswith(f"{tmp_path / 'runs'} can be written, read and removed from, ")
    assert found.endswith(" GiB free")
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").write_text("x")
    assert storage(tmp_path / "file", monkeypatch)[0] is False


def test_an_address_of_an_unknown_kind_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--out", "ftp://host/x"]) == 2
    assert "ftp:// is not known here" in capsys.readouterr().err
