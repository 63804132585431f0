"""What is exported or timed: a dense network with zeros as its mask, and inputs to run it on."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import is_local
from lth_scale.config.texts import first_line
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.ticket import Ticket
from lth_scale.shipping.export.loading import class_of, load_dense, pooler_is_optional, read_config
from lth_scale.shipping.export.locations import MANIFEST, locate
from lth_scale.tasks import weights
from lth_scale.tasks.checkpoint_checks import check_checkpoint, check_tokenizer_class
from lth_scale.tasks.data import local_file
from lth_scale.tasks.inputs import longest_input
from lth_scale.tasks.libraries import go_offline_unless_reachable, quiet
from lth_scale.tasks.loading import explain_load_error, model_path
from lth_scale.tasks.locations import embedded_path
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import read_rows
from lth_scale.tasks.sources import as_they_are, load_sources
from lth_scale.tasks.token_classification import as_sentences
from lth_scale.tasks.tokenizer import check_ids
from lth_scale.tasks.weights import CheckpointSource

TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "*.model", "merges.txt")
BATCH = 8  # sentences in the padded batch
LARGEST_SAMPLE = 1_000  # rows among which they are chosen
LONGEST = 512  # tokens of the single sequence, if the model takes as many


@dataclass
class ExportSource:
    """A network to export or to time.

    model: fp32, in eval mode, pruned weights exactly 0. tokenizer: None without one that can pad.
    run: arguments.json of the search, or {}. pruned: of `prunable` weights.
    """

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    run: dict[str, Any]
    pruned: int
    prunable: int

    @property
    def sparsity(self) -> float:
        """pruned ÷ prunable."""
        return self.pruned / self.prunable


def load_source(path: str) -> ExportSource:
    """Load the network of a search (its last round), a round, a checkpoint or an export.

    Raises BadInput if it is missing, damaged, not in safetensors, or has no prunable weights.
    """
    location = locate(path)
    name = str(location.model)
    folder = model_path(Training(task="mlm", model_name_or_path=name))
    is_export = (location.model / MANIFEST).is_file()
    model = load_dense(location.model) if is_export else _load_checkpoint(name, folder)
    matrices = prunable(model)
    if not matrices:
        raise BadInput(
            f"{path}: {type(model).__name__} has no prunable matrices; use an encoder like BERT"
        )
    with torch.no_grad():
        for weight in matrices.values():
            weight.add_(0.0)  # −0.0, which multiplication by a mask leaves, becomes 0
    masks = {key: weight != 0 for key, weight in matrices.items()}
    if location.ticket:
        ticket = Ticket.load(location.ticket)
        for key, mask in ticket.masks_for(model).items():
            if matrices[key][~mask].any():
                raise BadInput(
                    f"{name}: {key} is not zero where {location.ticket} prunes it; "
                    "use the network and the ticket of one run"
                )
        masks = {key: ticket.masks[key] for key in matrices if key in ticket.masks}
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    tokenizer = _load_tokenizer(name, folder, model)
    return ExportSource(Path(path), model, tokenizer, location.run, pruned, size)


def _load_checkpoint(name: str, path: str) -> PreTrainedModel:
    """Load a directory of `save_pretrained` or a Hub name. Raises BadInput if it is damaged."""
    if not is_local(name):
        go_offline_unless_reachable(name, "model")
    try:
        with quiet():
            config = read_config(path)
            check_checkpoint(path, None, config)
            encoder: Any = transformers.MODEL_MAPPING.get(type(config), None)
            config.architectures = config.architectures or [encoder.__name__]
            cls = class_of(config)
            source = CheckpointSource(name, path, None, {"config": config})
            checkpoint = source.read(cls)
            lacks_pooler = all(key.startswith("pooler.") for key in checkpoint.missing or "-")
            if lacks_pooler and pooler_is_optional(cls):
                checkpoint = source.read(cls, add_pooling_layer=False)
            weights.check_shapes(name, checkpoint)
    except BadInput:
        raise
    except Exception as problem:  # from_pretrained raises nearly every kind
        if why := explain_load_error(problem, Path(path)):
            raise BadInput(f"{name}: {why}") from problem
        network = "" if is_local(name) else "check the network, or "
        raise BadInput(
            f"{name}: cannot be loaded ({first_line(problem)}); {network}use a directory of "
            "save_pretrained, in safetensors"
        ) from problem
    if lost := checkpoint.in_order(checkpoint.not_loaded):
        raise BadInput(
            f"{name}: the checkpoint lacks {weights.listed(lost)}; use a complete checkpoint"
        )
    weights.check_layers(name, checkpoint)
    weights.check_finite(name, checkpoint.model)
    return checkpoint.model.eval()


def _load_tokenizer(name: str, path: str, model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer beside a checkpoint, or None without one that can pad. Raises BadInput."""
    saved = (file for pattern in TOKENIZER_FILES for file in Path(path).glob(pattern))
    if is_local(name) and not any(saved):
        return None
    try:
        with quiet():
            check_tokenizer_class(path)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as problem:
        why = explain_load_error(problem, Path(path)) or (
            f"its tokenizer cannot be loaded ({first_line(problem)}); repair or remove its files"
        )
        raise BadInput(f"{name}: {why}") from problem
    check_ids(name, model, tokenizer)
    usable = tokenizer.pad_token_id is not None and len(tokenizer) > len(tokenizer.all_special_ids)
    return tokenizer if usable else None


