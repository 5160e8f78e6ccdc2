"""Check whether a cluster answers at an address."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

SECONDS_TO_ANSWER = 5.0


def listens(address: str) -> bool:
    """Whether something answers at HOST:PORT or SCHEME://HOST:PORT; Ray would try for minutes.

    True for any other form of address: Ray decides about those.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname and parts.port and parts.scheme in ("", "http", "https", "ray"):
            place = (parts.hostname, parts.port)
            socket.create_connection(place, timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    except ValueError:  # no address at all
        return True
    return True
