"""`cqlray submit` up to the cluster: what it refuses, what it sends.

The rest is in tests/nightly/distributed/test_jobs.py.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from cqlray.cli import submit
from cqlray.cli.main import main
from cqlray.errors import UserError
from cqlray.runtime import jobs
from tests.unit.cli.test_main import mistake


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nothing listens: who is told that got past all other checks."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class OtherServer(SimpleHTTPRequestHandler):
    """A web server that knows nothing of Ray."""

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Someone's, in a directory of their own, without a token and far from any cluster."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def options_of(*words: str) -> argparse.Namespace:
    return submit._parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "submit: a job is one of submit run, submit train, submit collect, submit resume"),
        ("report /x", "submit report: a job is one of submit run"),
        ("--adress x run", "submit: unrecognized arguments: --adress"),
        (
            "run",
            (
                "a Ray job needs --out: the working directory, where the default lies, goes with"
                " it; give an absolute path on"
            ),
        ),
        (
            "run --out runs/x",
            (
                "--out runs/x is relative, and the working directory goes with a Ray job; it should"
                " be an absolute"
            ),
        ),
        ("collect --out ~x", "--out ~x is relative"),
        ("run --out ftp://a/b", "ftp:// is not known here"),
        (
            "run --out /x --cql.batch-sise 3",
            "command line: unknown option --cql.batch-sise; did you mean --cql.batch-size",
        ),
        (
            "run --out /x --cql.batch-size -3",
            "command line: cql.batch_size is -3; it must be at least 1",
        ),
        ("run --out /x --config c.yaml", "c.yaml: no such file"),
        ("train --out /x", "train needs --dataset DIRECTORY"),
        ("train --out /x --dataset logs.csv", "--dataset logs.csv is relative"),
        ("resume", "submit resume: the following arguments are required: RUN"),
        ("resume runs/x", "RUN runs/x is relative"),
        ("resume /x --seed 3", "submit resume: unrecognized arguments: --seed 3"),
        ("--stop-wait 0 resume /x", "submit: --stop-wait is 0; it must be at least 1"),
        ("--stop-wait soon resume /x", "submit: argument --stop-wait: invalid int value: 'soon'"),
        ("--working-dir src resume /x", "submit: --working-dir src: no such directory"),
        ("--runtime-env-json {x resume /x", "submit: --runtime-env-json is not JSON: "),
        ("--runtime-env-json [] resume /x", "submit: --runtime-env-json must be an object"),
        (
            '--runtime-env-json {"env_vars":3} resume /x',
            "submit: --runtime-env-json must be an object",
        ),
        (
            '--runtime-env-json {"env_vars":{"AWS_SECRET_ACCESS_KEY":"x"}} resume /x',
            "submit: env_vars has AWS_SECRET_ACCESS_KEY",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], nowhere: str, words: str, said: str
) -> None:
    assert mistake(capsys, "submit", "--address", nowhere, *words.split()).startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        "run --out /x --num-seeds 3",
        "-- run --out=s3://bucket/x --json",
        "train --out gs://b/x --dataset /not/on/this/machine",
        "train --out /x --dataset minari:mujoco/hopper/expert-v0 --env Hopper-v5",
        "train --out /x --dataset s3://bucket/logs",
        "collect --out /x --episodes 3",
        "resume s3://bucket/x --json",
    ],
)
def test_good_commands_get_as_far_as_the_cluster(
    capsys: pytest.CaptureFixture[str], nowhere: str, words: str
) -> None:
    said = mistake(capsys, "submit", "--address", nowhere, *words.split())
    assert (
        said == f"no Ray cluster at {nowhere}: nothing listens there; is the tunnel open, and `ray"
        " start` running?"
    )


@pytest.mark.parametrize(
    ("words", "trust"),
    [
        ("run --out /x", []),
        ("run --out /x --env my_pkg:My-v0", ["--env", "my_pkg:My-v0"]),
        ("resume /x", []),
        ("resume /x --env my_pkg:My-v0", ["--env", "my_pkg:My-v0"]),
        ("resume --trust /x", ["--trust"]),
    ],
)
def test_a_job_that_resumes_elsewhere_says_again_whose_module_is_trusted(
    words: str, trust: list[str]
) -> None:
    assert submit._checked(words.split()).trust == trust


def test_addresses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    words = ["resume", "/x"]
    assert mistake(capsys, "submit", "--address", "http://a:port", *words).startswith(
        "no Ray cluster to submit to at http://a:port"
    )
    with HTTPServer(("127.0.0.1", 0), OtherServer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}"
        said = mistake(capsys, "submit", "--address", address, *words).splitlines()[-1]
        other.shutdown()
    assert f"no Ray cluster to submit to at {address}: Version check returned 404" in said
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    assert mistake(capsys, "submit", *words).startswith(f"no Ray cluster at {nowhere}: ")
    said = mistake(capsys, "submit", "--address", "http://b:1", *words)
    assert (
        said == f"RAY_ADDRESS is {nowhere}, which Ray takes in the place of --address http://b:1;"
        " unset one"
    )


def test_the_runtime_environment_is_what_was_asked_for(tmp_path: Path) -> None:
    assert submit._runtime_env(options_of()) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    given = {
        "pip": ["x"],
        "working_dir": "/a",
        "env_vars": {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "5"},
    }
    options = options_of(
        "--stop-wait", "9", "--working-dir", str(tmp_path), "--runtime-env-json", json.dumps(given)
    )
    assert submit._runtime_env(options) == {**given, "working_dir": str(tmp_path)}
    assert submit._runtime_env(options_of("--stop-wait", "9"))["env_vars"] == {
        "RAY_JOB_STOP_WAIT_TIME_S": "9"
    }


@pytest.mark.parametrize("typed", [["--config", "in/c.yaml"], ["--config=in/c.yaml"]])
def test_the_config_file_goes_along(tmp_path: Path, typed: list[str]) -> None:
    file = tmp_path / "in" / "c.yaml"
    file.parent.mkdir()
    file.write_text("seed: 3\n")
    folder = tmp_path / "empty"
    folder.mkdir()
    command = submit.Command(["run", "--json", *typed, "--out", "/x"], "/x", [], Path("in/c.yaml"))
    alone: dict[str, object] = {}
    assert submit._pack(command, alone, folder) == [
        "run",
        "--json",
        "--config",
        "c.yaml",
        "--out",
        "/x",
    ]
    assert alone == {"working_dir": str(folder)}
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        ("c.yaml", "seed: 3\n")
    ], "and nothing else"

    within = submit._pack(command, {"working_dir": "."}, folder)
    assert within == ["run", "--json", "--config", "in/c.yaml", "--out", "/x"]
    for outside in (str(folder), "s3://bucket/code.zip"):
        with pytest.raises(UserError, match=r"--config in/c\.yaml: not in the working directory"):
            submit._pack(command, {"working_dir": outside}, tmp_path / "another")


def test_token_mode_is_turned_on_where_a_token_lies_and_nothing_else_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not jobs.turn_on_token_mode()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert not jobs.turn_on_token_mode(), "there is no token"
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not jobs.turn_on_token_mode(), "someone said otherwise"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert jobs.turn_on_token_mode()
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("status", "code", "exit_status", "said"),
    [
        ("SUCCEEDED", 0, 0, "job a: SUCCEEDED"),
        (
            "STOPPED",
            None,
            130,
            "job a: STOPPED; a run that has begun goes on with: cqlray submit resume /x",
        ),
        (
            "FAILED",
            1,
            1,
            "job a: FAILED; a run that has begun goes on with: cqlray submit resume /x",
        ),
        ("FAILED", 2, 2, "job a: FAILED"),
        (
            "FAILED",
            130,
            130,
            "job a: FAILED; a run that has begun goes on with: cqlray submit resume /x",
        ),
        (
            "FAILED",
            -9,
            1,
            "job a: FAILED; a run that has begun goes on with: cqlray submit resume /x",
        ),
        (
            "FAILED",
            None,
            1,
            (
                "job a: FAILED: no disk … Full; a run that has begun goes on with: cqlray submit"
                " resume /x"
            ),
        ),
    ],
)
def test_how_a_job_ended(
    capsys: pytest.CaptureFixture[str], status: str, code: int | None, exit_status: int, said: str
) -> None:
    job = jobs.Job(None, "a", None, "", "cqlray submit resume /x")
    message = "no disk\nTraceback:\n  File x\nFull\n"
    assert job.ended(status, code, message) == exit_status
    assert capsys.readouterr().err == said + "\n"


@pytest.mark.parametrize("message", ["", " \n"])
def test_a_job_that_failed_without_a_word(capsys: pytest.CaptureFixture[str], message: str) -> None:
    job = jobs.Job(None, "a", None, "", "cqlray submit resume /x")
    assert job.ended("FAILED", None, message) == 1
    assert (
        capsys.readouterr().err
        == "job a: FAILED; a run that has begun goes on with: cqlray submit resume /x\n"
    )


def runtime_env_of(**given: object) -> dict[str, object]:
    return submit._runtime_env(options_of("--runtime-env-json", json.dumps(given)))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "WANDB_API_KEY",
            "WANDB_APIKEY",
            "RAY_AUTH_TOKEN",
        ),
        *(
            "db_password",
            "PGPASSWORD",
            "PGPASSWD",
            "DB_PASS",
            "MYSQL_PWD",
            "SSH_PRIVATE_KEY",
            "SSH_PASSPHRASE",
            "SECRET",
        ),
        *(
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_CONNECTION_STRING",
            "GITHUBTOKEN",
            "DJANGO_SECRET_KEY",
            "deployPrivateKey",
        ),
    ],
)
def test_what_ray_would_show_to_all_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"env_vars has {name}, which Ray's dashboard would show"):
        runtime_env_of(env_vars={name: "x"})


def test_variables_that_are_no_secrets_pass() -> None:
    names = [
        "AWS_REGION",
        "TOKENIZERS_PARALLELISM",
        "RAY_AUTH_TOKEN_PATH",
        "AWS_SHARED_CREDENTIALS_FILE",
        "PGPASSFILE",
    ]
    names += [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "SSH_KEY_PATH",
        "PWD",
        "OLDPWD",
        "BYPASS",
        "COMPASS",
        "MONKEY",
        "RAY_AUTH_MODE",
    ]
    assert runtime_env_of(env_vars=dict.fromkeys(names, "x"))


HUNTER = "hunter2"  # a password that must not be seen


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"DATABASE_URL": f"postgres://me:{HUNTER}@db/x"}},
        {"env_vars": {"REDIS": f"redis://:{HUNTER}@db:6379/0"}},
        {"env_vars": {"PROXY": f"http://me:12{HUNTER}@proxy:3128"}},
        {"env_vars": {"STORE": f"s3://key:{HUNTER}/with/slashes@bucket/x"}},
        {"env_vars": {f"a//b:{HUNTER}@c": "x"}},
        {
            "pip": {
                "packages": ["x"],
                "pip_install_options": [f"--index-url=https://me:{HUNTER}@pypi.example/simple"],
            }
        },
        {"pip": [f"mine @ git+https://{HUNTER}@github.com/me/mine@v1"]},
        {"working_dir": f"https://me:{HUNTER}@host/code.zip"},
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(given: dict[str, object]) -> None:
    with pytest.raises(
        UserError, match="--runtime-env-json has an address with a password or token in it"
    ) as raised:
        runtime_env_of(**given)
    assert HUNTER not in str(raised.value)
    with pytest.raises(UserError, match="an address with a password"):  # JSON may write a slash so
        submit._runtime_env(options_of("--runtime-env-json", json.dumps(given).replace("/", "\\/")))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--out", f"s3://key:{HUNTER}@bucket/run"],
        ["train", "--out", "/x", f"--dataset=https://me:{HUNTER}@host/log.parquet"],
        ["run", "--out", "/x", "--env.kwargs", "server", f"http://me:{HUNTER}@host"],
        ["resume", f"s3://key:{HUNTER}@bucket/run"],
    ],
)
def test_a_password_in_the_command_is_refused_and_not_repeated(words: list[str]) -> None:
    with pytest.raises(
        UserError, match=f"^submit: {words[0]} has an address with a password or token in it"
    ) as raised:
        submit._checked(words)
    assert HUNTER not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "https://pypi.example:8080/simple/x@1.2",
            "git+ssh://git@github.com/me/mine@v1",
            "mine @ https://host/mine.whl",
        ),
        *(
            "http://127.0.0.1:3128",
            "git+https://${TOKEN}@github.com/me/mine",
            "https://${USER}:${PASSWORD}@pypi.example/simple",
        ),
        *("me@example.org", "s3://bucket/code@2.zip", "see //host/share, at 12:30 @home"),
    ],
)
def test_addresses_without_a_password_pass(text: str) -> None:
    assert runtime_env_of(env_vars={"X": text}, pip=[text])["pip"] == [text]


def test_to_resume_takes_the_options_along() -> None:
    options = options_of(
        "--address",
        "http://a:1",
        "--submission-id",
        "b",
        "--stop-wait",
        "9",
        "--no-wait",
        "resume",
        "/x",
    )
    assert submit._kept(options) == ["--address", "http://a:1", "--stop-wait", "9"]


def test_to_resume_does_not_repeat_what_env_vars_hold(
    capsys: pytest.CaptureFixture[str], nowhere: str
) -> None:
    given = {"pip": ["x"], "env_vars": {"LICENSE": HUNTER, "MODE": HUNTER}}
    typed = submit._kept(options_of("--runtime-env-json", json.dumps(given)))
    assert typed == [
        "--runtime-env-json",
        '{"pip": ["x"], "env_vars": {"LICENSE": ..., "MODE": ...}}',
    ]
    assert mistake(capsys, "submit", "--address", nowhere, *typed, "resume", "/x").startswith(
        "submit: --runtime-env-json is not JSON"
    )
    alone = submit._kept(options_of("--runtime-env-json", '{"pip": ["x"]}'))
    assert alone == ["--runtime-env-json", '{"pip": ["x"]}']
    assert submit._kept(options_of("--runtime-env-json", "{}")) == []


@pytest.mark.parametrize("words", [["run"], ["run", "--out", "runs/x"], ["collect", "--out", "x"]])
def test_inside_a_job_a_place_that_goes_with_it_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "the working directory" in mistake(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["submit", "--help"])
    assert "cqlray submit [OPTIONS] run|train|collect|resume ..." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["submit", "run", "--help"])
    assert "usage: cqlray run" in capsys.readouterr().out
