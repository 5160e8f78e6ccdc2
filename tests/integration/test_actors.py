"""Which cluster a run joins."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

JOIN = """
import ray
from cqlray.runtime.joining import connect
from cqlray.errors import UserError
try:
    with connect() as cluster:
        print("joined", ray.get_runtime_context().gcs_address, cluster.cpus)
except UserError as error:
    print("refused", error)
"""


def join(**environment: str) -> str:
    """What a process that connects in this environment prints."""
    mine = (
        "RAY_ADDRESS",
        "RAY_TMPDIR",
        *(name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if "HOME" in environment),
    )
    inherited = {name: value for name, value in os.environ.items() if name not in mine}
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()[-1]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_the_cluster_that_was_named_is_joined(ray_cluster: str) -> None:
    assert join(RAY_ADDRESS=ray_cluster) == f"joined {ray_cluster} 2.0"


def test_a_run_never_joins_what_another_run_started_for_itself(ray_cluster: str) -> None:
    """The session's cluster is such a one: it would take its guests along when it ends."""
    said = join()
    assert said.startswith("joined") and ray_cluster not in said


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    started = time.monotonic()
    assert (
        join(RAY_ADDRESS="127.0.0.1:9")
        == "refused RAY_ADDRESS '127.0.0.1:9': nothing listens there; is `ray start` running?"
    )
    assert time.monotonic() - started < 10


def test_a_cluster_that_wants_a_token_which_is_not_here_is_refused_in_a_line(
    ray_cluster: str, temporary: Path
) -> None:
    said = join(RAY_ADDRESS=ray_cluster, RAY_AUTH_MODE="token", HOME=str(temporary))
    assert said.startswith(
        f"refused RAY_ADDRESS '{ray_cluster}' cannot be joined: Token authentication is enabled"
        " but no"
    )
    assert said.endswith(
        "; if it is protected by a token, set RAY_AUTH_MODE=token and have the token here"
    )


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("http://127.0.0.1:8265", "cqlray submit --address http://127.0.0.1:8265 run"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS=HOST:6379"),
    ],
)
def test_addresses_of_other_kinds_are_refused_at_once_with_what_to_use(
    address: str, instead: str
) -> None:
    started = time.monotonic()
    said = join(RAY_ADDRESS=address)
    assert said.startswith(f"refused RAY_ADDRESS {address!r}") and instead in said
    assert time.monotonic() - started < 20


def test_what_a_dead_cluster_left_behind_does_not_hold_a_run_up(temporary: Path) -> None:
    (temporary / "ray").mkdir()
    (temporary / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    started = time.monotonic()
    assert join(RAY_TMPDIR=str(temporary)).startswith("joined")
    assert time.monotonic() - started < 30
