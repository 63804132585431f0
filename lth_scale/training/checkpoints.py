"""Where a round stands between its first step and its last: written whole or not at all, and read only when whole.

`checkpoint-STEP/` holds a `rank-RRRRR.safetensors` of each rank (its masters, its moments, its generators), a
`checkpoint.json` with what is the same on all ranks and the SHA-256 of each, and `complete`, written last, with its.
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

from lth_scale.config import directories, files, listing
from lth_scale.config.errors import AGAIN, Stopped
from lth_scale.tracking import console
from lth_scale.training.networks import Network

FORMAT = "lth_scale.checkpoint/1"
FILES = ("complete", "checkpoint.json", "rank-" + 5 * "[0-9]" + ".safetensors")


def save(net: Network, home: Path, extras: Mapping[str, Tensor], seconds: float, keep: int) -> None:
    """Write `home`/checkpoint-STEP on all ranks and drop all but the last `keep`. Raises Stopped on all ranks.

    extras: flat tensors of this rank beside the network that decide the future; seconds: what the stage took so far.
    """
    path, main = home / f"checkpoint-{net.step}", net.accelerator.is_main_process
    unfinished = directories.temporary(path)
    if main:
        shutil.rmtree(unfinished, ignore_errors=True)
        directories.make_directory(unfinished)
    unfinished = Path(broadcast_object_list([str(unfinished)])[0])
    written: dict[str, str] = {}
    problems: list[str] = []
    for name, digest, problem in gather_object([_write(net, unfinished, extras)]):
        written[name] = digest
        problems += [f"{name}: {problem}"] if problem else []
    if problems:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Stopped(
            f"{home}: checkpoint-{net.step} could not be written ({problems[0]}); what was written before stands: free "
            f"some room, then {AGAIN}"
        )
    if main:
        _finish(unfinished, path, manifest(net) | {"seconds": seconds, "files": written})
        whole = [
            old for old in found(home) if step_of(old) <= net.step and (old / "complete").is_file()
        ]
        for old in whole[keep:]:
            remove(old)
    net.accelerator.wait_for_everyone()


def manifest(net: Network) -> dict[str, Any]:
    """What all ranks agree on. The first five must be those of the run that reads it."""
    ranks = net.accelerator.num_processes
    return {
        "format": FORMAT,
        "world_size": ranks,
        "sharding": net.engine.kind,
        "began": net.began,
        "seed": net.batches.args.seed,
        "step": net.step,
        "loss_scale": net.engine.loss_scale(),
    }


def _write(net: Network, directory: Path, extras: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """This rank's file: its name, its SHA-256, and what went wrong or nothing."""
    index = net.accelerator.process_index
    path = directory / f"rank-{index:05d}.safetensors"
    tensors = {f"extra/{name}": value.cpu() for name, value in extras.items()}
    tensors |= {"loss": net.losses.cpu(), "torch": torch.get_rng_state()}
    if net.accelerator.device.type != "cpu":
        tensors["device"] = torch.get_device_module(net.accelerator.device).get_rng_state()
    if net.engine.writer == index:
        tensors |= {f"state/{name}": value for name, value in net.engine.state().items()}
    kind, keys, *rest = numpy.random.get_state()
    generators = {"python": random.getstate(), "numpy": [kind, numpy.asarray(keys).tolist(), *rest]}
    try:
        save_file(tensors, path, {"generators": json.dumps(generators)})
        path.chmod(path.stat().st_mode & ~0o022)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return path.name, files.sha256(path), ""
    except Exception as problem:  # safetensors has errors of its own for a full disk; all ranks have to hear of any
        return path.name, "", str(problem)


def _finish(unfinished: Path, path: Path, agreed: dict[str, Any]) -> None:
    files.write_json(unfinished / "checkpoint.json", agreed)
    directories.sync_directory(unfinished)
    remove(path)
    directories.move_into(unfinished, path)
    files.write_bytes(path / "complete", files.sha256(path / "checkpoint.json").encode())


