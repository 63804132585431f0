"""Which files an output directory holds, and whether they are whole."""

import os
import shutil
from pathlib import Path

from lth_scale.config.files import check_regular, read_json
from lth_scale.config.locks import CLAIMED

ROOMS = ("rounds/[0-9]*", "seeds/[0-9]*", "controls/*/[0-9]*")
TENSORS = (
    *("ticket.safetensors", "theta.safetensors", "theta-[0-9]*.safetensors", "weights.safetensors"),
    *("model.safetensors", "model-*-of-*.safetensors"),
)
TABLES = ("results", "controls")  # lists
KEYS = {  # objects, with these keys and others
    "metrics": {
        "sparsity",
        "pruned",
        "prunable",
        "threshold",
        "steps",
        "train_loss",
        "eval",
        "seconds",
    },
    "arguments": {"task"},
    "connectivity": {"seeds", "barrier"},
}


def check_whole(run: Path) -> None:
    """Raise ValueError, naming the file, where one that going on with a run reads is damaged or missing.

    JSON of the wrong kind, and safetensors whose header does not fit their size; looks at no tensor.
    """
    from safetensors import SafetensorError, safe_open

    homes = stages(run)
    done = [home for home in homes if (home / "complete").exists()]
    wanted = {home / name for home in done for name in ("metrics.json", "ticket.safetensors")}
    wanted |= {run / "theta.safetensors"} if run / "rounds/00" in done else set()
    wanted |= {run / "arguments.json"} if (run / "complete").is_file() else set()
    names = (*TENSORS, *(f"{stem}.json" for stem in (*KEYS, *TABLES)))
    places = (run, *homes, *(home / "model" for home in homes))
    found = {path for place in places for name in names for path in place.glob(name)}
    for path in sorted(wanted | found):
        try:
            if path.suffix == ".safetensors":
                check_regular(path)
                with safe_open(path, framework="numpy"):
                    continue
            held = read_json(path)
            if not isinstance(held, list if path.stem in TABLES else dict):
                raise ValueError("it holds other JSON")
            if isinstance(held, dict) and (lost := KEYS.get(path.stem, set()) - held.keys()):
                raise ValueError(f"it has no {min(lost)}")
        except (OSError, ValueError, RecursionError, SafetensorError) as problem:
            if path not in wanted and not path.exists():
                continue  # just deleted, by a process that is about to end
            raise ValueError(f"{path.relative_to(run)} is damaged or missing ({problem})") from None


def stages(run: Path) -> list[Path]:
    """The directories of a run's rounds, controls and seeds; a copy of one, such as `01-old`, is none."""
    paths = [path for room in ROOMS for path in run.glob(room)]
    return [path for path in paths if path.name.isascii() and path.name.isdecimal()]


def link_in(run: Path) -> Path | None:
    """The first directory below a run's that is a link, of those that it writes to; None where there is none."""
    rooms = [run / name for name in ("rounds", "seeds", "controls", "figures", "connectivity")]
    homes = stages(run)
    places = (*rooms, *run.glob("controls/*"), *homes, *(home / "model" for home in homes))
    return next(filter(Path.is_symlink, places), None)


def sweep(directory: Path) -> None:
    """Delete what processes of this run that were killed had not finished writing. Call under a claim.

    That is what carries the run's mark, in the places where the run writes, and not behind a link.
    """
    mark = CLAIMED[directory.resolve()].mark
    homes = stages(directory)
    checkpoints = [path for home in homes for path in home.glob("checkpoint-[0-9]*")]
    for place in (
        directory,
        directory / "figures",
        directory / "connectivity",
        *homes,
        *checkpoints,
    ):
        below = [path for path in (place, *place.parents) if directory in path.parents]
        if not place.is_dir() or any(path.is_symlink() for path in below):
            continue
        for entry in [*os.scandir(place)]:
            if (
                not (entry.name.startswith(".") and entry.name.endswith(f".{mark}.tmp"))
                or entry.is_symlink()
            ):
                continue
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
