"""System metrics of this machine."""

import contextlib
import os
import socket

import psutil
import torch


def system_metrics() -> dict[str, float]:
    """Return the use of this machine's CPUs, memory and GPUs, by MLflow's names.

    Called by one process of the machine, for the GPUs of all its ranks. CPU utilization is the mean
    since the last call.
    """
    memory = psutil.virtual_memory()
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    if torch.cuda.is_available():
        for index in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
            metrics |= _gpu_metrics(index)
    node = f"system/{socket.gethostname()}"
    return {f"{node}/{name}": value for name, value in metrics.items()}


def _gpu_metrics(index: int) -> dict[str, float]:
    """Return the use of a GPU by all processes.

    Read by NVML, because the CUDA runtime would allocate a context on the GPU of another rank;
    without NVML, only the memory of this process's GPU is known.
    """
    metrics: dict[str, float] = {}
    if index == torch.cuda.current_device():
        free, total = torch.cuda.mem_get_info()
        metrics[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / 1e6
    with contextlib.suppress(Exception):  # NVML's bindings raise errors of many kinds
        used = torch.cuda.device_memory_used(index)
        metrics.setdefault(f"gpu_{index}_memory_usage_megabytes", used / 1e6)
        metrics[f"gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
    return metrics
