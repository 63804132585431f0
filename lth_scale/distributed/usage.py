"""System metrics of this machine."""

import contextlib
import os
import socket

import psutil
import torch
import torch.distributed as dist

from lth_scale.distributed.ranks import Ranks


def usage(ranks: Ranks) -> dict[str, float]:
    """What every node uses of its CPUs, memory and GPUs, by MLflow's names; call it on all ranks at once."""
    own = own_usage(int(os.environ.get("LOCAL_RANK", "0")))
    found: list[dict[str, float]] = [own] * ranks.everyone
    if ranks.everyone > 1:
        dist.all_gather_object(found, own, group=ranks.side)
    return {name: value for each in found for name, value in each.items()}


def own_usage(local: int) -> dict[str, float]:
    """This rank's share of the figures: its GPU, and where it is the node's first, CPUs since the last call, memory."""
    node, figures = f"system/{socket.gethostname()}", {}
    if local == 0:
        memory = psutil.virtual_memory()
        figures[f"{node}/cpu_utilization_percentage"] = psutil.cpu_percent()
        figures[f"{node}/system_memory_usage_megabytes"] = memory.used / 1e6
        figures[f"{node}/system_memory_usage_percentage"] = memory.percent
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        figures[f"{node}/gpu_{local}_memory_usage_megabytes"] = (whole - free) / 1e6
        with contextlib.suppress(
            Exception
        ):  # needs NVIDIA's library, whose errors are of many kinds
            figures[f"{node}/gpu_{local}_utilization_percentage"] = float(torch.cuda.utilization())
    return figures
