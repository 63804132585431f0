"""How far the outputs of an export are from those of its source."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def difference(
    source: PreTrainedModel, other: Any, batches: Sequence[dict[str, Tensor]]
) -> dict[str, float]:
    """The largest difference of any floating-point output over all batches.

    other: a model of transformers, or a module with its inputs, outputs and `device`. Returns `absolute`, and `relative` to the largest magnitude of the same output (logits,
    start_logits, …). Both are NaN if an output is.
    """
    differences = defaultdict[str, list[Tensor]](list)
    magnitudes = defaultdict[str, list[Tensor]](list)
    with torch.inference_mode():
        for batch in batches:
            expected = source(**batch)
            actual = other(**{name: tensor.to(other.device) for name, tensor in batch.items()})
            for name, value in expected.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    differences[name].append((actual[name].float().cpu() - value).abs().max())
                    magnitudes[name].append(value.abs().max())
    # Unlike max() of Python, that of a tensor keeps NaN.
    absolute = torch.stack([torch.stack(values).max() for values in differences.values()])
    largest = torch.stack([torch.stack(values).max() for values in magnitudes.values()])
    relative = absolute / largest.clamp_min(1e-30)
    return {"absolute": float(absolute.max()), "relative": float(relative.max())}
