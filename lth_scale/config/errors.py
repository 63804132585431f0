"""Errors of this package."""

AGAIN = "run the same command again to resume from what was written last"


class BadInput(ValueError):
    """Invalid user input. The message is one line: the flag, its value and the remedy."""


class Stopped(RuntimeError):
    """A command stopped before its work was done. What it wrote is kept, and it can be resumed."""


class Diverged(Stopped):
    """The training loss is NaN or infinite."""
