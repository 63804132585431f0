"""What the results of a run depend on besides its flags: recorded at its start, compared later.

Files are compared by SHA-256, so a file that was touched, copied or moved is the same. A fact that
a run did not record never counts as different. Does not import torch, so that changed content is
refused as early as changed flags.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from lth_scale.config import files, manifest
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import is_local
from lth_scale.tasks.locations import data_file, embedded_path, files_of, local_directory
from lth_scale.tasks.registry import TASKS

Facts = Mapping[str, Any]  # of arguments.json, by name
Digests = dict[str, dict[str, str]]  # SHA-256 by input (a key of FLAGS) and file name
# What `from_pretrained` reads besides config.json.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The flag of each input, if its name differs.
FLAGS = {"model": "model_name_or_path", "tokenizer": "model_name_or_path", "data": "dataset_path"}
DATA_FILES = ("train_file", "validation_file", "test_file")
SINGLE_FILES = ("ticket", "theta", *DATA_FILES)  # may have any name
# What --dense starts from; the ticket holds the digest of θᵢ.
DENSE = ("rounds/00/ticket.safetensors", "rounds/00/metrics.json")
MAY_CHANGE = {"threads", "versions", "data"}  # what the data is follows from its digests


class Inputs(NamedTuple):
    """The flags of a run that name its model and its data."""

    task: str
    model_name_or_path: str
    dataset_path: str | None = None
    dataset_name: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None

    @classmethod
    def of(cls, args: Training) -> "Inputs":
        """Those of a run's flags."""
        return cls(*(getattr(args, name) for name in cls._fields))


def digests(args: Training) -> Digests:
    """Return the digests of all local files that a run reads. Raises BadInput."""
    inputs = input_digests(Inputs.of(args))
    flags = args.as_dict()
    for name in ("ticket", "theta"):
        if path := flags.get(name):
            inputs[name] = _digests(name, [Path(path)])
    if dense := flags.get("dense"):
        inputs["dense"] = _digests("dense", [Path(dense, file) for file in DENSE])
    return inputs


def input_digests(given: Inputs) -> Digests:
    """Return the digests of a local model, its tokenizer and local data; none of those on the Hub.

    Raises BadInput if a file cannot be read.
    """
    inputs: Digests = {}
    model = given.model_name_or_path
    if is_local(model):
        home = embedded_path("bert") if model == EMBEDDED else Path(model)
        names = {"model": ("config.json", *_weights(home)), "tokenizer": manifest.TOKENIZER}
        for name, candidates in names.items():
            paths = (home / file for file in candidates)
            present = (path for path in paths if os.path.lexists(path) and not path.is_dir())
            inputs[name] = _digests(name, present)
    if directory := local_directory(given.task, given.dataset_path):
        kind = TASKS[given.task]
        data = [data_file(directory, split) for split in kind.splits]
        if kind.is_of_own_data:
            data += files_of(directory).values()
        inputs["data"] = _digests("data", {path for path in data if path})
    for name in DATA_FILES:
        if path := getattr(given, name):
            inputs[name] = _digests(name, [Path(path)])
    if given.dataset_name and Path(given.dataset_name).is_dir():
        saved = (path for path in Path(given.dataset_name).rglob("*") if path.is_file())
        inputs["dataset_name"] = _digests("dataset_name", saved, Path(given.dataset_name))
    return inputs


