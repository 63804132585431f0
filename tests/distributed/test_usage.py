"""System metrics of the main process's machine."""

import socket

import torch

from lth_scale.distributed import usage

HOST = f"system/{socket.gethostname()}"
CPU = {
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
}
GPU = {f"gpu_{i}_memory_usage_megabytes" for i in (0, 1)}


def names(metrics: dict[str, float]) -> set[str]:
    return {name.removeprefix(f"{HOST}/") for name in metrics}


def test_the_metrics_of_a_cpu_have_the_names_of_mlflow(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    metrics = usage.system_metrics()
    assert names(metrics) == CPU and all(name.startswith(HOST) for name in metrics)


def use_gpus(monkeypatch, **nvml) -> None:
    """Two GPUs, of which this process has the first."""
    functions = {"is_available": lambda: True, "current_device": lambda: 0} | nvml
    functions |= {"mem_get_info": lambda: (1_000_000, 3_000_000)}
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


def test_the_gpus_of_all_ranks_are_read_by_index(monkeypatch):
    use_gpus(monkeypatch, device_memory_used=lambda i: 5_000_000, utilization=lambda i: 10 * i)
    metrics = usage.system_metrics()
    assert names(metrics) - CPU == GPU | {f"gpu_{i}_utilization_percentage" for i in (0, 1)}
    assert metrics[f"{HOST}/gpu_0_memory_usage_megabytes"] == 2
    assert metrics[f"{HOST}/gpu_1_memory_usage_megabytes"] == 5
    assert metrics[f"{HOST}/gpu_1_utilization_percentage"] == 10


def test_without_nvml_only_the_memory_of_this_gpu_is_reported(monkeypatch):
    def fail(index: int) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    use_gpus(monkeypatch, device_memory_used=fail, utilization=fail)
    assert names(usage.system_metrics()) - CPU == {"gpu_0_memory_usage_megabytes"}
