"""The computed figures of docs/scale_out.md follow from its formulas and from the models."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lth_scale.pruning.prunable_set import prunable

PAGE = Path(__file__).parents[2] / "docs/scale_out.md"
BUCKET = 2 * 500_000_000  # bytes: DeepSpeed's reduce_bucket_size, in bf16
# Of ψ parameters, m of them prunable, on N ranks: bytes a GPU holds, and bytes it sends a step.
MEMORY: dict[str, Callable[[float, float, int], float]] = {
    "single_gpu": lambda psi, m, n: 16 * psi + m,
    "multi_gpu_ddp": lambda psi, m, n: 20 * psi + m,
    "zero1": lambda psi, m, n: 4 * psi + (12 * psi + m) / n + BUCKET,
    "zero2": lambda psi, m, n: 2 * psi + (14 * psi + m) / n + BUCKET,
    "zero3": lambda psi, m, n: (16 * psi + m) / n + BUCKET,
    "fsdp2": lambda psi, m, n: (16 * psi + m) / n,
}
BYTES_SENT = {
    "single_gpu": 0,
    "multi_gpu_ddp": 8,
    "zero1": 6,
    "zero2": 6,
    "zero3": 6,
    "fsdp2": 6,
}  # × ψ (N − 1) / N


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f}"


def rows() -> dict[str, list[str]]:
    """The cells of the table of figures, by file."""
    found = re.findall(r"^\| `(\w+)` \|(.*ψ.*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


@pytest.mark.parametrize("name", MEMORY)
def test_predicted_figures_follow_from_their_formula(name):
    with torch.device("meta"):
        bert = BertForSequenceClassification(BertConfig())
    base = (
        sum(weight.numel() for weight in bert.parameters()),
        sum(map(torch.Tensor.numel, prunable(bert).values())),
    )
    large = 1.5e9, 1.5e9
    ranks = 1 if name == "single_gpu" else 8
    memory = [gigabytes(MEMORY[name](*sizes, ranks)) for sizes in (base, large)]
    sent = [gigabytes(BYTES_SENT[name] * psi * (ranks - 1) / ranks) for psi, _ in (base, large)]
    assert all(f"{size:,}" in PAGE.read_text(encoding="utf-8") for size in base)
    assert rows()[name][1:] == [memory[0], memory[1], sent[0], sent[1]]


def test_every_file_has_a_row_or_is_a_named_variant():
    text, files = (
        PAGE.read_text(encoding="utf-8"),
        (PAGE.parents[1] / "accelerate_configs").glob("*.yaml"),
    )
    assert set(rows()) == set(MEMORY)
    assert [
        path.stem
        for path in files
        if f"`{path.stem}`" not in text and f"{path.stem}.yaml" not in text
    ] == []
