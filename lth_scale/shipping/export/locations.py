"""Where an export comes from and goes to, and whether it is whole: all that needs no torch."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lth_scale.config import directories, files, run_files
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import HUB_NAME
from lth_scale.tasks.locations import embedded_path

MANIFEST, FORMAT, LARGEST = "export.json", "lth_scale.export/1", 2**20
WANTED = "give a search's --output_dir, a round of it, a directory of save_pretrained or a Hub name"


class Kind(NamedTuple):
    """A value of --format: its dtypes, the default first; the file of its weights; and what it is."""

    dtypes: tuple[str, ...]
    file: str
    about: str


KINDS = {
    "dense": Kind(("float32",), "model.safetensors", "exact zeros; any from_pretrained loads it"),
    "compact": Kind(
        ("float32", "float16"),
        "compact.safetensors",
        "a bit a weight, and the values: the smallest file",
    ),
    "csr": Kind(
        ("float32",),
        "csr.safetensors",
        "torch's sparse CSR tensors, for where nothing but torch is",
    ),
    "native": Kind(
        ("float32", "int8"),
        "native.safetensors",
        "the packed form of our CPU kernel: see docs/speed.md",
    ),
    "2:4": Kind(
        ("bfloat16", "float16"),
        "model.safetensors",
        "sparse tensor cores, for tickets of --pattern 2:4",
    ),
    "onnx": Kind(
        ("float32",),
        "model.onnx",
        "for ONNX Runtime; model.int8.onnx (dynamic int8) lies beside it",
    ),
}
TYPES = {
    "dtype": str,
    "architecture": str,
    "source": str,
    "source_sha256": str,
    "sparsity": float,
    "pruned": int,
    "prunable": int,
    "dense_bytes": int,
    "files": dict,
    "difference": dict,
    "sha256": str,
}


@dataclass(frozen=True)
class Place:
    """model: a directory, or a Hub name. ticket: the mask that its zeros must be, where it is known."""

    model: Path
    ticket: Path | None = None
    run: dict[str, Any] = field(default_factory=dict)


def locate(path: str) -> Place:
    """The network that a path means. Raises BadInput, naming it and what to give instead."""
    where = Path(path)
    if path == EMBEDDED:
        return Place(embedded_path("bert"))
    if not where.exists() and re.fullmatch(HUB_NAME, path, re.ASCII):
        return Place(where)
    if (where / MANIFEST).is_file():
        return Place(where)
    if (where / "rounds").is_dir():
        rounds = [
            stage
            for stage in run_files.stage_directories(where)
            if stage.parent == where / "rounds"
        ]
        kept = [stage for stage in rounds if (stage / "complete").is_file() and _has_network(stage)]
        if not kept:
            raise BadInput(
                f"{path}: no round of it is complete and has its network; let the search go on first"
            )
        return _of_round(max(kept, key=lambda each: int(each.name)))
    if (where / "seeds").is_dir() or where.absolute().parent.name == "seeds":
        kept = [
            where,
            *(
                stage
                for stage in run_files.stage_directories(where)
                if stage.parent == where / "seeds"
            ),
        ]
        for stage in filter(_has_network, kept):
            return _of_round(stage)
        raise BadInput(
            f"{path}: a transfer keeps its network with --keep_network alone; run it again with that, or "
            "give the --output_dir of a search (lth_scale.imp)"
        )
    if (where / "ticket.safetensors").is_file():
        return _of_round(where)
    if not (where / "config.json").is_file():
        what = "no model there (config.json is missing)" if where.exists() else "no such directory"
        raise BadInput(f"{path}: {what}; {WANTED}")
    return _whole(Place(where))


def _has_network(stage: Path) -> bool:
    return (stage / "model/config.json").is_file()


def _of_round(stage: Path) -> Place:
    if not _has_network(stage) or not (stage / "complete").is_file():
        raise BadInput(
            f"{stage}: has no network of a complete round: a search keeps that of its last alone; give the search, "
            "or train this ticket with lth_scale.transfer --ticket … --keep_network"
        )
    run, arguments = stage.absolute().parent.parent, {}
    if stage.absolute().parent.name in ("rounds", "seeds") and (run / "arguments.json").is_file():
        try:
            run_files.check_whole(run)
            arguments = files.read_json(run / "arguments.json")
        except ValueError as problem:
            raise BadInput(
                f"{run}: {problem}; put back a copy of it, or give another run"
            ) from None
    return _whole(Place(stage / "model", stage / "ticket.safetensors", arguments))


def _whole(place: Place) -> Place:
    try:
        files.check_model(place.model)
    except OSError as problem:
        raise BadInput(
            f"{problem.filename}: {problem.strerror}; put a file there, or {WANTED}"
        ) from None
    return place


def seal(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write export.json: `content`, the SHA-256 of every other file, and that of all this. Returns it."""
    paths = sorted(
        path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST
    )
    made = {
        **content,
        "files": {path.relative_to(directory).as_posix(): files.sha256(path) for path in paths},
    }
    made["sha256"] = hashlib.sha256(_text(made)).hexdigest()
    files.write_bytes(directory / MANIFEST, _text(made))
    return made


