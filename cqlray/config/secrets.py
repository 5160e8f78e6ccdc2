"""Keys and passwords in what a user types, and in what libraries say: refused where they would be
kept, masked where text is kept or shown all the same. The only place that says what is secret. And
control characters in what is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cqlray.errors import UserError

MASK = "***"
_NAME = re.compile(
    r"(.*[_-])?(passwords?|passwd|passphrase|pwd|secrets?|token|credentials?|sig|signature)"
    r"|.*(api|access|secret|private|session|auth|account)[_-]?(key|token)([_-]?id)?",
    re.IGNORECASE,
)
# Environment variables: …_PATH and …_FILE name the file that has the secret, and …_MODE says how it
# is used. KEY alone counts here, where an argument may be called sort_key.
_VARIABLE = re.compile(
    r".*(secrets?|token|password|passwd|passphrase|connection_string|(api|access|private)key|_pwd)"
    r"(_id)?|(.*_)?(pass|key)(_id)?",
    re.IGNORECASE,
)
# A secret's value is taken out of what libraries say; what is shorter may be a word of theirs.
_SHORTEST_VALUE = 8
# Whoever is named before `@` there is known by that alone; hdfs://USER@… and abfs://CONTAINER@…
# hold no secret.
_USER_IS_KEY = ("s3", "gs", "http", "https")
_ADDRESS = re.compile(r"\b[A-Za-z][\w+.-]*://[^\s\"'<>]+")
# USER:PASSWORD@, whose password may hold slashes; but not HOST:PORT/…@….
_PASSWORD = r'//[^/\s"@]*:(?!\d+/)[^\s"@]+@'

# Control characters, those that turn the direction of text, and halves of characters.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_secret(name: str) -> bool:
    """Whether an argument or parameter of this name holds a secret: api_key, password, hf_token."""
    return _NAME.fullmatch(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: HF_TOKEN, MYSQL_PWD, SSH_KEY."""
    return _VARIABLE.fullmatch(name) is not None


def has_key(address: str) -> bool:
    """Whether an address has a key or password in it: before `@`, or as a parameter behind `?`."""
    before, separator, rest = address.partition("://")
    if not separator:
        return False
    scheme = before.rpartition(":")[2].lower()
    place, _, query = rest.partition("?")
    host = place.partition("/")[0]
    user, at, _ = host.rpartition("@")
    colon = re.search(r":(?!\d*$)", host)  # a secret may hold a slash: KEY:SEC/RET@BUCKET
    if at and (scheme in _USER_IS_KEY or ":" in user):
        return True
    if colon and "@" in place:
        return True
    return any(is_secret(part.partition("=")[0]) for part in re.split("[&;]", query))


def has_key_within(text: str) -> bool:
    """Whether any address in a text has a key or password in it, other than ${NAME}, which pip
    replaces.
    """
    text = re.sub(r"(\$\{\w+\}:?)+@", "", text)
    if re.search(rf'{_PASSWORD}|https?://[^/\s":@]+@', text):
        return True
    return any(map(has_key, _ADDRESS.findall(text)))


def refuse_keys(address: str, what: str) -> None:
    """Raises UserError, which names no part of the address, where it has a key in it."""
    if has_key(address):
        raise UserError(f"{what}: {IN_ADDRESS}")


IN_ADDRESS = (
    "the address has a key or password in it; they belong in environment variables, such as"
    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


def masked(text: str) -> str:
    """The text without the addresses that have a key in them."""

    def shown(found: re.Match[str]) -> str:
        address = found[0]
        return f"{address.partition('://')[0]}://{MASK}" if has_key(address) else address

    return _ADDRESS.sub(shown, text)


def printable(text: str) -> str:
    """The text with its control characters escaped, line breaks and tabs apart: data's names are
    not to move a terminal's cursor or change its colours.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """What a library says, on one line, without the values of secret environment variables and
    without what stands before `@` in its addresses.
    """
    text = " ".join(text.split())
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_VALUE and is_secret_variable(name):
            text = text.replace(value, MASK)
    return re.sub(rf"{_PASSWORD}|//[^/@\s]*@", f"//{MASK}@", text)


def masked_words(words: Sequence[str]) -> list[str]:
    """A command's words, without addresses that have a key and without the values of arguments
    that look secret: NAME=VALUE, --NAME VALUE.
    """
    kept: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        before = kept[-1] if kept else ""
        if equals and _is_secret_option(name):
            kept.append(f"{name}={MASK}")
        elif before.startswith("-") and "=" not in before and _is_secret_option(before):
            kept.append(MASK)
        else:
            kept.append(masked(word))
    return kept


def _is_secret_option(name: str) -> bool:
    return is_secret(name.lstrip("-").rpartition(".")[2])


def masked_values(value: Any, name: str = "") -> Any:
    """Metadata, without texts whose name looks secret and addresses that have a key."""
    if isinstance(value, Mapping):
        return {key: masked_values(below, str(key)) for key, below in value.items()}
    if isinstance(value, list):
        return [masked_values(below) for below in value]
    if not isinstance(value, str):
        return value
    return MASK if value and is_secret(name) else masked(value)