def real_inputs(source: ExportSource) -> tuple[list[dict[str, Tensor]], str]:
    """Return a padded batch of 8 sentences, a single long sequence, and a line that describes them.

    Without a tokenizer they are random ids of a fixed seed. int64, (8, n) and (1, up to 512), named
    as the model takes them.
    """
    model, tokenizer = source.model, source.tokenizer
    limit = longest(model, tokenizer)
    if tokenizer:
        texts, origin = _texts_of_run(source.run)
        by_length = sorted(texts, key=len)[:: max(1, len(texts) // BATCH)][:BATCH]
        words = " ".join(texts).split()[:limit]  # of at least one token each
        options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        batches = [
            dict(tokenizer(rows, max_length=limit, **options))
            for rows in (by_length, [" ".join(words)])
        ]
    else:
        batches, origin = _random_ids(model, limit), "random ids, as there is no tokenizer"
    shapes = " and ".join("×".join(map(str, batch["input_ids"].shape)) for batch in batches)
    accepted = inspect.signature(model.forward).parameters
    inputs = [{name: batch[name] for name in batch if name in accepted} for batch in batches]
    return inputs, f"{origin}, {shapes}"


def _random_ids(model: PreTrainedModel, limit: int) -> list[dict[str, Tensor]]:
    """Return a batch of rising lengths up to half the limit, and a sequence of `limit` tokens."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    size, generator = vocabulary_size(model), torch.Generator().manual_seed(0)

    def draw(lengths: Sequence[int]) -> dict[str, Tensor]:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(size - 1, mask.shape, generator=generator)
        ids += ids >= pad  # never the padding's own id
        return {"input_ids": ids.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}

    rising = [max(1, limit * (i + 1) // (2 * BATCH)) for i in range(BATCH)]
    return [draw(rising), draw([limit])]


def _texts_of_run(run: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return validation texts of the user's own data, and what they are; else those of SST-2."""
    columns = run.get("data", {}).get("text_columns", ())
    flags = {spec.name for spec in fields(Training)}
    values = {name: value for name, value in run.items() if name in flags and name != "ignore"}
    if not columns:
        return sentences(), "English sentences of SST-2"
    try:
        args = Training(**values)
        tags_words = TASKS[args.task].pipeline == "token-classification"
        sources = load_sources(args, prepare=as_sentences if tags_words else as_they_are)
        rows = sources["validation"].rows[:LARGEST_SAMPLE]
        found = (value for column in columns for value in rows[column])
        texts = [" ".join(value) if tags_words else value for value in found]
        texts = [text for text in texts if text.strip()]
    except (BadInput, KeyError, TypeError):
        texts = []  # the files are not there any more
    if len(texts) < BATCH:
        return sentences(), "English sentences of SST-2"
    return texts, "rows of the task's validation data"


def sentences() -> list[str]:
    """Return the sentences of the embedded SST-2 validation data."""
    path = local_file(embedded_path("sst2"), "validation")
    return [row["sentence"] for row in read_rows(path, {"sentence": "string"})]


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the most tokens of a sequence that the model has positions for, at most 512."""
    token = 0 if getattr(model.config, "pad_token_id", None) else 1  # not the padding
    limit = tokenizer.model_max_length if tokenizer else LONGEST
    return longest_input(
        model.config.name_or_path or "",
        model,
        lambda length: {"input_ids": torch.full((1, length), token)},
        LONGEST,
        limit,
    )


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of ids that the model has embeddings for."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.num_embeddings
