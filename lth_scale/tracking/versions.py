"""Versions of packages and of this code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("lth_scale", "torch", "transformers", "accelerate"),
    *("deepspeed", "datasets", "mlflow", "safetensors"),
)


@cache
def versions() -> dict[str, str | None]:
    """Return the installed versions of what results depend on; None for missing packages."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this package's checkout; None if it is installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package.parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        top, commit = output.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top).resolve() == package.parent else None
