"""Versions of packages and of this code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "lth_scale",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "datasets",
    "mlflow",
    "safetensors",
)


@cache
def versions() -> dict[str, str | None]:
    """Installed versions of what decides a result."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of this package's checkout, or None where it is installed from a wheel."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here.parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top).resolve() == here.parent else None
