"""Errors that the user sees as one clear line."""

from __future__ import annotations


class UserError(Exception):
    """The user's mistake, as a message: what is wrong, where, and what would be right."""


class NotShared(UserError):
    """A node lacks a directory that the others share; the run can continue: the driver has it."""


class StorageFailure(UserError):
    """The disk is full, or the storage refuses access or stays unavailable.

    What was written is intact and can be resumed.
    """


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM); what is on disk is intact and can be resumed."""


class EnvironmentFailure(Exception):
    """The user's environment raised an error: where (seed and step), and its traceback as text."""

    def __init__(self, where: str, traceback_text: str) -> None:
        super().__init__(where, traceback_text)
        self.where = where
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"the environment raised an exception ({self.where}):\n{self.traceback_text}"


class ActorLost(Exception):
    """A process of the run cannot start, failed, or kept dying without progress; the run can be
    resumed.
    """


class Lost(Exception):
    """A process is gone, or data that only its node had; the caller decides what to do."""

    def __init__(self, what: str, of_argument: bool = False, for_good: bool = False) -> None:
        """`of_argument`: an argument is lost, not the process that was called.

        `for_good`: Ray does not restart the process.
        """
        super().__init__(what)
        self.of_argument, self.for_good = of_argument, for_good


class Hung(Lost):
    """A call took longer than the user allows, so its process was killed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, for_good=True)
