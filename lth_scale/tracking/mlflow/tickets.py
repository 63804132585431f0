"""The metadata of a ticket file. Does not import torch or MLflow."""

from pathlib import Path

from safetensors import safe_open

KEYS = (
    *("task", "base_model", "base_revision", "sparsity", "pruned", "prunable"),
    *("theta_sha256", "content_sha256", "base_sha256"),
)


def metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a ticket file without reading its masks."""
    with safe_open(path, "numpy") as file:
        return file.metadata()


def describe_ticket(path: Path, seed: int) -> dict[str, str]:
    """Return a ticket's metadata, seed and file as the parameters of a logged model."""
    fields = {"base_sha256": "", **metadata(path)}
    known = {name: fields[name] for name in KEYS}
    return {**known, "seed": str(seed), "file": str(path.resolve())}
