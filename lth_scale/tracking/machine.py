"""The machine, the versions and the commit that results come from."""

import os
import platform
import subprocess
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Packages that results depend on, and those that measurements of speed depend on.
RECORDED = (
    *("lth_scale", "torch", "transformers", "accelerate"),
    *("deepspeed", "datasets", "mlflow", "safetensors"),
)
MEASURED = (
    *("lth_scale", "torch", "transformers", "numpy"),
    *("onnx", "onnxruntime", "openvino", "nncf"),
)
# CPU features that the speed of sparse and quantized products depends on.
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
CPU_INFO = Path("/proc/cpuinfo")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@cache
def versions() -> dict[str, str | None]:
    """Return the installed versions of what results depend on; None for missing packages."""
    return {"python": platform.python_version()} | {name: _version(name) for name in RECORDED}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this package's checkout; None if it is installed from a wheel."""
    checkout = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        top, commit = output.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top).resolve() == checkout else None


def machine() -> dict[str, Any]:
    """Return the CPU, its instructions and cores, the GPU (empty if none), system and versions."""
    import torch

    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    pairs = (line.partition(":") for line in lines)
    info = {key.strip(): value.strip() for key, _, value in pairs}
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": f"{len(usable_cores())} of {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: installed for name in MEASURED if (installed := _version(name))},
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
