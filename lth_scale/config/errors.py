"""Errors of this package."""

AGAIN = "start the same command again: it goes on from what was written last"


class BadInput(ValueError):
    """Something the user gave cannot be used; the message names the flag, its value and the remedy."""


class Stopped(RuntimeError):
    """A command that ends before its work is done; what was written before it stands, and it can go on from there."""


class Diverged(Stopped):
    """A training whose loss is no number any more."""
