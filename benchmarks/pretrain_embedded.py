"""Pre-train the embedded BERT: `python benchmarks/pretrain_embedded.py --output_dir DIR`.

Reads the public-domain books inside the package, trains a WordPiece vocabulary and a small BERT on
them with the masked-LM objective (15 %, 80/10/10; Devlin et al. 2019), and writes a Hugging Face
model directory whose README states the results. `lth_scale/tasks/embedded/bert` was made this way.
"""

import argparse
import copy
import json
import lzma
import math
import platform
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    get_linear_schedule_with_warmup,
    set_seed,
)

from lth_scale.tasks.locations import embedded_path

BLOCK = 128
SHORT = 32
EVAL_SEED = 1234


def read_books(split: str) -> list[str]:
    """The paragraphs of one split (`train` or `validation`) of the books."""
    with lzma.open(embedded_path("mlm") / f"{split}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(paragraphs: list[str], vocab_size: int, directory: Path) -> BertTokenizer:
    """Train an uncased WordPiece tokenizer on `paragraphs` and save it to `directory`."""
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(
        paragraphs, vocab_size=vocab_size, min_frequency=2, show_progress=False
    )
    tokenizer = BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=True, model_max_length=BLOCK)
    tokenizer.save_pretrained(directory)
    return tokenizer


@torch.no_grad()
def place_sinusoids(positions: torch.Tensor, scale: float) -> None:
    """Initialise the position embeddings (length, hidden) with sinusoids of deviation `scale`.

    Offsets are then linear maps (Vaswani et al. 2017, section 3.5), and a small model learns to
    attend to neighbours thousands of steps earlier than from noise.
    """
    length, hidden = positions.shape
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10_000.0) / hidden))
    angles = torch.arange(length)[:, None] * rates
    positions.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) * scale * math.sqrt(2))


def pack(documents: list[list[int]], tokenizer: BertTokenizer, length: int) -> list[list[int]]:
    """Concatenate token lists and cut them into [CLS] … [SEP] blocks of `length` tokens."""
    stream = [token for document in documents for token in document]
    width = length - 2
    starts = range(0, len(stream) - width + 1, width)
    return [
        [tokenizer.cls_token_id, *stream[i : i + width], tokenizer.sep_token_id] for i in starts
    ]


