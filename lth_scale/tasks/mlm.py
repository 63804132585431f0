"""Masked language modelling on packed blocks: 15 % of the tokens, 80/10/10 (paper_reference, mlm_details)."""

import numpy
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from lth_scale.arguments import Arguments, BadInput
from lth_scale.prunable import base_model
from lth_scale.tasks import data
from lth_scale.tasks.task import Batch, Task, load_model, load_tokenizer, sequence_length

WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en")
HELD_OUT_ARTICLES = 2_000  # of the stream; they are the validation split
HELD_OUT_BLOCKS = 1_000
SHUFFLE_BUFFER = 10_000
EVAL_SEED = 1234  # fixes the masked positions of the validation blocks


class HeadAtMaskedPositions:
    """A forward hook on the encoder that hands the head only the positions to be predicted.

    The loss is the same and the vocabulary's product, which costs more than a small encoder, shrinks to 15 %.
    """

    def __init__(self, model: nn.Module):
        self.chosen: Tensor | None = None
        base_model(model).register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple, output):
        """(batch, length, hidden) → (1, chosen positions, hidden), while `chosen` is set."""
        if self.chosen is not None:
            output["last_hidden_state"] = output[0][self.chosen].unsqueeze(0)
        return output

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy over the n masked tokens, fp32 logits (n, vocabulary))."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        self.chosen = batch["labels"] != -100
        try:
            logits = model(**inputs).logits[0].float()
        finally:
            self.chosen = None
        labels = batch["labels"][batch["labels"] != -100]
        return F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel()), logits


def pack(batch: dict, tokenizer: PreTrainedTokenizerBase, length: int) -> dict:
    """Join the texts' tokens and cut them into blocks of `length`, special tokens around each; the rest is dropped."""
    ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    stream = [token for text in ids for token in text]
    around = tokenizer("")["input_ids"]
    before, after = around[: (len(around) + 1) // 2], around[(len(around) + 1) // 2 :]
    width = length - len(around)
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


def load_blocks(args: Arguments, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[Dataset, Dataset]:
    """(train, validation) blocks. Raises BadInput."""
    directory = data.local_directory(args)
    if directory is None:
        return stream_blocks(args, tokenizer, length)
    files = [data.local_file(directory, split) for split in ("train", "validation")]
    limits = (args.max_train_samples, args.max_eval_samples)
    splits = []
    for file, limit in zip(files, limits, strict=True):
        rows = data.load_local(file, {"text": "string"}, None, None)
        blocks = data.encode(rows, pack, tokenizer, length=length)
        if len(blocks) == 0:
            raise BadInput(f"--max_seq_length {length}: {file} has not enough text for one block; give a smaller one")
        splits.append(blocks.select(range(min(limit or len(blocks), len(blocks)))))
    return splits[0], splits[1]


def stream_blocks(args: Arguments, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[Dataset, Dataset]:
    """Blocks of English Wikipedia, streamed once and kept on disk: every round sees the same ones in the same order."""
    articles = data.load_hub(*WIKIPEDIA, streaming=True)["train"]
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * PartialState().num_processes
    train_count = args.max_train_samples or max(1, args.max_steps) * step
    if args.max_steps < 0 and args.max_train_samples is None:
        raise BadInput("--max_steps -1: a stream has no epochs; give --max_steps or --max_train_samples")
    options = {"tokenizer": tokenizer, "length": length}
    splits: list[Dataset] = []
    for part, count in (
        (articles.skip(HELD_OUT_ARTICLES).shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER), train_count),
        (articles.take(HELD_OUT_ARTICLES), args.max_eval_samples or HELD_OUT_BLOCKS),
    ):
        blocks = part.map(pack, batched=True, fn_kwargs=options, remove_columns=["id", "url", "title", "text"])
        key = data.fingerprint(WIKIPEDIA, args.seed, count, length, len(splits), sorted(tokenizer.get_vocab().items()))
        splits.append(data.materialize(blocks.take(count).__iter__, key))
    return splits[0], splits[1]


def load(args: Arguments) -> Task:
    """Masked language modelling with the model's own MLM head. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    if tokenizer.mask_token_id is None:
        raise BadInput(f"--task mlm: the tokenizer of {args.model_name_or_path} has no mask token; give an MLM encoder")
    model = load_model(args, AutoModelForMaskedLM, tokenizer)
    train, validation = load_blocks(args, tokenizer, sequence_length(args, model, tokenizer))
    validation = data.encode(validation, mask_for_evaluation, tokenizer, seed=EVAL_SEED)

    def rows(logits: Tensor, batch: Batch) -> numpy.ndarray:
        labels = batch["labels"][batch["labels"] != -100]
        right = (logits.argmax(-1) == labels).sum()
        return numpy.array([[float(right), labels.numel(), float(F.cross_entropy(logits, labels, reduction="sum"))]])

    def score(rows: numpy.ndarray) -> dict[str, float]:
        right, tokens, loss = rows.sum(0)
        return {"accuracy": right / tokens, "loss": loss / tokens}

    return Task(
        model=model, tokenizer=tokenizer, revision=getattr(model.config, "_commit_hash", None) or "",
        train=train, validation=validation, collate=DataCollatorForLanguageModeling(tokenizer), eval_collate=stack,
        loss=HeadAtMaskedPositions(model).loss, rows=rows, score=score, grouped=False,
    )  # fmt: skip
