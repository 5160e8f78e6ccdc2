"""Describe data that learners read from storage."""

from __future__ import annotations

from dataclasses import dataclass

from cqlray.data.dataset import DESCRIPTION
from cqlray.storage.locations import AnyPath, Location
from cqlray.storage.outbox import is_there, not_shared
from cqlray.storage.scratch import Scratch


@dataclass(frozen=True)
class StoredData:
    """A dataset that learners read from storage.

    One that exceeds memory has a `scratch` file, which one machine's learners make from the shards
    and share.
    """

    directory: AnyPath
    scratch: Scratch | None = None

    def require(self) -> None:
        """Raises NotShared unless this node has the directory."""
        description = self.directory / DESCRIPTION
        there = description.exists() if isinstance(description, Location) else is_there(description)
        if not there:
            raise not_shared(self.directory)
