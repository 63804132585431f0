"""Linear mode connectivity: two data orders trained from one start, and the line between them.

Frankle et al. 2020 (arXiv:1912.05671), section 2.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lth_scale.config import files
from lth_scale.pruning.subnetwork import Subnetwork
from lth_scale.training import evaluation, loop, networks, optimizers
from lth_scale.training.networks import Network, Weights

PATH_POINTS = 11  # including the ends


def connect(net: Network, start: Subnetwork, first: int, second: int, run: Path) -> None:
    """Train the data orders of two seeds from one start, and write connectivity.json in `run`.

    It holds the scores on the straight line between the two networks, and the barrier.
    """
    ends = [trained_end(net, start, seed, run / "connectivity") for seed in (first, second)]
    path = []
    for point in range(PATH_POINTS):
        share = point / (PATH_POINTS - 1)
        weights = {
            name: torch.lerp(weight, ends[1][name], share) for name, weight in ends[0].items()
        }
        networks.restart(net, weights, start.masks, 0, first)
        path.append({"share": share, "eval": evaluation.evaluate(net)})
    if net.accelerator.is_main_process:
        files.write_json(run / "connectivity.json", connectivity([first, second], path))


def trained_end(net: Network, start: Subnetwork, seed: int, directory: Path) -> Weights:
    """Return the weights after training with a seed's data order, which are kept in `directory`."""
    path = directory / f"{seed:02d}.safetensors"
    if not path.is_file():
        net = networks.with_seed(net, seed)
        networks.restart(net, start.weights, start.masks, 0, seed)
        rate = optimizers.learning_rates(net.args, net.steps)
        loop.train(net, net.steps, rate, lambda step, loss: None)
        weights = net.engine.full_weights()
        if net.accelerator.is_main_process:
            files.write_tensors(path, weights)
    net.accelerator.wait_for_everyone()
    return load_file(path)


def connectivity(seeds: list[int], path: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of connectivity.json. The task's first metric gives the barrier."""
    scores = [next(iter(point["eval"].values())) for point in path]
    return {"seeds": seeds, "barrier": barrier(scores), "path": path}


def barrier(scores: list[float]) -> float:
    """Return the mean of the first and last scores minus the lowest (of errors, in the paper)."""
    return (scores[0] + scores[-1]) / 2 - min(scores)
