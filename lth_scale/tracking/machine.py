"""The machine that measurements are made on."""

import os
import platform
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

# CPU features that the speed of sparse and quantized products depends on.
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
PACKAGES = (
    *("lth_scale", "torch", "transformers", "numpy"),
    *("onnx", "onnxruntime", "openvino", "nncf"),
)
CPU_INFO = Path("/proc/cpuinfo")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def machine() -> dict[str, Any]:
    """Return the CPU, its instructions and cores, the GPU (empty if none), system and versions."""
    import torch

    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    pairs = (line.partition(":") for line in lines)
    info = {key.strip(): value.strip() for key, _, value in pairs}
    flags = (info.get("flags") or info.get("Features") or "").split()
    installed = {
        package.name.lower().replace("-", "_"): package.version for package in distributions()
    }
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": f"{len(usable_cores())} of {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }


def usable_cores() -> list[int]:
    """Return the cores that this process may run on, one of each physical core first."""
    try:
        cores = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return [*range(os.cpu_count() or 1)]
    siblings: Counter[str] = Counter()
    order = {}
    for core in cores:
        path = Path(SIBLINGS.format(core))
        physical = path.read_text() if path.is_file() else str(core)
        order[core] = (siblings[physical], core)
        siblings[physical] += 1
    return sorted(cores, key=order.__getitem__)
