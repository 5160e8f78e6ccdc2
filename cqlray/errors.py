"""The errors that end in one clear line."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a config, a dataset, an environment or a command: what is wrong, where, what
    would be right.
    """


class NotShared(UserError):
    """A node does not have a directory that the others share; the run can do without that, its
    driver having it.
    """


class StorageFailure(UserError):
    """The disk is full, or the storage refuses or is away for good.

    What is there is whole and can be resumed.
    """


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM); what is on disk is whole and can be resumed."""


class EnvironmentFailure(Exception):
    """The user's environment raised: where (seed and step), and its own traceback as text."""

    def __init__(self, where: str, traceback_text: str) -> None:
        super().__init__(where, traceback_text)
        self.where = where
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"the environment raised an exception ({self.where}):\n{self.traceback_text}"


class ActorLost(Exception):
    """A process of the run cannot start, died again and again without progress, or failed; what is
    on disk can be resumed.
    """


class Lost(Exception):
    """A process of the run is gone, or what was on its node alone; whoever asked it decides what
    comes of that.
    """

    def __init__(self, what: str, of_argument: bool = False, for_good: bool = False) -> None:
        """`of_argument`: not who was asked, but something that it was given.

        `for_good`: Ray does not restart it.
        """
        super().__init__(what)
        self.of_argument, self.for_good = of_argument, for_good
