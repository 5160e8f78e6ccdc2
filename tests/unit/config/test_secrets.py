"""Keys in addresses and arguments: none is kept, none is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cqlray.api.datasets import load_dataset
from cqlray.cli.main import main
from cqlray.config.load import validate
from cqlray.config.secrets import (
    has_key,
    has_key_within,
    is_secret,
    is_secret_variable,
    masked,
    masked_values,
    masked_words,
    without_secrets,
)
from cqlray.errors import UserError

KEY, SECRET = "AKIAIOSFODNN7", "wJalr/XUtnFEMI"
WITH_KEYS = [
    f"s3://{KEY}:{SECRET}@bucket/data",
    f"s3://{KEY}@bucket/data",
    f"gs://{KEY}@bucket/data",
    f"d4rl:s3://{KEY}:{SECRET}@bucket/data.hdf5",
    f"s3://bucket/data?region=x&access_key={KEY}&secret_key={SECRET}",
    f"s3://bucket/data?session_token={SECRET}",
    f"https://user:{SECRET}@host/data.csv",
    f"https://{KEY}@host/data.csv",
    f"hdfs://user:{SECRET}@host:8020/data",
    f"https://host/data.csv?X-Amz-Signature={SECRET}",
    f"https://host/data.csv?sv=1&sig={SECRET}",
]
WITHOUT = [
    "s3://bucket/data",
    "s3://bucket/a@b:c/data?region=eu-west-1&endpoint_override=localhost:9000",
    "hdfs://host:8020/data",
    "hdfs://user@host:8020/data",
    "abfs://container@account.dfs.core.windows.net/data",
    "http://localhost:9000:",
    "http://a:port",
    "s3://bucket:9000/data",
    "minari:mujoco/hopper/medium-v0",
    "d4rl:data.hdf5",
    "runs/a:b@c",
    "C:/data/log.csv",
]


def told(text: str) -> None:
    assert KEY not in text and SECRET not in text and SECRET.partition("/")[2] not in text


@pytest.mark.parametrize("address", WITH_KEYS)
def test_an_address_with_a_key_is_refused_everywhere_and_not_repeated(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for field in ("out", "dataset"):
        with pytest.raises(UserError) as raised:
            validate({field: address}, "my.yaml")
        assert str(raised.value).startswith(f"my.yaml: {field}: the address has a key or password")
        told(str(raised.value))
    with pytest.raises(UserError, match="key") as raised:
        load_dataset(address)
    told(str(raised.value))
    for words in (
        ["train", "--dataset", address],
        ["collect", "--out", address],
        ["dataset", "validate", address],
        ["dataset", "convert", address, "to"],
        ["dataset", "info", "there", address],
        ["train", address],
    ):
        assert main(words) == 2
        line = capsys.readouterr().err
        told(line)
        assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", WITHOUT)
def test_an_address_without_a_key_is_left_alone(address: str) -> None:
    assert not has_key(address) and not has_key_within(f"read {address}, then")
    assert masked(f"read {address}, then") == f"read {address}, then"
    validate({"dataset": address}, "my.yaml")


@pytest.mark.parametrize("address", WITH_KEYS)
def test_an_address_with_a_key_is_seen_amid_a_text(address: str) -> None:
    assert has_key_within(f'{{"pip": ["mine @ {address}"]}}')


def test_what_a_library_says_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "PGPASSWORD"):
        assert is_secret_variable(name)
        with monkeypatch.context() as patch:
            patch.setenv(name, SECRET)
            assert without_secrets(f"{SECRET} was\n refused") == "*** was refused"
    monkeypatch.setenv("SORT_KEY", "auto")
    monkeypatch.setenv("AWS_PROFILE", "a-profile")
    said = f"auto of a-profile at http://me:{SECRET}@host:9/x and gs://{KEY}@b"
    assert without_secrets(said) == "auto of a-profile at http://***@host:9/x and gs://***@b"


def test_an_argument_that_looks_secret_is_refused() -> None:
    """It would stand in config.yaml, which resume needs, and go out with the dataset."""
    for name in ("password", "api_key", "apikey", "hf_token", "client_secret", "AWS_SECRET_KEY"):
        with pytest.raises(UserError, match=rf"my\.yaml: env\.kwargs\.{name} looks like") as raised:
            validate({"env": {"kwargs": {name: SECRET}}}, "my.yaml")
        told(str(raised.value))
    harmless: dict[str, Any] = {"key_size": "3", "token": 3, "secret": "", "keyboard": "us"}
    validate({"env": {"kwargs": harmless}}, "my.yaml")
    assert not any(map(is_secret, ("key", "tokens", "monkey", "passive", "signal", "region")))


@pytest.mark.parametrize("address", WITH_KEYS)
def test_a_command_is_kept_without_its_secrets(address: str) -> None:
    words = ["my.py", address, f"--data={address}", "--api-key", SECRET, f"--token={SECRET}", "-v"]
    kept = masked_words([*words, "--env.kwargs", f"password={SECRET}", "g=5", "--seed", "3"])
    told(" ".join(kept))
    assert kept[3:6] == ["--api-key", "***", "--token=***"]
    assert kept[-4:] == ["password=***", "g=5", "--seed", "3"]


def test_metadata_of_others_is_masked() -> None:
    said = {"source": WITH_KEYS[0], "author": "A", "nested": [{"api_token": SECRET, "n": 3}]}
    shown = masked_values(said)
    told(repr(shown))
    assert shown == {"source": "s3://***", "author": "A", "nested": [{"api_token": "***", "n": 3}]}
