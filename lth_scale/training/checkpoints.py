"""Checkpoints within a round: written completely or not at all, and loaded only if intact.

`checkpoint-STEP/` holds one `rank-RRRRR.safetensors` per rank (its masters, moments and
generators), the manifest `checkpoint.json` with what all ranks share, and `complete`, written last,
with the digest of the manifest.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from lth_scale.config import directories, files, manifest
from lth_scale.config.errors import AGAIN, Stopped
from lth_scale.config.manifest import Manifest
from lth_scale.tracking import console
from lth_scale.training.networks import Network

FORMAT, MANIFEST = "lth_scale.checkpoint/1", "checkpoint.json"
FILES = ("complete", MANIFEST, "rank-" + 5 * "[0-9]" + ".safetensors")
# These facts, and the format, must be those of the run that loads the checkpoint.
FIXED = ("world_size", "sharding", "began", "seed")
Resumed = tuple[dict[str, Tensor], float]


def save(
    net: Network, directory: Path, state: Mapping[str, Tensor], seconds: float, keep: int
) -> None:
    """Write `directory`/checkpoint-STEP on all ranks and delete all but the last `keep`.

    state: this rank's tensors besides the network (flat). seconds: duration of the stage so far.
    Raises Stopped on all ranks if any cannot write.
    """
    path, is_main = directory / f"checkpoint-{net.step}", net.accelerator.is_main_process
    unfinished = files.temporary(path)
    if is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
        directories.make_directory(unfinished)
    unfinished = Path(broadcast_object_list([str(unfinished)])[0])
    written = gather_object([_write_rank(net, unfinished, state)])
    problems = [f"{name}: {problem}" for name, _, problem in written if problem]
    if problems:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Stopped(
            f"{directory}: checkpoint-{net.step} could not be written ({problems[0]}); earlier "
            f"checkpoints are kept: free some space, then {AGAIN}"
        )
    if is_main:
        digests = {name: digest for name, digest, _ in written}
        manifest = Manifest(FORMAT, digests, _shared_facts(net) | {"seconds": seconds})
        manifest.write(unfinished / MANIFEST)
        directories.sync(unfinished)
        remove(path)
        directories.move_into(unfinished, path)
        files.write_bytes(path / "complete", manifest.digest.encode())
        intact = [each for each in list_checkpoints(directory) if (each / "complete").is_file()]
        for old in [each for each in intact if _step_of(each) <= net.step][keep:]:
            remove(old)
    net.accelerator.wait_for_everyone()


def _shared_facts(net: Network) -> dict[str, Any]:
    return {
        "world_size": net.accelerator.num_processes,
        "sharding": net.engine.name,
        "began": net.first_step,
        "seed": net.batches.args.seed,
        "step": net.step,
        "loss_scale": net.engine.loss_scale(),
    }


def _write_rank(net: Network, directory: Path, state: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """Write this rank's file; return its name, its SHA-256 and the problem, if any."""
    rank, device = net.accelerator.process_index, net.accelerator.device
    path = directory / _rank_file(rank)
    tensors = {f"extra/{name}": value.cpu() for name, value in state.items()}
    tensors |= {"loss": net.loss_sum.cpu(), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        tensors["device"] = torch.get_device_module(device).get_rng_state()
    if net.engine.writer == rank:
        tensors |= {f"state/{name}": value for name, value in net.engine.state().items()}
    kind, keys, *rest = numpy.random.get_state()
    numpy_state = [kind, numpy.asarray(keys).tolist(), *rest]
    generators = json.dumps({"python": random.getstate(), "numpy": numpy_state})
    try:
        save_file(tensors, path, {"generators": generators})
        path.chmod(path.stat().st_mode & ~0o022)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return path.name, files.sha256(path), ""
    # safetensors has exceptions of its own for a full disk, and all ranks must learn of any.
    except Exception as problem:
        return path.name, "", str(problem)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a stage, intact or not, the one of the last step first."""
    paths = [
        path
        for path in directory.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name)
        and not path.is_symlink()
        and _is_checkpoint(path)
    ]
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _is_checkpoint(path: Path) -> bool:
    """Return True if `save` wrote the directory, by the name or the content of a file."""
    if any(path.glob(FILES[2])):
        return True
    try:
        starts = [(path / name).read_bytes()[:100] for name in FILES[:2] if (path / name).is_file()]
    except OSError:
        return False
    return any(
        FORMAT.encode() in start or re.fullmatch(rb"[0-9a-f]{64}", start) for start in starts
    )


def remove(path: Path) -> None:
    """Delete a checkpoint's files, `complete` first; files of others in its directory are kept."""
    manifest.remove_files(path, (file.name for form in FILES for file in sorted(path.glob(form))))


def remove_all(directory: Path) -> None:
    """Delete all checkpoints of a stage."""
    for path in list_checkpoints(directory):
        remove(path)


def resume(net: Network, directory: Path) -> Resumed | None:
    """Load the last intact checkpoint of a stage, after `networks.restart` of the same stage.

    Returns `state` and `seconds` as `save` was given them on this rank, or None if there is no
    checkpoint to load. One that is damaged or of another run is named on stderr with the reason.
    """
    names = broadcast_object_list([[path.name for path in list_checkpoints(directory)]])[0]
    for name in names:
        problem = next(filter(None, gather_object([_problem(net, directory / name)])), "")
        if not problem:
            return _load(net, directory / name)
        if net.accelerator.is_main_process:
            console.print_line(f"{directory / name} is skipped: {problem}")
    if names and net.accelerator.is_main_process:
        console.print_line(f"{directory}: no usable checkpoint; starts again from step {net.step}")
    return None


def _problem(net: Network, path: Path) -> str:
    """Return why this rank cannot load a checkpoint, or ""."""
    try:
        if not (path / "complete").is_file():
            return "it is incomplete"
        if (path / "complete").read_bytes() != files.sha256(path / MANIFEST).encode():
            return f"its {MANIFEST} is damaged"
        manifest = Manifest.read(path / MANIFEST, FORMAT)
        saved, own = manifest.facts, _shared_facts(net)
        if differ := [
            f"{key} was {saved[key]}, is {own[key]}" for key in FIXED if saved[key] != own[key]
        ]:
            return "; ".join(differ)
        ranks = sorted({net.accelerator.process_index, net.engine.writer})
        if damaged := manifest.first_damaged(path, map(_rank_file, ranks)):
            return f"{damaged} is damaged or missing"
        return "" if _step_of(path) == saved["step"] else "it was renamed"
    except ValueError as problem:
        return str(problem)
    except (OSError, KeyError, TypeError) as problem:
        return f"it is damaged ({type(problem).__name__}: {problem})"


def _load(net: Network, path: Path) -> Resumed:
    facts, device = Manifest.read(path / MANIFEST, FORMAT).facts, net.accelerator.device
    own_file = path / _rank_file(net.accelerator.process_index)
    tensors = load_file(own_file)
    net.engine.load_state(_below("state/", load_file(path / _rank_file(net.engine.writer))))
    net.engine.sync()
    net.engine.load_loss_scale(facts["loss_scale"])
    net.step, net.loss_sum = facts["step"], tensors["loss"].to(device)
    with safe_open(own_file, framework="pt") as file:
        generators = json.loads(file.metadata()["generators"])
    version, keys, gauss = generators["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy.random.set_state(tuple(generators["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(tensors["device"])
    return _below("extra/", tensors), facts["seconds"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
