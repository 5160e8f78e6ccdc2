"""Ray jobs: what differs inside one, and how `cqlray submit` starts and follows one.

Inside a job, the working directory is a copy that Ray deletes with the job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray.errors import UserError
from cqlray.runtime.address import listens
from cqlray.storage.locations import any_path

MISTAKE, FAILED, STOPPED = 2, 1, 130
_WHERE = "an absolute path on a disk that all nodes share, or s3://BUCKET/… or gs://BUCKET/…"


def inside_job() -> bool:
    """Whether this process is the driver of a Ray job, or was started by one."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def require_lasting(option: str, place: str | None) -> None:
    """Check that a place means the same outside the job and after it.

    Raises:
        UserError: it is missing, relative, or an address of an unknown kind.
    """
    if not place:
        raise UserError(
            f"a Ray job needs {option}: the working directory, where the default lies, goes with"
            f" it; give {_WHERE}"
        )
    path = any_path(place)
    if isinstance(path, Path) and not path.is_absolute():
        raise UserError(
            f"{option} {place} is relative, and the working directory goes with a Ray job; it"
            f" should be {_WHERE}"
        )


# From outside


def turn_on_token_mode() -> bool:
    """Turn on Ray's token mode if a token exists; returns whether that was necessary.

    Call this before importing ray, which reads the variable once.
    """
    home = Path.home() / ".ray" / "auth_token"
    has_token = (
        os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or home.is_file()
    )
    if "RAY_AUTH_MODE" in os.environ or not has_token:
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    return True


def connect(address: str | None) -> Any:
    """Connect Ray's job client to a cluster.

    Raises:
        UserError: nothing answers, it is not a Ray cluster, or it refuses the token.
    """
    # Ray lets these override --address; so would `ray job stop --address` later.
    named = next(
        (name for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if os.environ.get(name)), None
    )
    if address and named and os.environ[named] != address:
        raise UserError(
            f"{named} is {os.environ[named]}, which Ray takes in the place of --address {address};"
            " unset one"
        )
    address = os.environ[named] if named else address
    if address and not listens(address):
        raise UserError(
            f"no Ray cluster at {address}: nothing listens there; is the tunnel open, and `ray"
            " start` running?"
        )
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        # Not where they connect, what they upload, how they disconnected.
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        hint = (
            ""
            if address and "://" in address
            else "; --address http://HOST:8265 names one by its dashboard"
        )
        where = f"at {address}" if address else "on this machine"
        raise UserError(f"no Ray cluster to submit to {where}: {_reason(error)}{hint}") from error


def submit(client: Any, entrypoint: str, runtime_env: dict[str, Any], identity: str | None) -> str:
    """Submit a job; returns its id.

    Raises UserError: the id was used before, or Ray refuses the runtime_env.
    """
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint, runtime_env=runtime_env, submission_id=identity
            )
        )
    except Exception as error:
        if "already exists" in str(error):
            raise UserError(
                f"submission id {identity} was used before on this cluster; give another, or none"
            ) from None
        raise UserError(f"Ray refuses the job: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The one line of Ray's long message that gives the reason."""
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):
        if (mode := os.environ.get("RAY_AUTH_MODE", "not set")) != "token":
            return (
                f"it asks for a token, and RAY_AUTH_MODE is {mode}; set it to token, and have the"
                " token in ~/.ray/auth_token"
            )
        return (
            "it refuses the token that is here; have the head's in ~/.ray/auth_token,"
            " RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
        )
    lines = str(error).split("\n") if str(error) else [type(error).__name__]
    told = [line.strip() for line in lines if line.strip()]
    return told[-1] if "Traceback" in str(error) else " ".join(told)


@dataclass(frozen=True)
class Job:
    """A submitted job: its client, its id, and the commands to type about it."""

    client: Any
    identity: str
    address: str | None
    token_mode: str  # what to type before a ray command
    resume: str

    def ray(self, verb: str) -> str:
        """The ray command about this job."""
        address = ["--address", self.address] if self.address else []
        return self.token_mode + shlex.join(["ray", "job", *verb.split(), *address, self.identity])

    def explain(self, line: str) -> None:
        """Print a line, and what the user can do about the job."""
        rows = [
            ("see", self.ray("logs --follow")),
            ("stop", self.ray("stop")),
            ("resume", self.resume),
        ]
        _say("\n".join([line, *(f"  to {what + ' it':<10} {typed}" for what, typed in rows)]))

    def follow(self) -> int:
        """Print the log until the job ends, or Ctrl-C; the exit status."""
        import aiohttp

        # Not KeyboardInterrupt, which may come during asyncio's setup. This is the last thing that
        # the process does.
        left = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: left.set())
        self.explain(f"job {self.identity} is submitted")
        try:
            asyncio.run(self._print_log(left))
            while not (
                info := self.client.get_job_info(self.identity)
            ).status.is_terminal() and not left.wait(1.0):
                pass
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            self.explain(
                f"lost sight of job {self.identity}, which may well go on: {_reason(error)}"
            )
            return FAILED
        if left.is_set():
            self.explain(f"job {self.identity} goes on without you")
            return STOPPED
        return self.ended(str(info.status), info.driver_exit_code, str(info.message))

    async def _print_log(self, left: threading.Event) -> None:
        async def tail() -> None:
            async for lines in self.client.tail_job_logs(self.identity):
                print(lines, end="", flush=True)

        task = asyncio.create_task(tail())
        while not task.done() and not left.is_set():
            await asyncio.wait({task}, timeout=0.2)
        if task.done():
            task.result()

    def ended(self, status: str, code: int | None, message: str) -> int:
        """Print how the job ended and what to do now; returns the exit status.

        `code` is cqlray's exit status in the job, if cqlray got that far.
        """
        line = f"job {self.identity}: {status}"
        told = [row.strip() for row in message.splitlines() if row.strip()]
        # before cqlray began, or because the head or the job's process died
        if status == "FAILED" and code is None and told:
            line += f": {' … '.join(dict.fromkeys([told[0], told[-1]]))}"
        if status == "STOPPED" or (status == "FAILED" and code != MISTAKE):
            line += f"; a run that has begun goes on with: {self.resume}"
        _say(line)
        if status == "FAILED":
            return code if code in (MISTAKE, STOPPED) else FAILED
        return STOPPED if status == "STOPPED" else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
