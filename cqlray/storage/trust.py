"""Whether a run's config may name the code that runs: an environment's module, and its arguments.

`my_package.module:Name-v0` makes gymnasium import that module. A run that came from elsewhere must
not cause that, so a run that begins is signed with a key that this user alone has. It proves that
the user named the environment, wherever the directory is moved or copied to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cqlray.config.load import load_config
from cqlray.config.schema import EnvConfig, RunConfig
from cqlray.errors import UserError
from cqlray.storage.run_directory import CONFIG, RunDirectory
from cqlray.storage.scratch import open_private

SIGNATURE = "environment_signature"  # its key in the manifest
_KEY_BYTES = 32


def names_module(identifier: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an environment's id names a module to import, or an argument does: Gymnasium's
    GymV26Environment-v0 passes its env_id on.
    """
    texts = [identifier, *(value for value in kwargs.values() if isinstance(value, str))]
    return any(":" in str(text) for text in texts)


def signature(run_id: str, env: EnvConfig) -> str | None:
    """What the manifest of this user's run holds; None where no module is named, or where there is
    no place for a key.
    """
    return _signed(run_id, env, make_key=True) if names_module(env.id, env.kwargs) else None


def trusted_config(directory: RunDirectory, trust: bool | str) -> RunConfig:
    """The config of a run whose environment is about to be made.

    Args:
        trust: the id of the environment, where the user named it; True to take the config's word.

    Raises:
        UserError: the environment's module is the config's word alone, or the user named another
            environment. And as load_config.
    """
    config = load_config(directory / CONFIG)
    env = config.env
    if isinstance(trust, str) and trust != env.id:
        raise UserError(f"{directory.path} is a run in {env.id!r}, not in {trust!r}")
    if trust or not names_module(env.id, env.kwargs) or _is_ours(directory, env):
        return config
    typed = shlex.quote(env.id) if env.id.isprintable() else "ID"
    arguments = f" with {env.kwargs}" if env.kwargs else ""
    raise UserError(
        f"{directory.path} names the environment {env.id!r}{arguments} and was not made here, and"
        f" no module is imported on a file's word: --env {typed} or --trust, where you know it"
    )


def _is_ours(directory: RunDirectory, env: EnvConfig) -> bool:
    manifest = directory.manifest()
    expected = _signed(str(manifest.get("id")), env, make_key=False)
    given = str(manifest.get(SIGNATURE)).encode()
    return expected is not None and hmac.compare_digest(expected.encode(), given)


def _signed(run_id: str, env: EnvConfig, make_key: bool) -> str | None:
    message = json.dumps([run_id, env.id, env.kwargs], sort_keys=True).encode()
    with suppress(OSError, RuntimeError):  # no home, or one that cannot be written to
        key = _key(make_key)
        if len(key) == _KEY_BYTES:
            return hmac.new(key, message, hashlib.sha256).hexdigest()
    return None


def key_file() -> Path:
    """Where this user's key is. Raises RuntimeError: the user has no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return folder / "cqlray" / "key"


def _key(make: bool) -> bytes:
    """This user's key, which nobody else can read; made where there is none."""
    file = key_file()
    if make and not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".key-{secrets.token_hex(8)}")
        with open(draft, "xb", opener=open_private) as opened:
            opened.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):  # another process was first: its key holds
            os.link(draft, file)
        draft.unlink()
    with open(file, "rb", opener=open_private) as opened:
        found = os.fstat(opened.fileno())
        private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
        return opened.read() if private else b""
