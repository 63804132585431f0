"""The trainings of one stage that differ in their seeds, of which the best counts.

Their results are kept in `restarts.json` until the stage is complete, so that a stage that was
stopped goes on with the next training.
"""

from pathlib import Path

from lth_scale.config import files
from lth_scale.tasks.registry import metric_named
from lth_scale.tracking.stages import Row

FILE = "restarts.json"
# Between the seeds of a stage: wide, so that stages with seeds 1, 2, … share no training.
STRIDE = 1_000_000


def seeds(first: int, count: int) -> list[int]:
    """The seeds of a stage's trainings: `first`, and others at a distance."""
    return [(first + STRIDE * number) % 2**32 for number in range(count)]


def best(results: list[Row]) -> Row:
    """The result with the best primary score; the first of equals."""
    return max(results, key=_score)


def _score(result: Row) -> float:
    metric, score = next(iter(result["eval"].items()))
    return metric_named(metric).sign * float(score)


def read(stage: Path) -> list[Row]:
    """Read the results of the trainings that a stage has finished."""
    path = stage / FILE
    return files.read_json(path) if path.is_file() else []


def write(stage: Path, results: list[Row]) -> None:
    """Write the results of the trainings that a stage has finished."""
    files.write_json(stage / FILE, results)


def remove(stage: Path) -> None:
    """Delete the results of single trainings once the stage has them all."""
    (stage / FILE).unlink(missing_ok=True)
