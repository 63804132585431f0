"""Which files an output directory holds, and whether they are intact."""

import os
import shutil
from pathlib import Path

from lth_scale.config.directories import HELD
from lth_scale.config.files import check_regular, read_json

PREDICTIONS = "predictions.safetensors"  # of a stage; missing in runs that kept none
# The answers to the rows of --test_file: of a stage, a JSON list, and of a run.
TEST_ANSWERS, TEST_TABLE = "test_answers.json", "predictions.csv"
_STAGES = ("rounds/[0-9]*", "seeds/[0-9]*", "controls/*/[0-9]*")
_TENSORS = (
    *("ticket.safetensors", "theta.safetensors", "theta-[0-9]*.safetensors"),
    *("weights.safetensors", "model.safetensors", "model-*-of-*.safetensors"),
    PREDICTIONS,
)
_TABLES = ("results", "controls", "restarts", "test_answers")  # JSON lists
_METRICS = "sparsity pruned prunable threshold steps train_loss eval seconds"
_KEYS = {  # JSON objects, with at least these keys
    "metrics": {*_METRICS.split()},
    "arguments": {"task"},
    "connectivity": {"seeds", "barrier"},
}


def check_whole(run: Path) -> None:
    """Raise ValueError, naming the file, if one that a run resumes from is damaged or missing.

    Checks the type and keys of JSON, and that the header of safetensors fits the file's size; reads
    no tensor.
    """
    from safetensors import SafetensorError

    stages = stage_directories(run)
    complete = [stage for stage in stages if (stage / "complete").exists()]
    required = {
        stage / name for stage in complete for name in ("metrics.json", "ticket.safetensors")
    }
    required |= {run / "theta.safetensors"} if run / "rounds/00" in complete else set()
    required |= {run / "arguments.json"} if (run / "complete").is_file() else set()
    names = (*_TENSORS, *(f"{stem}.json" for stem in (*_KEYS, *_TABLES)))
    directories = (run, *stages, *(stage / "model" for stage in stages))
    existing = {path for folder in directories for name in names for path in folder.glob(name)}
    for path in sorted(required | existing):
        try:
            _check_file(path)
        except (OSError, ValueError, RecursionError, SafetensorError) as problem:
            if path not in required and not path.exists():
                continue  # just deleted, by a process that is about to end
            raise ValueError(f"{path.relative_to(run)} is damaged or missing ({problem})") from None


def _check_file(path: Path) -> None:
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        check_regular(path)
        with safe_open(path, framework="numpy"):
            return
    content = read_json(path)
    if not isinstance(content, list if path.stem in _TABLES else dict):
        raise ValueError("it holds JSON of another type")
    if isinstance(content, dict) and (missing := _KEYS.get(path.stem, set()) - content.keys()):
        raise ValueError(f"it has no {min(missing)}")


def stage_directories(run: Path) -> list[Path]:
    """The directories of a run's rounds, controls and seeds, but not copies such as `01-old`."""
    paths = [path for pattern in _STAGES for path in run.glob(pattern)]
    return [path for path in paths if path.name.isascii() and path.name.isdecimal()]


def find_link(run: Path) -> Path | None:
    """The first directory that a run writes to, other than its own, which is a link; or None."""
    parents = [run / name for name in ("rounds", "seeds", "controls", "figures", "connectivity")]
    stages = stage_directories(run)
    paths = (*parents, *run.glob("controls/*"), *stages, *(stage / "model" for stage in stages))
    return next(filter(Path.is_symlink, paths), None)


def delete_unfinished(run: Path) -> None:
    """Delete the temporary files that killed processes of a run left. Call while holding its lock.

    They have the run's mark and are where the run writes; links are not followed.
    """
    suffix = f".{HELD[run.resolve()].mark}.tmp"
    stages = stage_directories(run)
    checkpoints = (path for stage in stages for path in stage.glob("checkpoint-[0-9]*"))
    for directory in (run, run / "figures", run / "connectivity", *stages, *checkpoints):
        below = [path for path in (directory, *directory.parents) if run in path.parents]
        if not directory.is_dir() or any(path.is_symlink() for path in below):
            continue
        for entry in [*os.scandir(directory)]:
            is_unfinished = entry.name.startswith(".") and entry.name.endswith(suffix)
            if is_unfinished and not entry.is_symlink():
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
