"""Tickets for MLflow's model registry. Does not import MLflow."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Registration:
    """The ticket of a task that matches under a rule, to be registered under that alias.

    base: the base model. text: the verdict in words. ticket: None if no ticket matches.
    """

    task: str
    base: str
    rule: str
    text: str
    ticket: Path | None
    seed: int
