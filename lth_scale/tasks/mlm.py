"""Masked language modelling on packed blocks: 15 % of the tokens, 80/10/10.

Source: paper_reference, mlm_details.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.distributed.pieces import base_model
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.columns import ColumnKind, find_column, is_text
from lth_scale.tasks.inputs import agree_on_inputs, special_tokens_around
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.locations import local_directory
from lth_scale.tasks.metrics import is_constant, prediction_rows, prediction_scores
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.sources import Source, load_sources
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, Row, label_config
from lth_scale.tasks.tokenizer import tokenizer_digest
from lth_scale.tasks.trivial import Trivial, unigram_scores

EVAL_SEED = 1234  # fixes the masked positions of the validation blocks
IGNORED = -100  # the label of a token that is not predicted
CHOSEN = "positions_to_predict"  # an attribute of the encoder
FEW_MASKED = 100  # tokens
HELD_OUT_ARTICLES = 2_000  # the first ones of the stream: the validation split
HELD_OUT_BLOCKS = 1_000
SHUFFLE_BUFFER = 10_000


TEXT = ColumnKind("texts", "text_column_name", ("text",), "use a text file, or one with such rows")


class Texts(NamedTuple):
    """Where texts are, for messages, rows with a column `text`, and its name in the file."""

    name: str
    rows: Dataset
    column: str = "text"


@dataclass(kw_only=True)
class MlmTask(LoadedTask):
    """Masked language modelling; evaluation predicts the same tokens every time.

    facts: what was taken from the user's own data.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)

    def eval_collate(self, rows: list[Row]) -> Batch:
        """Masked blocks of one length as tensors; training blocks are masked anew."""
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return chosen_loss(model, batch)

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """See `prediction_rows`; an example is a masked token."""
        return prediction_rows(outputs, batch["labels"][batch["labels"] != IGNORED])

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """Masked accuracy, and the mean loss."""
        return prediction_scores(rows, TASKS["mlm"].metrics)

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """Of each block its summed `loss` (float32), its `masked` tokens and the `correct` ones."""
        masked = (_label_ids(rows) != IGNORED).sum(axis=1)
        block = numpy.repeat(order, masked[order])
        predicted, labels, losses = table.T
        kept = {
            "loss": numpy.bincount(block, losses, len(rows)).astype(numpy.float32),
            "masked": masked.astype(numpy.int32),
            "correct": numpy.bincount(block, predicted == labels, len(rows)).astype(numpy.int32),
        }
        return Predictions(kept, is_constant(predicted.astype(int)))

    def trivial(self) -> Trivial:
        """The most frequent masked token, the unigram model of train, and chance."""
        labels = _label_ids(self.validation)
        config = self.model.config.get_text_config()
        vocabulary = max(config.vocab_size, len(self.tokenizer))
        return unigram_scores(self._train_tokens(), labels[labels != IGNORED], vocabulary)

    def _train_tokens(self) -> Iterator[numpy.ndarray]:
        """The tokens of train that may be masked, a part at a time."""
        for chunk in self.train.with_format("arrow")[:]["input_ids"].chunks:
            tokens = chunk.flatten().to_numpy()
            yield tokens[~numpy.isin(tokens, self.tokenizer.all_special_ids)]


def _label_ids(rows: Dataset) -> numpy.ndarray:
    """The labels of validation blocks, int (blocks, length); IGNORED where none is predicted."""
    return numpy.asarray(rows["labels"][:])


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
    is_own, texts = TASKS[args.task].is_of_own_data, _load_texts(args)
    loaded = load_model(args, AutoModelForMaskedLM, tokenizer, **label_config())
    inputs = agree_on_inputs(args, loaded.model, tokenizer, equal_lengths=True)
    train, validation = (
        _pack_texts(args, tokenizer, texts, inputs.length)
        if texts
        else _stream_blocks(args, tokenizer, inputs.length)
    )
    validation = data.encode(validation, mask_for_evaluation, tokenizer, seed=EVAL_SEED)
    _check_masked(args, validation)
    choose_positions(loaded.model)
    return MlmTask(
        **vars(loaded),
        train=train,
        validation=validation,
        grouped=False,
        collator=DataCollatorForLanguageModeling(tokenizer),
        facts={"text_columns": [texts["train"].column]} if texts and is_own else {},
    )


