"""Facts that a run depends on beside its flags: recorded at its start, compared later.

Files are identified by SHA-256, so a file that was touched, copied or moved is the same. A fact
that a run did not record never counts as different. Does not import torch, so that other content
is refused as early as other flags.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lth_scale.config import files, listing
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import is_local
from lth_scale.tasks.locations import data_file, embedded_path, local_directory
from lth_scale.tasks.registry import TASKS

Facts = Mapping[str, Any]  # of arguments.json, by name
Digests = dict[str, dict[str, str]]  # SHA-256 by input (a key of FLAGS) and file name
# What `from_pretrained` reads beside config.json.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The flag of each input, if its name differs.
FLAGS = {"model": "model_name_or_path", "tokenizer": "model_name_or_path", "data": "dataset_path"}
SINGLE_FILES = ("ticket", "theta")  # may have any name
# What --dense starts from; the ticket holds the digest of θᵢ.
DENSE = ("rounds/00/ticket.safetensors", "rounds/00/metrics.json")
MAY_CHANGE = {"threads", "versions"}


def digests(args: Training) -> Digests:
    """Return the digests of all local files that a run reads. Raises BadInput."""
    inputs = input_digests(args.task, args.model_name_or_path, args.dataset_path)
    flags = args.as_dict()
    for name in SINGLE_FILES:
        if path := flags.get(name):
            inputs[name] = _digests(name, [Path(path)])
    if dense := flags.get("dense"):
        inputs["dense"] = _digests("dense", [Path(dense, file) for file in DENSE])
    return inputs


def input_digests(task: str, model: str, dataset: str | None) -> Digests:
    """Return the digests of a local model, its tokenizer and local data; none of those on the Hub.

    Raises BadInput if a file cannot be read.
    """
    inputs: Digests = {}
    if is_local(model):
        home = embedded_path("bert") if model == EMBEDDED else Path(model)
        names = {"model": ("config.json", *_weights(home)), "tokenizer": listing.TOKENIZER}
        for name, candidates in names.items():
            paths = (home / file for file in candidates)
            present = (path for path in paths if os.path.lexists(path) and not path.is_dir())
            inputs[name] = _digests(name, present)
    if directory := local_directory(task, dataset):
        splits = TASKS[task].splits
        data = (data_file(directory, split) for split in splits)
        inputs["data"] = _digests("data", filter(None, data))
    return inputs


def _weights(home: Path) -> set[str]:
    """Return the names of a model's weights: one file, or an index and the shards it lists."""
    if os.path.lexists(home / WEIGHTS):
        return {WEIGHTS}
    try:
        shards = files.read_json(home / INDEX)["weight_map"].values()
        return {INDEX, *(shard for shard in shards if Path(shard).name == shard)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {INDEX}  # missing or damaged, as loading it will report


def _digests(name: str, paths: Iterable[Path]) -> dict[str, str]:
    try:
        return {path.name: files.sha256(path) for path in sorted(paths)}
    except OSError as error:
        flag = FLAGS.get(name, name)
        raise BadInput(
            f"--{flag} {error.filename}: cannot be read ({error.strerror}); use a readable file"
        ) from None


def check_types(saved: Facts) -> None:
    """Raise TypeError if a fact in arguments.json has a type that is never written."""
    for name, is_valid in VALID.items():
        if name in saved and not is_valid(saved[name]):
            raise TypeError(f"{name} has an unexpected type")


def _is_map(value: object, is_valid: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


VALID: dict[str, Callable[[object], bool]] = {
    "digests": lambda value: _is_map(value, lambda names: _is_map(names, _is_text)),
    "revisions": lambda value: _is_map(value, _is_text),
    "versions": lambda value: _is_map(value, lambda version: isinstance(version, str | None)),
    "ladder": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "threads": lambda value: type(value) is int,
    "precision": _is_text,
    "base_sha256": _is_text,
    "matmul_precision": _is_text,
    "compile": lambda value: isinstance(value, str | dict),
}


def flags_with_digests(saved: Facts, current: Digests) -> set[str]:
    """Return the flags whose content is known then and now: their paths need not be the same."""
    known = saved.get("digests", {})
    return {FLAGS.get(name, name) for name in current if current[name] and known.get(name)}


def differences(saved: Facts, current: Facts) -> list[str]:
    """Describe each fact that is known then and now and differs, but for MAY_CHANGE."""
    lines: list[str] = []
    for name in current.keys() & saved.keys() - MAY_CHANGE:
        compare = COMPARISONS.get(name, _compare_values)
        lines += compare(name, saved[name], current[name])
    return sorted(lines)


def _compare_values(name: str, then: object, now: object) -> Iterator[str]:
    if then != now:
        yield f"{name.replace('_', ' ')} was {then}, is {now}"


def _compare_digests(_: str, then: Digests, now: Digests) -> Iterator[str]:
    for name in then.keys() & now.keys():
        old, new = then[name], now[name]
        if name in SINGLE_FILES and sorted(old.values()) == sorted(new.values()):
            continue
        for file in old.keys() | new.keys():
            if old.get(file) != new.get(file):
                flag = FLAGS.get(name, name)
                yield f"--{flag}: {file} was {_short(old.get(file))}, is {_short(new.get(file))}"


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}…" if digest else "missing"


def _compare_bases(_: str, then: str, now: str) -> Iterator[str]:
    name = "the sha256 of the base model's weights"
    yield from _compare_values(name, f"{then[:12]}…", f"{now[:12]}…")


def _compare_revisions(_: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in then.keys() & now.keys():
        yield from _compare_values(f"--{FLAGS[name]}: the commit on the Hub", then[name], now[name])


def _compare_ladders(_: str, then: list[float], now: list[float]) -> Iterator[str]:
    for k, (old, new) in enumerate(zip_longest(then, now)):
        if old != new:
            yield f"the sparsity of round {k} was {old}, is {new}"
            return


# How facts that are no plain values are compared.
COMPARISONS: dict[str, Callable[[str, Any, Any], Iterator[str]]] = {
    "digests": _compare_digests,
    "revisions": _compare_revisions,
    "ladder": _compare_ladders,
    "base_sha256": _compare_bases,
}


def changes(saved: Facts, current: Facts) -> list[str]:
    """Describe versions and threads that changed, in one line or none."""
    then, now = saved.get("versions", {}), current["versions"]
    lines = [
        f"{name} {now[name]} (was {then[name]})"
        for name in then.keys() & now.keys()
        if then[name] and now[name] and then[name] != now[name]
    ]
    threads = current["threads"]
    if saved.get("threads", threads) != threads:
        lines.append(f"{threads} threads (was {saved['threads']})")
    return (
        [f"continues with {', '.join(sorted(lines))}: results may differ in the last bits"]
        if lines
        else []
    )


def not_recorded(saved: Facts, names: Iterable[str]) -> list[str]:
    """Describe the facts that a run did not record when it began, in one line or none."""
    missing = [name.replace("_", " ") for name in names if name not in saved]
    version = saved.get("versions", {}).get("lth_scale")
    if not missing:
        return []
    return [f"not compared, because version {version} did not record it: {', '.join(missing)}"]
