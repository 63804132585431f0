"""What this machine is."""

import importlib
import os
import platform
from pathlib import Path
from typing import Any

INSTRUCTIONS = (
    *(
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
    ),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)

PACKAGES = (
    "lth_scale",
    "torch",
    "transformers",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
)


def machine() -> dict[str, Any]:
    """cpu, instructions, cores, gpu (or nothing), system and versions."""
    import torch

    path = Path("/proc/cpuinfo")
    lines = [
        line.partition(":") for line in (path.read_text() if path.is_file() else "").splitlines()
    ]
    info = {key.strip(): value.strip() for key, _, value in lines}
    flags = (info.get("flags") or info.get("Features") or "").split()
    there = {
        each.name.lower().replace("-", "_"): each.version
        for each in importlib.metadata.distributions()
    }
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": f"{len(usable_cores())} of {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: there[name] for name in PACKAGES if name in there},
    }


SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores() -> list[int]:
    """The cores this process may run on, one of each physical core first."""
    if not hasattr(os, "sched_getaffinity"):
        return [*range(os.cpu_count() or 1)]
    seen: list[str] = []
    ranks = {}
    for core in sorted(os.sched_getaffinity(0)):
        path = Path(SIBLINGS.format(core))
        seen.append(path.read_text() if path.is_file() else str(core))
        ranks[core] = seen.count(seen[-1])
    return sorted(ranks, key=lambda core: (ranks[core], core))
