"""Stages: the trainings that a run records one by one, and their rows in metrics.json."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]  # metrics.json of a stage, and an entry of results.json
# In a row of a reference that is not pruned: the sparsity of the ticket beside which it stands
TICKET_SPARSITY = "ticket_sparsity"


@dataclass(frozen=True)
class Stage:
    """A round of a search, a control at the sparsity of a round, or one seed of a transfer.

    key: the field of metrics.json that holds `number`. Round 0 is the dense network.
    control: the control in place of the ticket, or `none`.
    """

    key: Literal["round", "seed"]
    number: int
    control: str = "none"

    @classmethod
    def round(cls, number: int, control: str = "none") -> "Stage":
        """A round of a search, or a control at the sparsity of that round."""
        return cls("round", number, control)

    @classmethod
    def seed(cls, seed: int, control: str = "none") -> "Stage":
        """One seed of a transfer."""
        return cls("seed", seed, control)

    @property
    def is_control(self) -> bool:
        """True for the control of a search, which is recorded beside the rounds."""
        return self.key == "round" and self.control != "none"

    @property
    def name(self) -> str:
        """The stage in logs and in MLflow: `round 03`, `random_mask 03` or `seed 01`."""
        return f"{self.control if self.is_control else self.key} {self.number:02d}"

    @property
    def path(self) -> Path:
        """The directory of the stage, relative to the run's."""
        group = f"controls/{self.control}" if self.is_control else f"{self.key}s"
        return Path(group, f"{self.number:02d}")

    @property
    def table(self) -> str:
        """The file in the run's directory that lists all stages of this kind."""
        return "controls.json" if self.is_control else "results.json"


def stage_of(row: Row) -> Stage:
    """The stage of a row of results.json."""
    return Stage.round(row["round"]) if "round" in row else Stage.seed(row["seed"])


def sparsity_beside(row: Row) -> float:
    """The sparsity at which figures and tables show a row: its own, or that of its ticket."""
    return float(row[TICKET_SPARSITY if TICKET_SPARSITY in row else "sparsity"])


def starved_rows(rows: Iterable[Row]) -> Iterator[tuple[str, int, str]]:
    """The key (`round` or `seed`), its number and `describe_starved` of each row that has it."""
    for row in rows:
        key = "seed" if "seed" in row else "round"
        if key in row and (description := describe_starved(row)):
            yield key, row[key], description


def has_constant_prediction(row: Row) -> bool:
    """True if the network of a row gave one prediction for all validation rows."""
    return row.get("constant_prediction") is True


def recorded_trivial(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The scores of trivial predictors, by predictor and metric, that the last row has.

    Empty in runs that an older version finished, and if they are damaged.
    """
    trivial = rows[-1].get("trivial") if rows else None
    if not isinstance(trivial, dict):
        return {}
    return {
        predictor: {
            metric: float(score)
            for metric, score in scores.items()
            if isinstance(score, int | float)
        }
        for predictor, scores in trivial.items()
        if isinstance(scores, dict)
    }


def recorded_training_rows(rows: Sequence[Row]) -> int | None:
    """The encoded training rows that the last row of results was trained on.

    None in runs that an older version finished, and if the number is damaged.
    """
    count = rows[-1].get("training_rows") if rows else None
    return count if type(count) is int and count > 0 else None


def describe_starved(row: Row) -> str:
    """Describe the matrices that keep fewer weights than they have outputs; empty if none does."""
    kept = row.get("starved")
    if not isinstance(kept, dict) or {*map(type, kept.values())} != {int}:
        return ""
    worst, others = min(kept, key=kept.__getitem__), len(kept) - 1
    more = ["", ", and so does 1 other matrix", f", and so do {others} other matrices"]
    return f"{worst} keeps {kept[worst]:,} weights, fewer than it has outputs{more[min(others, 2)]}"