def _weights(home: Path) -> set[str]:
    """Return the names of a model's weights: one file, or an index and the shards it lists."""
    if os.path.lexists(home / WEIGHTS):
        return {WEIGHTS}
    try:
        shards = files.read_json(home / INDEX)["weight_map"].values()
        return {INDEX, *(shard for shard in shards if Path(shard).name == shard)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {INDEX}  # missing or damaged: loading reports it


def _digests(name: str, paths: Iterable[Path], home: Path | None = None) -> dict[str, str]:
    """Return the digests of files by name, or by path inside `home`. Raises BadInput."""
    try:
        return {
            str(path.relative_to(home)) if home else path.name: files.sha256(path)
            for path in sorted(paths)
        }
    except OSError as error:
        raise BadInput(
            f"--{_flag(name)} {error.filename}: cannot be read ({error.strerror}); use a readable "
            "file"
        ) from None


def _flag(name: str) -> str:
    return FLAGS.get(name, name)


def check_types(saved: Facts) -> None:
    """Raise TypeError if a fact in arguments.json has a type that is never written."""
    for name, is_valid in VALID.items():
        if name in saved and not is_valid(saved[name]):
            raise TypeError(f"{name} has an unexpected type")


def _is_map(value: Any, *types: type) -> bool:
    return isinstance(value, dict) and all(isinstance(item, types) for item in value.values())


VALID: dict[str, Callable[[Any], bool]] = {
    "digests": lambda value: _is_map(value, dict) and all(_is_map(v, str) for v in value.values()),
    "data": lambda value: isinstance(value, dict),
    "revisions": lambda value: _is_map(value, str),
    "versions": lambda value: _is_map(value, str, NoneType),
    "ladder": lambda value: isinstance(value, list) and {*map(type, value)} <= {int, float},
    "threads": lambda value: type(value) is int,
    "precision": lambda value: isinstance(value, str),
    "base_sha256": lambda value: isinstance(value, str),
    "matmul_precision": lambda value: isinstance(value, str),
    "compile": lambda value: isinstance(value, str | dict),
}


def flags_with_digests(saved: Facts, current: Digests) -> set[str]:
    """Return the flags whose content is known then and now: their paths may differ."""
    known = saved.get("digests", {})
    return {_flag(name) for name in current if current[name] and known.get(name)}


def differences(saved: Facts, current: Facts) -> list[str]:
    """Describe each fact that is known then and now and differs, except MAY_CHANGE."""
    return sorted(
        f"{part} was {then}, is {now}"
        for name in current.keys() & saved.keys() - MAY_CHANGE
        for part, then, now in _differing_parts(name, saved[name], current[name])
    )


def _differing_parts(name: str, then: Any, now: Any) -> Iterator[tuple[str, object, object]]:
    """Yield what differs in a fact, and its value then and now."""
    if name == "digests":
        for key in then.keys() & now.keys():
            old, new = then[key], now[key]
            if key in SINGLE_FILES and sorted(old.values()) == sorted(new.values()):
                continue
            for file in old.keys() | new.keys():
                if old.get(file) != new.get(file):
                    part = f"--{_flag(key)}: {file}"
                    yield part, _short(old.get(file)), _short(new.get(file))
    elif name == "revisions":
        for key in then.keys() & now.keys():
            if then[key] != now[key]:
                yield f"--{FLAGS[key]}: the commit on the Hub", then[key], now[key]
    elif name == "ladder":
        rounds = enumerate(zip_longest(then, now))
        differing = (
            (f"the sparsity of round {k}", old, new) for k, (old, new) in rounds if old != new
        )
        yield from islice(differing, 1)
    elif then != now:
        if name == "base_sha256":
            yield "the sha256 of the base model's weights", f"{then[:12]}…", f"{now[:12]}…"
        else:
            yield name.replace("_", " "), then, now


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}…" if digest else "missing"


def changes(saved: Facts, current: Facts) -> list[str]:
    """Describe versions and threads that changed, in one line or none."""
    then, now = saved.get("versions", {}), current["versions"]
    parts = [
        f"{name} {now[name]} (was {then[name]})"
        for name in then.keys() & now.keys()
        if then[name] and now[name] and then[name] != now[name]
    ]
    threads = current["threads"]
    if saved.get("threads", threads) != threads:
        parts.append(f"{threads} threads (was {saved['threads']})")
    text = f"continues with {', '.join(sorted(parts))}: results may differ in the last bits"
    return [text] if parts else []


def not_recorded(saved: Facts, names: Iterable[str]) -> list[str]:
    """Describe the facts that a run did not record when it began, in one line or none."""
    missing = ", ".join(name.replace("_", " ") for name in names if name not in saved)
    version = saved.get("versions", {}).get("lth_scale")
    text = f"not compared, because version {version} did not record it: {missing}"
    return [text] if missing else []