def found(home: Path) -> list[Path]:
    """The checkpoints of a stage, whole or not, that of the last step first."""
    paths = [
        path
        for path in home.glob("checkpoint-[0-9]*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    ]
    own = [path for path in paths if not path.is_symlink() and _is_ours(path)]
    return sorted(own, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name.removeprefix("checkpoint-"))


def _is_ours(path: Path) -> bool:
    """True for what `save` wrote, whole or not: one of its files says so, by its name or its content."""
    if any(path.glob(FILES[2])):
        return True
    try:
        texts = [(path / name).read_bytes()[:100] for name in FILES[:2] if (path / name).is_file()]
    except OSError:
        return False
    return any(FORMAT.encode() in text or re.fullmatch(rb"[0-9a-f]{64}", text) for text in texts)


def _names(path: Path) -> list[str]:
    """The files of a checkpoint, its mark first: what else lies in its directory is not ours."""
    return [name for form in FILES for name in sorted(file.name for file in path.glob(form))]


def remove(path: Path) -> None:
    """Delete a checkpoint so that what is left of it, should this be stopped, is not taken for one."""
    listing.remove_files(path, _names(path))


def resume(net: Network, home: Path) -> tuple[dict[str, Tensor], float] | None:
    """Put a restarted network where the newest whole checkpoint left it; return extras and seconds, or None.

    Call after `training.restart` with the same weights and masks. A checkpoint that cannot be used is named on stderr
    with the reason, and the one before it is tried; without any, the stage stays at its start.
    """
    names = [[path.name for path in found(home)]]
    for name in broadcast_object_list(names)[0]:
        problem = next(filter(None, gather_object([_problem(net, home / name)])), "")
        if not problem:
            return _take(net, home / name)
        if net.accelerator.is_main_process:
            console.say(f"{home / name} is left out: {problem}")
    if names[0] and net.accelerator.is_main_process:
        console.say(f"{home}: goes on from step {net.step}, where it starts on any number of ranks")
    return None


def _problem(net: Network, path: Path) -> str:
    """Why a checkpoint cannot be used here, as far as this rank can tell."""
    own = {
        f"rank-{index:05d}.safetensors"
        for index in (net.accelerator.process_index, net.engine.writer)
    }
    try:
        if not (path / "complete").is_file():
            return "it was not written to its end"
        if (path / "complete").read_bytes() != files.sha256(path / "checkpoint.json").encode():
            return "its checkpoint.json is damaged"
        agreed = files.read_json(path / "checkpoint.json")
        differ = [
            f"{name} was {agreed[name]}, is {now}"
            for name, now in [*manifest(net).items()][:5]
            if agreed[name] != now
        ]
        if differ:
            return "; ".join(differ)
        for name in sorted(own):
            if files.sha256(path / name) != agreed["files"][name]:
                return f"{name} is damaged"
        return "" if path.name == f"checkpoint-{agreed['step']}" else "its name is another's"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"it is damaged ({type(problem).__name__}: {problem})"


def _take(net: Network, path: Path) -> tuple[dict[str, Tensor], float]:
    agreed = files.read_json(path / "checkpoint.json")
    own = path / f"rank-{net.accelerator.process_index:05d}.safetensors"
    kept = load_file(path / f"rank-{net.engine.writer:05d}.safetensors")
    tensors = load_file(own)
    net.engine.load_state(_below("state/", kept))
    net.engine.sync()
    net.engine.load_loss_scale(agreed["loss_scale"])
    net.step, net.losses = agreed["step"], tensors["loss"].to(net.accelerator.device)
    with safe_open(own, framework="pt") as file:
        generators = json.loads(file.metadata()["generators"])
    version, keys, gauss = generators["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy.random.set_state(tuple(generators["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if net.accelerator.device.type != "cpu":
        torch.get_device_module(net.accelerator.device).set_rng_state(tensors["device"])
    return _below("extra/", tensors), agreed["seconds"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
