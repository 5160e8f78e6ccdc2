"""The exit statuses of `cqlray`, and the line on stderr that goes with all but 0."""

from __future__ import annotations

import sys

from cqlray.config.secrets import masked, printable

MISTAKE, INTERRUPTED, FAILURE, NO_RUN = 2, 130, 1, 3


def complain(line: str, status: int) -> int:
    """Print the line, without secrets and control characters; return the status."""
    print(f"cqlray: {printable(masked(line))}", file=sys.stderr)
    return status