def masked_loss(
    model: BertForMaskedLM, batch: dict
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cross-entropy, logits (n, vocab) and labels (n,) at the n masked positions.

    A block shorter than BLOCK starts at a random position, so that all positions are trained.
    """
    chosen, length = batch["labels"] != -100, batch["labels"].shape[1]
    offset = int(torch.randint(BLOCK - length + 1, ()))
    positions = torch.arange(offset, offset + length)[None]
    hidden = model.bert(input_ids=batch["input_ids"], position_ids=positions).last_hidden_state[
        chosen
    ]
    logits, labels = model.cls(hidden), batch["labels"][chosen]
    return F.cross_entropy(logits, labels), logits, labels


@torch.no_grad()
def evaluate(model: BertForMaskedLM, blocks: list[list[int]], collate) -> dict[str, float]:
    """Masked accuracy and loss over `blocks`, masked with EVAL_SEED; n counts the masked tokens."""
    model.eval()
    right = total = loss = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(EVAL_SEED)  # not CUDA's
        for i in range(0, len(blocks), 32):
            mean, logits, labels = masked_loss(
                model, collate([{"input_ids": b} for b in blocks[i : i + 32]])
            )
            right += (logits.argmax(-1) == labels).sum().item()
            loss += mean.item() * len(labels)
            total += len(labels)
    model.train()
    return {"accuracy": right / total, "loss": loss / total, "n": int(total)}


def unigram_baseline(train: list[list[int]], validation: list[list[int]]) -> dict[str, float]:
    """Accuracy of the most frequent training token, and the unigram cross-entropy."""
    counts = Counter(token for document in train for token in document)
    total, kinds = sum(counts.values()), len(counts)
    tokens = [token for document in validation for token in document]
    best = counts.most_common(1)[0][0]
    nats = [-math.log((counts[t] + 1) / (total + kinds + 1)) for t in tokens]
    return {"accuracy": tokens.count(best) / len(tokens), "loss": sum(nats) / len(tokens)}


def make_optimizers(
    model: BertForMaskedLM, args: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest.

    With AdamW alone this small model stays on the plateau of word frequencies (loss 5.9) for
    thousands of steps; with Muon it leaves the plateau within one thousand.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".encoder." in name]
    chosen = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.AdamW(
            rest, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        ),
        torch.optim.Muon(
            matrices, lr=args.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
    ]


def train(args: argparse.Namespace, model, train_docs, validation, tokenizer) -> list[dict]:
    """Train `model` in place, evaluate every args.eval_steps, and return the evaluations."""
    collate = DataCollatorForLanguageModeling(tokenizer)
    masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.mlm_probability)
    optimizers = make_optimizers(model, args)
    schedules = [
        get_linear_schedule_with_warmup(o, args.warmup_steps, args.max_steps) for o in optimizers
    ]
    history: list[dict] = []
    blocks: list[list[int]] = []
    started = time.monotonic()
    for step in range(1, args.max_steps + 1):
        length = SHORT if step <= args.short_steps else BLOCK
        size = args.per_device_train_batch_size * BLOCK // length
        if len(blocks) < size or len(blocks[0]) != length:
            order = torch.randperm(len(train_docs)).tolist()
            blocks = pack([train_docs[i] for i in order], tokenizer, length)
        batch = [{"input_ids": blocks.pop()} for _ in range(size)]
        loss, _, _ = masked_loss(model, masker(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        model.zero_grad()
        if step % args.eval_steps == 0 or step == args.max_steps:
            row = {"step": step, **evaluate(model, validation, collate)}
            history.append(row)
            print(json.dumps({**row, "minutes": (time.monotonic() - started) / 60}), flush=True)
            save(model, tokenizer, args.output_dir)
    return history


def save(model: BertForMaskedLM, tokenizer: BertTokenizer, directory: Path) -> None:
    """Save the model in fp16, and its tokenizer."""
    copy.deepcopy(model).half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def model_card(result: dict) -> str:
    """The model's README, with its results, a unigram baseline and random weights."""
    last, flags = result["history"][-1], result["arguments"]
    given = " ".join(f"--{name} {value}" for name, value in flags.items() if value is not None)
    rows = {
        "this model": last,
        "random weights": result["random_init"],
        "unigram": result["unigram"],
    }
    table = "\n".join(
        f"| {name} | {row['accuracy']:.4f} | {row['loss']:.3f} |" for name, row in rows.items()
    )
    return f"""# The embedded BERT

A small uncased BERT (4 layers, hidden 128, 4 heads, {flags["vocab_size"]:,} WordPieces) for
demonstrations and tests, pre-trained from scratch with the masked-LM objective on the public-domain
books in `../mlm` ({result["train_tokens"]:,} tokens). It has no pooler and has seen only these
books. Weights are stored in fp16.

    python benchmarks/pretrain_embedded.py --output_dir DIR {given}

{last["step"]:,} steps; {result["machine"]}; one run. On {last["n"]:,} masked tokens of held-out
paragraphs:

| | masked accuracy | loss (nats) |
| --- | --- | --- |
{table}

`unigram` always predicts the most frequent token; its loss is the cross-entropy of the training
frequencies. `pretraining.json` has the evaluations during training.
"""


def machine() -> str:
    """The machine and the software in a few words."""
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} threads, torch {torch.__version__}"


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, default=12_000)
    parser.add_argument(
        "--short_steps", type=int, default=8_000, help=f"first steps, on blocks of {SHORT} tokens"
    )
    parser.add_argument("--per_device_train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--muon_lr", type=float, default=2e-3)
    parser.add_argument(
        "--mlm_probability", type=float, default=0.3, help="while training; evaluation masks 15 %%"
    )
    parser.add_argument("--warmup_steps", type=int, default=500)
    parser.add_argument("--eval_steps", type=int, default=1_000)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--initializer_range", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def new_model(vocab_size: int, initializer_range: float) -> BertForMaskedLM:
    """A small BERT with random weights."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=BLOCK,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=initializer_range,
    )
    model = BertForMaskedLM(config)
    place_sinusoids(model.bert.embeddings.position_embeddings.weight, initializer_range)
    return model


def main() -> None:
    """Run the recipe; see --help."""
    args = parse_args()
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    books, held_out = read_books("train"), read_books("validation")
    tokenizer = train_tokenizer(books, args.vocab_size, args.output_dir)
    train_docs, held_docs = (
        tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        for texts in (books, held_out)
    )
    validation = pack(held_docs, tokenizer, BLOCK)
    model = new_model(len(tokenizer), args.initializer_range)
    result = {
        "machine": machine(),
        "train_tokens": sum(map(len, train_docs)),
        "unigram": unigram_baseline(train_docs, held_docs),
        "random_init": evaluate(model, validation, DataCollatorForLanguageModeling(tokenizer)),
    }
    print(json.dumps(result), flush=True)
    result["history"] = train(args, model, train_docs, validation, tokenizer)
    result["arguments"] = {**vars(args), "output_dir": None}
    (args.output_dir / "pretraining.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output_dir / "README.md").write_text(model_card(result))


if __name__ == "__main__":
    main()
