"""Inputs that exports are tried on: English sentences, or random ids if there is no tokenizer."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.shipping.export.source import ExportSource
from lth_scale.tasks.data import local_file
from lth_scale.tasks.locations import embedded_path
from lth_scale.tasks.probes import longest_input
from lth_scale.tasks.rows import read_rows

BATCH = 8  # sentences in the padded batch
LONGEST = 512  # tokens of the single sequence, if the model takes as many


def real_inputs(source: ExportSource) -> tuple[list[dict[str, Tensor]], str]:
    """Return a padded batch of 8 sentences, a single long sequence, and a line that describes them.

    The tensors are int64, of shapes (8, n) and (1, up to 512), named as the model takes them.
    """
    model, tokenizer = source.model, source.tokenizer
    limit = longest(model, tokenizer)
    if tokenizer:
        batches, origin = tokenized_sentences(tokenizer, limit), "English sentences of SST-2"
    else:
        batches, origin = random_ids(model, limit), "random ids, as there is no tokenizer"
    accepted = inspect.signature(model.forward).parameters
    shapes = " and ".join("×".join(map(str, batch["input_ids"].shape)) for batch in batches)
    inputs = [
        {name: tensor for name, tensor in batch.items() if name in accepted} for batch in batches
    ]
    return inputs, f"{origin}, {shapes}"


def sentences() -> list[str]:
    """Return the sentences of the embedded SST-2 validation data."""
    path = local_file(embedded_path("sst2"), "validation")
    return [row["sentence"] for row in read_rows(path, {"sentence": "string"})]


def tokenized_sentences(tokenizer: PreTrainedTokenizerBase, limit: int) -> list[dict[str, Tensor]]:
    """Return the padded batch and the single sequence, truncated to `limit` tokens."""
    texts = sentences()
    by_length = sorted(texts, key=len)[:: len(texts) // BATCH][:BATCH]
    words = " ".join(texts).split()[:limit]  # of at least one token each
    return [
        dict(tokenizer(rows, padding=True, truncation=True, max_length=limit, return_tensors="pt"))
        for rows in (by_length, [" ".join(words)])
    ]


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the most tokens of a sequence that the model has positions for, at most 512."""
    pad = getattr(model.config, "pad_token_id", None)

    def row(length: int) -> dict[str, Tensor]:
        return {"input_ids": torch.full((1, length), 0 if pad else 1)}

    limit = tokenizer.model_max_length if tokenizer else LONGEST
    return longest_input(model.config.name_or_path or "", model, row, LONGEST, limit)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of ids that the model has embeddings for."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings.num_embeddings


def random_ids(model: PreTrainedModel, limit: int) -> list[dict[str, Tensor]]:
    """Return ids of a fixed seed: a batch of lengths up to limit/2, a sequence of `limit`."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    size, generator = vocabulary_size(model), torch.Generator().manual_seed(0)

    def draw(lengths: Sequence[int]) -> dict[str, Tensor]:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(size - 1, mask.shape, generator=generator)
        ids += ids >= pad  # never the padding's own id
        return {"input_ids": ids.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}

    rising = [max(1, limit * (i + 1) // (2 * BATCH)) for i in range(BATCH)]
    return [draw(rising), draw([limit])]
