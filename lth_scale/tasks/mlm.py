"""Masked language modelling on packed blocks: 15 % of the tokens, 80/10/10 (paper_reference, mlm_details)."""

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
from lth_scale.config.errors import BadInput
from lth_scale.distributed import compat
from lth_scale.distributed.encoder import base_model
from lth_scale.tasks import cache, data, data_warnings, locations, metrics, tokenization
from lth_scale.tasks.base import Batch, Task, labelled, prediction_rows, prediction_scores
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.registry import TASKS

HELD_OUT_ARTICLES = 2_000  # of the stream; they are the validation split
HELD_OUT_BLOCKS = 1_000
SHUFFLE_BUFFER = 10_000
EVAL_SEED = 1234  # fixes the masked positions of the validation blocks
CHOSEN = "positions_to_predict"


def choose_positions(model: nn.Module) -> None:
    """Have the encoder hand the head only the positions to be predicted, while `chosen_loss` asks for it.

    The loss is the same and the vocabulary's product, which costs more than a small encoder, shrinks to 15 %.
    What is chosen is kept on the encoder, so that a deep copy of the model has its own.
    """
    setattr(base_model(model), CHOSEN, None)
    base_model(model).register_forward_hook(_cut_to_chosen)


def _cut_to_chosen(encoder: nn.Module, inputs: tuple, output):
    """(batch, length, hidden) → (1, chosen positions, hidden), while some are chosen."""
    chosen, hidden = getattr(encoder, CHOSEN), output.last_hidden_state
    if chosen is not None and hidden.shape[:2] == chosen.shape:  # Perceiver's are its latents
        output["last_hidden_state"] = hidden[chosen].unsqueeze(0)
    return output


def chosen_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy over the n masked tokens, fp32 logits (n, vocabulary)), of a model or of its engine."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    chosen = batch["labels"] != -100
    encoder = next(
        module for module in model.modules() if CHOSEN in vars(module)
    )  # engines answer for what they wrap
    setattr(encoder, CHOSEN, chosen)
    try:
        logits = model(**inputs).logits.float()
    finally:
        setattr(encoder, CHOSEN, None)
    logits = (
        logits[chosen] if logits.shape[:2] == chosen.shape else logits[0]
    )  # where the head reads something else
    labels = batch["labels"][chosen]
    return F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel()), logits


def pack(batch: dict, tokenizer: PreTrainedTokenizerBase, length: int) -> dict:
    """Join the texts' tokens and cut them into blocks of `length`, special tokens around each; the rest is dropped."""
    ids = tokenizer(
        batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    stream = [token for text in ids for token in text]
    before, after = tokenization.around(tokenizer)
    width = length - len(before) - len(after)
    starts = range(0, len(stream) - width + 1, width)
    return {"input_ids": [[*before, *stream[start : start + width], *after] for start in starts]}


def mask_for_evaluation(batch: dict, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict:
    """Draw the masked positions once, so that every evaluation asks for the same tokens."""
    collate = DataCollatorForLanguageModeling(tokenizer, seed=seed)
    masked = collate([{"input_ids": ids} for ids in batch["input_ids"]])
    return {name: masked[name].tolist() for name in ("input_ids", "labels")}


def stack(blocks: list[dict]) -> Batch:
    """Blocks of one length as tensors."""
    return {name: torch.tensor([block[name] for block in blocks]) for name in blocks[0]}


def load_blocks(
    args: Training, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Dataset, Dataset]:
    """(train, validation) blocks. Raises BadInput."""
    directory = locations.local_directory(args.task, args.dataset_path)
    if directory is None:
        return stream_blocks(args, tokenizer, length)
    files = [data.local_file(directory, split) for split in ("train", "validation")]
    limits = (args.max_train_samples, args.max_eval_samples)
    texts = [data.load_local(file, {"text": "string"}, None, None) for file in files]
    splits = []
    for file, rows, limit in zip(files, texts, limits, strict=True):
        blocks = data.encode(rows, pack, tokenizer, length=length)
        if len(blocks) == 0:
            raise BadInput(
                f"--max_seq_length {length}: {file} has not enough text for one block; give it more text, or a smaller "
                "length"
            )
        splits.append(data.first(blocks, limit))
    data_warnings.texts(args, {"train": texts[0], "validation": texts[1]}, ("text",))
    return splits[0], splits[1]


def stream_blocks(
    args: Training, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Dataset, Dataset]:
    """Blocks of English Wikipedia, streamed once and kept on disk: every round sees the same ones in the same order."""
    articles = data.load_hub(*TASKS["mlm"].dataset, streaming=True)["train"]
    step = (
        args.per_device_train_batch_size
        * args.gradient_accumulation_steps
        * PartialState().num_processes
    )
    train_count = args.max_train_samples or max(1, args.max_steps) * step
    if args.max_steps < 0 and args.max_train_samples is None:
        raise BadInput(
            "--max_steps -1: a stream has no epochs; give --max_steps or --max_train_samples"
        )
    options = {"tokenizer": tokenizer, "length": length}
    splits: list[Dataset] = []
    for part, count in (
        (
            articles.skip(HELD_OUT_ARTICLES).shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER),
            train_count,
        ),
        (articles.take(HELD_OUT_ARTICLES), args.max_eval_samples or HELD_OUT_BLOCKS),
    ):
        blocks = part.map(
            pack, batched=True, fn_kwargs=options, remove_columns=["id", "url", "title", "text"]
        )
        key = cache.fingerprint(
            TASKS["mlm"].dataset, args.seed, count, length, len(splits), tokenization.key(tokenizer)
        )
        splits.append(cache.materialize(blocks.take(count).__iter__, key))
    return splits[0], splits[1]


def load_mlm(args: Training) -> Task:
    """Masked language modelling with the checkpoint's own MLM head, or with --fresh_head a new one. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    if tokenizer.mask_token_id is None:
        raise BadInput(
            f"--task mlm: the tokenizer of {args.model_name_or_path} has no mask token; give an MLM encoder"
        )
    loaded = load_model(args, AutoModelForMaskedLM, tokenizer, **labelled())
    model = loaded.model
    train, validation = load_blocks(
        args, tokenizer, tokenization.agree(args, model, tokenizer).length
    )
    validation = data.encode(validation, mask_for_evaluation, tokenizer, seed=EVAL_SEED)
    masked = [label for labels in validation["labels"] for label in labels if label != -100]
    if not masked:
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no token of its validation is masked; give it more text"
        )
    data_warnings.masked(args, len(validation), masked)
    choose_positions(model)
    metric = metrics.load_metric("accuracy")

    def rows(logits: Tensor, batch: Batch) -> numpy.ndarray:
        return prediction_rows(logits, batch["labels"][batch["labels"] != -100])

    def score(rows: numpy.ndarray) -> dict[str, float]:
        return prediction_scores(rows, metric)

    return Task(
        model=model,
        prunable=loaded.prunable,
        base_sha256=loaded.base_sha256,
        remark=loaded.remark,
        tokenizer=tokenizer,
        revision=compat.commit_hash(model.config),
        train=train,
        validation=validation,
        collate=DataCollatorForLanguageModeling(tokenizer),
        eval_collate=stack,
        loss=chosen_loss,
        rows=rows,
        score=score,
        grouped=False,
    )
