"""Blocks of text for masked language modelling, from local files or a stream of Wikipedia."""

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.dataset_cache import fingerprint, materialize
from lth_scale.tasks.locations import local_directory
from lth_scale.tasks.probes import special_tokens_around
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.tokenizer_digest import tokenizer_digest

HELD_OUT_ARTICLES = 2_000  # the first ones of the stream: the validation split
HELD_OUT_BLOCKS = 1_000
SHUFFLE_BUFFER = 10_000


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


def load_blocks(
    args: Training, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Dataset, Dataset]:
    """Load the blocks of train and validation. Raises BadInput."""
    directory = local_directory(args.task, args.dataset_path)
    if directory is None:
        return stream_blocks(args, tokenizer, length)
    texts, blocks = {}, []
    for split in TASKS["mlm"].splits:
        file = data.local_file(directory, split)
        texts[split] = data.load_local(file, {"text": "string"})
        packed = data.encode(texts[split], pack, tokenizer, length=length)
        if len(packed) == 0:
            raise BadInput(
                f"--max_seq_length {length}: {file} has too little text for one block; add text, "
                "or use a smaller length"
            )
        blocks.append(data.limit_rows(packed, data.row_limit(args, split)))
    data_warnings.warn_about_texts(args, texts, ("text",))
    return blocks[0], blocks[1]


def stream_blocks(
    args: Training, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Dataset, Dataset]:
    """Stream blocks of English Wikipedia once and keep them on disk: all rounds see the same ones.

    Raises BadInput if the number of training blocks does not follow from the flags.
    """
    articles = data.load_hub(*TASKS["mlm"].dataset, streaming=True)["train"]
    shuffled = articles.skip(HELD_OUT_ARTICLES).shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER)
    held_out = articles.take(HELD_OUT_ARTICLES)
    parts = ((shuffled, train_blocks(args)), (held_out, args.max_eval_samples or HELD_OUT_BLOCKS))
    splits = []
    for number, (part, count) in enumerate(parts):
        blocks = _packed(part, tokenizer, length).take(count)
        key = fingerprint(
            TASKS["mlm"].dataset, args.seed, count, length, number, tokenizer_digest(tokenizer)
        )
        splits.append(materialize(blocks.__iter__, key))
    return splits[0], splits[1]


def _packed(
    articles: IterableDataset, tokenizer: PreTrainedTokenizerBase, length: int
) -> IterableDataset:
    return articles.map(
        pack,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "length": length},
        remove_columns=["id", "url", "title", "text"],
    )


def train_blocks(args: Training) -> int:
    """The training blocks of a stream: --max_train_samples, or as many as --max_steps takes."""
    if args.max_train_samples is not None:
        return args.max_train_samples
    if args.max_steps < 0:
        raise BadInput(
            "--max_steps -1: a stream has no epochs; set --max_steps or --max_train_samples"
        )
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return max(1, args.max_steps) * step * PartialState().num_processes