def _load_texts(args: Training) -> dict[str, Texts] | None:
    """The texts of train and validation, or None of the paper's stream. Raises BadInput."""
    if TASKS[args.task].is_of_own_data:
        return {split: _own_texts(args, source) for split, source in load_sources(args).items()}
    if directory := local_directory(args.task, args.dataset_path):
        paths = {split: data.local_file(directory, split) for split in TASKS["mlm"].splits}
        return {
            split: Texts(str(path), data.load_local(path, {"text": "string"}))
            for split, path in paths.items()
        }
    return None


def _own_texts(args: Training, source: Source) -> Texts:
    """The column of a source that holds texts. Raises BadInput."""
    strings = [name for name in source.rows.column_names if is_text(source.rows, name)]
    column = find_column(source, TEXT, strings, args.text_column_name)
    rows = source.rows.select_columns([column]).rename_columns({column: "text"})
    if rows.data["text"].null_count:
        first = rows["text"][:].index(None)
        raise source.bad(first, column, "null is no text; write a string, or remove the row")
    return Texts(source.name, rows, column)


def _pack_texts(
    args: Training, tokenizer: PreTrainedTokenizerBase, texts: dict[str, Texts], length: int
) -> list[Dataset]:
    """The blocks of train and validation. Raises BadInput if there is not enough text for one."""
    blocks = []
    for split in ("train", "validation"):
        packed = data.encode(texts[split].rows, pack, tokenizer, length=length)
        if len(packed) == 0:
            raise BadInput(
                f"--max_seq_length {length}: {texts[split].name} has too little text for one "
                "block; add text, or use a smaller length"
            )
        blocks.append(data.limit_rows(args, split, packed))
    rows = {split: texts[split].rows for split in ("train", "validation")}
    data_warnings.warn_about_texts(args, rows, ("text",))
    return blocks


def _stream_blocks(
    args: Training, tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Dataset]:
    """Stream blocks of English Wikipedia once and keep them on disk: all rounds see the same ones.

    Those of train are --max_train_samples, or as many as --max_steps takes.
    """
    articles = data.load_hub(*TASKS["mlm"].dataset, streaming=True)["train"]
    shuffled = articles.skip(HELD_OUT_ARTICLES).shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER)
    held_out = articles.take(HELD_OUT_ARTICLES)
    train_blocks = args.max_train_samples
    if train_blocks is None:
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        train_blocks = max(1, args.max_steps) * step * PartialState().num_processes
        if args.max_steps < 0:
            raise BadInput(
                "--max_steps -1: a stream has no epochs; set --max_steps or --max_train_samples"
            )
    parts = ((shuffled, train_blocks), (held_out, args.max_eval_samples or HELD_OUT_BLOCKS))
    splits = []
    for number, (part, count) in enumerate(parts):
        blocks = part.map(
            pack,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer, "length": length},
            remove_columns=["id", "url", "title", "text"],
        ).take(count)
        options = (TASKS["mlm"].dataset, args.seed, count, length, number)
        key = data.fingerprint(*options, tokenizer_digest(tokenizer))
        splits.append(data.materialize(blocks.__iter__, key))
    return splits


def pack(batch: dict, tokenizer: PreTrainedTokenizerBase, length: int) -> dict:
    """Concatenate the texts' tokens and cut them into blocks of `length`, special tokens included.

    The remainder is dropped.
    """
    ids = tokenizer(
        batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    stream = [token for text in ids for token in text]
    before, after = special_tokens_around(tokenizer)
    width = length - len(before) - len(after)
    starts = range(0, len(stream) - width + 1, width)
    return {"input_ids": [[*before, *stream[start : start + width], *after] for start in starts]}


def mask_for_evaluation(batch: dict, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict:
    """Choose the masked positions once, so that every evaluation predicts the same tokens."""
    collator = DataCollatorForLanguageModeling(tokenizer, seed=seed)
    masked = collator([{"input_ids": ids} for ids in batch["input_ids"]])
    return {name: masked[name].tolist() for name in ("input_ids", "labels")}


def _check_masked(args: Training, validation: Dataset) -> None:
    """Raise BadInput if no validation token is masked, and warn if there are few, or all alike."""
    tokens = [label for labels in validation["labels"] for label in labels if label != IGNORED]
    if not tokens:
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no token of validation is masked; add text"
        )
    if len(tokens) < FEW_MASKED:
        warn(
            f"{data_warnings.split_name(args, 'validation')}: only {len(tokens)} tokens of its "
            f"{len(validation)} blocks are masked, and only masked tokens are scored; add text, or "
            "raise --max_eval_samples"
        )
    else:
        data_warnings.warn_if_constant(args, "validation", tokens, len(tokens), "token")


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
