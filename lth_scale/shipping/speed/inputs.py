"""Inputs of the speed check: full sequences of text, named as the network takes them."""

import torch

from lth_scale.config.errors import BadInput
from lth_scale.shipping.export.inputs import longest, sentences, vocabulary_size
from lth_scale.shipping.export.source import ExportSource
from lth_scale.tasks.mlm_blocks import pack
from lth_scale.tasks.probes import has_segments
from lth_scale.tasks.task import Batch


def input_names(source: ExportSource) -> list[str]:
    """Return the inputs of the network; token types only if it has two of them."""
    segments = ["token_type_ids"] if has_segments(source.model) else []
    return ["input_ids", "attention_mask", *segments]


def select_inputs(batch: Batch, names: list[str]) -> Batch:
    """Return the named inputs; a missing attention mask is all ones, token types are zeros."""
    ids = batch["input_ids"]
    return {
        name: batch[name] if name in batch else torch.full_like(ids, name == "attention_mask")
        for name in names
    }


def text_inputs(source: ExportSource, batch: int, length: int) -> Batch:
    """Return inputs of shape (batch, length), int64: sentences of SST-2 without padding.

    Without a tokenizer they are random ids of a fixed seed. Raises BadInput if the model does not
    take as many tokens.
    """
    limit = longest(source.model, source.tokenizer)
    if length > limit:
        raise BadInput(
            f"--sequence_length {length}: {source.path} takes {limit} tokens at most; "
            "use a shorter sequence"
        )
    if source.tokenizer:
        blocks = pack({"text": sentences()}, source.tokenizer, length)["input_ids"]
        ids = torch.tensor([blocks[i % len(blocks)] for i in range(batch)])
    else:
        generator = torch.Generator().manual_seed(0)
        size = vocabulary_size(source.model)
        ids = torch.randint(size, (batch, length), generator=generator)
    return select_inputs({"input_ids": ids}, input_names(source))