def opened(directory: Path) -> dict[str, Any]:
    """export.json of a whole export. Raises BadInput, naming the file that was changed, is cut or is missing.

    A card may be edited, or be gone.
    """
    made = manifest(directory)
    for name, digest in made["files"].items():
        if not is_card(name) and not is_whole(directory / name, digest):
            raise BadInput(
                f"{directory}/{name}: is missing or was changed since it was exported; export or copy again"
            )
    return made


def is_card(name: str) -> bool:
    """True for the files of a repository that people edit there."""
    return name == "README.md" or name.startswith(".eval_results/")


def is_whole(path: Path, digest: str) -> bool:
    """True where a file is there and has this SHA-256."""
    return path.is_file() and files.sha256(path) == digest


def manifest(directory: Path) -> dict[str, Any]:
    """export.json by itself, whose files are not read. Raises BadInput where it is damaged or missing."""
    try:
        path = directory / MANIFEST
        files.check_regular(path)
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        raw = path.read_bytes()
        made = json.loads(raw)
        _check(made, raw)
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{directory}/{MANIFEST}: not a whole {FORMAT} file ({problem}); export or copy again"
        ) from problem
    return made


def _check(made: Any, raw: bytes) -> None:
    if not isinstance(made, dict) or made.get("format") != FORMAT or made.get("kind") not in KINDS:
        raise ValueError("it is of another format or kind")
    if wrong := [key for key, kind in TYPES.items() if type(made.get(key)) is not kind]:
        raise ValueError(f"its {wrong[0]} cannot be")
    bare = {key: value for key, value in made.items() if key != "sha256"}
    if raw != _text(made) or hashlib.sha256(_text(bare)).hexdigest() != made["sha256"]:
        raise ValueError("it was changed since it was written: its sha256 differs")
    kind = KINDS[made["kind"]]
    if made["dtype"] not in kind.dtypes or not {"config.json", kind.file} <= made["files"].keys():
        raise ValueError("its dtype or files are not those of its kind")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in made["files"]):
        raise ValueError("it names files elsewhere")


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def is_taken(directory: Path) -> bool:
    """True where anything but an empty directory lies; a link is something. Raises BadInput where nothing can."""
    try:
        directory.exists()  # not where the name is too long
        directories.check_writable(directory.parent)
        empty = directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())
    except OSError as problem:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({problem.strerror}); give another"
        ) from None
    return os.path.lexists(directory) and not empty


def check_output(directory: Path, kind: str, dtype: str) -> dict[str, Any]:
    """What lies there already of this kind, or {}. Raises BadInput where something else does, or nothing can."""
    name = f"--output_dir {directory}"
    if not is_taken(directory):
        return {}
    if not (directory / MANIFEST).is_file():
        raise BadInput(f"{name}: is there already, and is no export; give another")
    made = opened(directory)
    if (made["kind"], made["dtype"]) != (kind, dtype):
        raise BadInput(
            f"{name}: holds another export ({made['kind']} in {made['dtype']}); give another"
        )
    return made
