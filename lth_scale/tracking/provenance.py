"""What a run depends on beside its flags: written down when it begins, compared when it goes on.

Content is told by SHA-256, so a file that is touched, copied or moved is the same. What a run did not write down is not
known, and never counts as different. Nothing here imports torch: other content is refused as soon as other flags are.
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
from lth_scale.tasks.locations import SPLITS, data_file, embedded_path, local_directory

Digests = dict[str, dict[str, str]]  # what it is about → name of a file → SHA-256
# What `from_pretrained` reads of a model beside its config.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The flag behind each key of `digests`.
FLAGS = {"model": "model_name_or_path", "tokenizer": "model_name_or_path", "data": "dataset_path"}
MOVED = {"ticket", "theta"}  # each a single file, of any name
# What round 0 of a search with --dense comes from; the ticket holds the digest of θᵢ.
DENSE = ("rounds/00/ticket.safetensors", "rounds/00/metrics.json")


def digests(args: Training) -> Digests:
    """The content of every file on this machine that a run of these flags reads. Raises BadInput."""
    found = content(args.task, args.model_name_or_path, args.dataset_path)
    for name in ("ticket", "theta"):
        if path := getattr(args, name, None):
            found[name] = _digests(name, [Path(path)])
    if dense := getattr(args, "dense", None):
        found["dense"] = _digests("dense", [Path(dense) / part for part in DENSE])
    return found


def content(task: str, model: str, dataset: str | None) -> Digests:
    """The content of a model, its tokenizer and the task's data, of those that are no names on the Hub.

    Raises BadInput where a file cannot be read.
    """
    found: Digests = {}
    if is_local(model):
        home = embedded_path("bert") if model == EMBEDDED else Path(model)
        for what, names in (
            ("model", ("config.json", *_weights(home))),
            ("tokenizer", listing.TOKENIZER),
        ):
            paths = (home / name for name in names)
            found[what] = _digests(
                what, (path for path in paths if os.path.lexists(path) and not path.is_dir())
            )
    if directory := local_directory(task, dataset):
        splits = SPLITS.get(task, ("train", "validation"))
        found["data"] = _digests(
            "data", filter(None, (data_file(directory, split) for split in splits))
        )
    return found


def _weights(home: Path) -> set[str]:
    """The names of a model's weights: one whole file, or else an index and the parts beside it that it names."""
    if os.path.lexists(home / WEIGHTS):
        return {WEIGHTS}
    try:
        parts = files.read_json(home / INDEX)["weight_map"].values()
        return {INDEX, *(part for part in parts if Path(part).name == part)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {INDEX}  # none, or a damaged one, as loading it will say


def _digests(what: str, paths: Iterable[Path]) -> dict[str, str]:
    try:
        return {path.name: files.sha256(path) for path in sorted(paths)}
    except OSError as problem:
        flag = FLAGS.get(what, what)
        raise BadInput(
            f"--{flag} {problem.filename}: cannot be read ({problem.strerror}); mend it"
        ) from None


def check_kinds(before: Mapping[str, Any]) -> None:
    """Raise TypeError where a fact in arguments.json is of another kind than was written."""
    for name, is_right in KINDS.items():
        if name in before and not is_right(before[name]):
            raise TypeError(f"{name} is of another kind")


def _is_map(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(is_right(each) for each in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


KINDS: dict[str, Callable[[Any], bool]] = {
    "digests": lambda value: _is_map(value, lambda each: _is_map(each, _is_text)),
    "revisions": lambda value: _is_map(value, _is_text),
    "versions": lambda value: _is_map(value, lambda each: each is None or _is_text(each)),
    "ladder": lambda value: (
        isinstance(value, list) and all(type(each) in (int, float) for each in value)
    ),
    "threads": lambda value: type(value) is int,
    "precision": _is_text,
    "base_sha256": _is_text,
    "matmul_precision": _is_text,
    "compile": lambda value: isinstance(value, str | dict),
}


def told_by_content(before: Mapping[str, Any], now: Digests) -> set[str]:
    """The flags of which both know the content: how the path to it is spelled makes no difference."""
    was = before.get("digests", {})
    return {FLAGS.get(what, what) for what in now if now[what] and was.get(what)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, each fact that both know and that is not the same. Threads and versions are not among them."""
    found: list[str] = []
    for name in now.keys() & before.keys() - SAID:
        tell = WORDS.get(name, _value)
        found += tell(name, before[name], now[name])
    return sorted(found)


def _value(name: str, was: Any, now: Any) -> Iterator[str]:
    if was != now:
        yield f"{name.replace('_', ' ')} was {was}, is {now}"


def _contents(name: str, was: Digests, now: Digests) -> Iterator[str]:
    for what in was.keys() & now.keys():
        if what in MOVED and sorted(was[what].values()) == sorted(now[what].values()):
            continue
        for file in was[what].keys() | now[what].keys():
            then, here = (_short(each[what].get(file)) for each in (was, now))
            if was[what].get(file) != now[what].get(file):
                yield f"--{FLAGS.get(what, what)}: {file} was {then}, is {here}"


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}…" if digest else "not there"


def _base(name: str, was: str, now: str) -> Iterator[str]:
    yield from _value("the sha256 of the base model's weights", f"{was[:12]}…", f"{now[:12]}…")


def _revisions(name: str, was: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for what in was.keys() & now.keys():
        yield from _value(f"--{FLAGS[what]}: the Hub's commit", was[what], now[what])


def _ladder(name: str, was: list[float], now: list[float]) -> Iterator[str]:
    for k, (then, here) in enumerate(zip_longest(was, now)):
        if then != here:
            yield f"the sparsity of round {k} was {then}, is {here}"
            return


# How the facts that are no plain values are told.
WORDS: dict[str, Callable[[str, Any, Any], Iterator[str]]] = {
    "digests": _contents,
    "revisions": _revisions,
    "ladder": _ladder,
    "base_sha256": _base,
}
SAID = {"threads", "versions"}


def news(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line on the versions and threads that a run goes on with, where they are others; else nothing."""
    was, here = before.get("versions", {}), now["versions"]
    others = [
        f"{name} {here[name]} (was {was[name]})"
        for name in was.keys() & here.keys()
        if was[name] and here[name] and was[name] != here[name]
    ]
    if before.get("threads", now["threads"]) != now["threads"]:
        others.append(f"{now['threads']} threads (was {before['threads']})")
    return [f"goes on with {', '.join(sorted(others))}: the last bits may differ"] if others else []


def unknown(before: Mapping[str, Any], now: Iterable[str]) -> list[str]:
    """A line on those facts that a run did not write down when it began; nothing where it wrote all of them."""
    names = [name.replace("_", " ") for name in now if name not in before]
    version = before.get("versions", {}).get("lth_scale")
    return (
        [f"not compared, as version {version} did not write them down: {', '.join(names)}"]
        if names
        else []
    )
