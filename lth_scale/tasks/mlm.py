"""Masked language modelling on packed blocks: 15 % of the tokens, 80/10/10.

Source: paper_reference, mlm_details.
"""

from dataclasses import dataclass

import numpy
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.mlm_blocks import load_blocks
from lth_scale.tasks.predictions import prediction_rows, prediction_scores
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Batch, LoadedTask, Row, label_config

EVAL_SEED = 1234  # fixes the masked positions of the validation blocks
IGNORED = -100  # the label of a token that is not predicted
CHOSEN = "positions_to_predict"  # an attribute of the encoder


@dataclass(kw_only=True)
class MlmTask(LoadedTask):
    """Masked language modelling; evaluation predicts the same tokens every time."""

    collator: DataCollatorForLanguageModeling

    def collate(self, rows: list[Row]) -> Batch:
        """Blocks as tensors, masked anew."""
        return self.collator(rows)

    def eval_collate(self, rows: list[Row]) -> Batch:
        """Masked blocks of one length as tensors."""
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `chosen_loss`."""
        return chosen_loss(model, batch)

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """See `prediction_rows`; an example is a masked token."""
        return prediction_rows(outputs, batch["labels"][batch["labels"] != IGNORED])

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """Masked accuracy, and the mean loss."""
        return prediction_scores(rows, TASKS["mlm"].metrics)


def load_mlm(args: Training) -> MlmTask:
    """Load the MLM task with the checkpoint's own head, or with --fresh_head a new one.

    Raises BadInput.
    """
    tokenizer = load_tokenizer(args)
    if tokenizer.mask_token_id is None:
        raise BadInput(
            f"--task mlm: the tokenizer of {args.model_name_or_path} has no mask token; "
            "use an encoder pre-trained by MLM"
        )
    loaded = load_model(args, AutoModelForMaskedLM, tokenizer, **label_config())
    inputs = agree_on_inputs(args, loaded.model, tokenizer, equal_lengths=True)
    train, validation = load_blocks(args, tokenizer, inputs.length)
    validation = data.encode(validation, mask_for_evaluation, tokenizer, seed=EVAL_SEED)
    check_masked(args, validation)
    choose_positions(loaded.model)
    return MlmTask(
        **vars(loaded),
        train=train,
        validation=validation,
        grouped=False,
        collator=DataCollatorForLanguageModeling(tokenizer),
    )


def mask_for_evaluation(batch: dict, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict:
    """Choose the masked positions once, so that every evaluation predicts the same tokens."""
    collator = DataCollatorForLanguageModeling(tokenizer, seed=seed)
    masked = collator([{"input_ids": ids} for ids in batch["input_ids"]])
    return {name: masked[name].tolist() for name in ("input_ids", "labels")}


def check_masked(args: Training, validation: Dataset) -> None:
    """Raise BadInput if no validation token is masked, and warn if there are few."""
    tokens = [label for labels in validation["labels"] for label in labels if label != IGNORED]
    if not tokens:
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no token of validation is masked; add text"
        )
    data_warnings.warn_about_masked(args, len(validation), tokens)


def choose_positions(model: nn.Module) -> None:
    """Have the encoder pass only the positions to predict to the head, within `chosen_loss`.

    The loss is the same, and the product with the vocabulary, which costs more than a small
    encoder, shrinks to 15 %. The positions are an attribute of the encoder, so a deep copy has its
    own.
    """
    setattr(base_model(model), CHOSEN, None)
    base_model(model).register_forward_hook(_select_chosen)


def _select_chosen(encoder: nn.Module, inputs: tuple, output):
    """(batch, length, hidden) → (1, chosen positions, hidden), if positions are chosen."""
    chosen, hidden = getattr(encoder, CHOSEN), output.last_hidden_state
    # Perceiver's hidden states are its latents.
    if chosen is not None and hidden.shape[:2] == chosen.shape:
        output["last_hidden_state"] = hidden[chosen].unsqueeze(0)
    return output


def chosen_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the n masked tokens, and fp32 logits (n, vocabulary).

    model: prepared by `choose_positions`, possibly inside an engine.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    chosen = batch["labels"] != IGNORED
    # vars, because an engine answers for the attributes of the model that it wraps.
    encoder = next(module for module in model.modules() if CHOSEN in vars(module))
    setattr(encoder, CHOSEN, chosen)
    try:
        logits = model(**inputs).logits.float()
    finally:
        setattr(encoder, CHOSEN, None)
    # All positions are there if the head reads something other than the encoder's last state.
    logits = logits[chosen] if logits.shape[:2] == chosen.shape else logits[0]
    labels = batch["labels"][chosen]
    return F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel()), logits
