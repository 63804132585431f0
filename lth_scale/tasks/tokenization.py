"""Tokenizers: what they lack, what a model and its tokenizer must agree on, and what decides their ids."""

import copy
import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.texts import brief, first_line
from lth_scale.distributed.encoder import base_model

WORDS = "the cat sat on a mat and saw one good dog "
PACKAGE = re.compile(
    r"install (?!the\b)([\w-]+)|The (\w+) (?:dictionary|library) is not|requires the (\w+) library"
)
SHORTEST = 5  # tokens of a row: two texts of one token between CLS, SEP and SEP
TRIED = 2048  # the most tokens that a model is run on to see whether it takes them
COMPARES_SEGMENTS = ("funnel", "xlnet")  # without an embedding of each
# What tokenizer_config.json says that decides no id where rows are cut to a length of ours and padded in batches.
NEUTRAL = (
    *("model_max_length", "padding_side", "clean_up_tokenization_spaces", "backend", "is_local"),
    *(
        "local_files_only",
        "name_or_path",
        "chat_template",
        "processor_class",
        "transformers_version",
    ),
)


def key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides which ids a text gives, and of nothing else.

    It is the same wherever the files lie, and whatever was padded or truncated before.
    """
    python = {
        "class": type(tokenizer).__qualname__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": tokenizer.split_special_tokens,
        "truncation_side": tokenizer.truncation_side,
        "inputs": list(tokenizer.model_input_names),
    }
    state = json.dumps([python, _backend(tokenizer) or _saved(tokenizer)], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """tokenizer.json, or None where a part of the tokenizer is written in Python."""
    if not tokenizer.is_fast:
        return None
    try:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # "Custom PreTokenizer cannot be serialized", as a bare Exception
        return None
    return state | {"truncation": None, "padding": None}  # as the last call left them


def _saved(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The files that the tokenizer saves: digests, and tokenizer_config.json without what decides no id."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    config = json.loads(files.pop("tokenizer_config.json", b"{}"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    decisive = {
        name: value
        for name, value in config.items()
        if name not in NEUTRAL and not name.endswith("_file")
    }
    return {**digests, "config": decisive}


def forget_truncation(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop what the last call left, or what is saved would tell whether data came from a cache."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text: none, one or more of each."""
    bare, whole = (
        tokenizer(WORDS, add_special_tokens=given)["input_ids"] for given in (False, True)
    )
    count = len(whole) - len(bare)
    starts = [i for i in range(count + 1) if whole[i : i + len(bare)] == bare]
    before = starts[0] if bare and starts else (count + 1) // 2
    return whole[:before], whole[before + len(bare) :]


def diagnosis(problem: Exception, directory: Path) -> str | None:
    """Why a model or tokenizer cannot be loaded and what helps, where the library's error says neither."""
    text = str(problem).replace(str(directory), "")
    no_class = "instantiate the backend tokenizer" in text and _has_code(
        directory / "tokenizer_config.json"
    )
    if no_class or "custom code" in text or "trust_remote_code" in text:
        files = [
            name for name in ("config.json", "tokenizer_config.json") if _has_code(directory / name)
        ]
        return (
            f"needs code of its own (auto_map in {' and '.join(files) or 'config.json'}), which is not run here; "
            "give a model and a tokenizer that transformers has classes for"
        )
    if "tiktoken" in text or "sentencepiece" in text.lower():
        if directory.is_dir() and not any(directory.glob("*.model")):
            return NO_TOKENIZER
        if importlib.util.find_spec("sentencepiece") is None:
            return f"its tokenizer {NO_PACKAGE.format('sentencepiece')}"
        return "its SentencePiece model cannot be read; give it whole, or save the tokenizer as tokenizer.json"
    if isinstance(problem, ImportError) and (found := PACKAGE.search(text)):
        return NO_PACKAGE.format(next(filter(None, found.groups())).lower().replace("_", "-"))
    return None


NO_TOKENIZER = "has no tokenizer; save one beside the model"
NO_PACKAGE = "needs the package {0}, which is not installed; pip install {0}"


def _has_code(path: Path) -> bool:
    return path.is_file() and b'"auto_map"' in path.read_bytes()


def check(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput for a tokenizer without a vocabulary or a pad token, or which leaves no room for a text."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadInput(f"{name}: {NO_TOKENIZER}")
    if tokenizer.pad_token_id is None:
        raise BadInput(
            f"{name}: its tokenizer has no pad token; name one as pad_token in tokenizer_config.json, or set "
            "tokenizer.pad_token and save it again"
        )
    most = tokenizer.model_max_length
    if not (isinstance(most, int | float) and most >= SHORTEST):
        raise BadInput(
            f"{name}: its tokenizer_config.json has model_max_length {brief(repr(most))}; set it to the most tokens "
            "that the model takes, or take it out"
        )


def check_ids(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput where the tokenizer has an id that the model does not embed: added tokens, too, and after gaps."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE has no table: it hashes
        return
    vocabulary = {**tokenizer.get_vocab(), **tokenizer.added_tokens_encoder}
    token = max(vocabulary, key=lambda token: vocabulary[token])
    if rows is not None and vocabulary[token] >= rows:
        raise BadInput(
            f"{name}: its tokenizer has more tokens than its embeddings ({brief(repr(token), 40)} is "
            f"{vocabulary[token]}, and they end at {rows - 1}); give a model with its own tokenizer, or call its "
            "resize_token_embeddings"
        )


def check_offsets(args: Training, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput for a tokenizer that cannot tell where its tokens lie in the text."""
    if not tokenizer.is_fast:
        raise BadInput(
            f"--task {args.task}: {type(tokenizer).__name__}, the tokenizer of {args.model_name_or_path}, does not "
            "tell where a token lies in the text; give a model with a tokenizer.json, or another task"
        )


@dataclass(frozen=True)
class Inputs:
    """How texts become the inputs of a model.

    length: the most tokens of a row. segments: whether the model tells two texts apart (token_type_ids).
    padding: "longest" of a batch, or "max_length" where padding changes what the model gives.
    """

    length: int
    segments: bool
    padding: str


def agree(
    args: Training, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: int = 1
) -> Inputs:
    """What model and tokenizer take of rows of one text or two; sets the side of padding, and the id on the model.

    The model is asked: it is run, as it is, on a few rows. Raises BadInput where it takes none.
    """
    name = f"--model_name_or_path {args.model_name_or_path}"
    _attend(model, tokenizer)
    _warn_of_padding(name, model, tokenizer)
    _warn_of_lost_tokens(name, model, tokenizer, texts)
    for part, settings in ((model, model.config.to_dict()), (tokenizer, tokenizer.init_kwargs)):
        if settings.get("auto_map"):
            warn(
                f"{name}: code of its own (auto_map) is not run; it is read as {type(part).__name__} of transformers"
            )
    segments = has_segments(model)
    # The product with a whole vocabulary would cost more than the encoder.
    network: Any = base_model(model) if args.task == "mlm" else model

    def row(length: int) -> BatchEncoding:
        return example(tokenizer, texts, length, segments)

    length = longest(name, network, row, args.max_seq_length, tokenizer.model_max_length)
    if length < args.max_seq_length:
        warn(f"--max_seq_length {args.max_seq_length} is more than the model takes; using {length}")
    shortest = (
        tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    )  # where padding is nearest
    side = padding_side(args, network, tokenizer, row(shortest), length)
    tokenizer.padding_side = side or "right"
    if side is None and args.task != "mlm":  # whose blocks are of one length
        warn(
            f"{type(model).__name__} gives other scores where a row is padded; all are padded to {length} tokens"
        )
    return Inputs(length, segments, "longest" if side else "max_length")


def _attend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the tokenizer give an attention mask where the model takes one, and none where it does not."""
    others = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    if takes_mask != ("attention_mask" in tokenizer.model_input_names):
        tokenizer.model_input_names = [*others, *(["attention_mask"] if takes_mask else [])]


def _warn_of_padding(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """RoBERTa and its kin count positions from the pad token on: which, was settled when the model was made."""
    pad = tokenizer.pad_token_id
    expected = [
        getattr(model.config, "pad_token_id", None),
        *(table.padding_idx for table in position_tables(model)),
    ]
    others = [id for id in expected if id not in (None, pad)]
    if others:
        warn(
            f"{name}: its config.json or its positions take {others[0]} as the padding's id, and its tokenizer pads "
            f"with {pad}: if text holds {others[0]}, positions may shift; give the model its own tokenizer"
        )


def _warn_of_lost_tokens(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: int
) -> None:
    before, after = around(tokenizer)
    of_encoder = not before + after and type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    if of_encoder or tokenizer.cls_token_id not in [None, *before, *after]:
        lost = tokenizer.cls_token or "[CLS]"
        warn(
            f"{name}: its tokenizer adds no {lost} to a text, which encoders are pre-trained with and heads read; "
            "save the tokenizer with its post-processor"
        )
    elif texts == 2 and not separates(tokenizer):
        warn(
            f"{name}: its tokenizer puts no token between two texts, so one runs on into the other; save it with a "
            "post-processor that does"
        )
    if getattr(tokenizer, "normalization", False) and getattr(tokenizer, "demojizer", True) is None:
        warn(
            f"{name}: its tokenizer leaves emoji as they are for want of a package; pip install emoji==0.6.0"
        )


def separates(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where the tokenizer puts a special token between two texts."""
    bare, pair = (
        tokenizer(WORDS, add_special_tokens=False)["input_ids"],
        tokenizer(WORDS, WORDS)["input_ids"],
    )
    both = [*bare, *bare]
    return all(pair[i : i + len(both)] != both for i in range(len(pair)))


def has_segments(model: PreTrainedModel) -> bool:
    """True where the model takes `token_type_ids` and has at least two of them."""
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    has_table = (getattr(model.config, "type_vocab_size", 0) or 0) >= 2
    return takes_them and (has_table or model.config.model_type in COMPARES_SEGMENTS)


def example(
    tokenizer: PreTrainedTokenizerBase, texts: int, length: int, segments: bool
) -> BatchEncoding:
    """A row of `length` tokens, (1, length), of one text or two."""
    options: dict[str, Any] = {} if segments else {"return_token_type_ids": False}
    given = [WORDS * (length // 8 + 1)] * texts
    return tokenizer(*given, truncation=True, max_length=length, return_tensors="pt", **options)


def position_tables(model: nn.Module) -> list[nn.Embedding]:
    """The embeddings of absolute positions that are known by their name."""
    return [
        module
        for name, module in base_model(model).named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]


def longest(
    name: str, model: PreTrainedModel, row: Callable[[int], Mapping[str, Any]], *limits: int
) -> int:
    """The most tokens, up to the least of `limits`, that config.json, tables and a run of the model allow.

    row(length) makes inputs of that length. Raises BadInput where the model takes none.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    high = min(
        *map(int, limits),
        *([positions] if isinstance(positions, int) and positions > 0 else []),
        *(
            table.num_embeddings - (1 + table.padding_idx if table.padding_idx is not None else 0)
            for table in position_tables(model)
        ),
    )
    tried = min(high, TRIED)
    problem = refusal(model, row(tried))
    if problem is None:
        return high
    low, high = 0, tried
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if middle < SHORTEST or refusal(model, row(middle)) else (middle, high)
        )
    if low == 0:
        why = f"{type(problem).__name__}: {first_line(problem)}"
        raise BadInput(
            f"{name}: {type(model).__name__} does not run on what its tokenizer gives ({why}); give "
            "an encoder of texts with its own tokenizer"
        ) from None
    return low


def refusal(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Exception | None:
    """What the model raises on these inputs, or None."""
    try:
        outputs(model, inputs)
    except (
        Exception
    ) as problem:  # an index out of range, shapes that do not fit, an input that is not known …
        return problem
    return None


def outputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """The first output of a run without dropout, which leaves the model and the random numbers as they were."""
    training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return model.eval()(**inputs)[0]
        finally:
            model.train(training)


def padding_side(
    args: Training, model: Any, tokenizer: PreTrainedTokenizerBase, row: BatchEncoding, length: int
) -> str | None:
    """The side where padding does not change what the model gives for a row, or None: right where both would do.

    Heads that look for the last token find it by config.pad_token_id, which is then set as the tokenizer pads.
    """
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    before = getattr(model.config, "pad_token_id", None)
    model.config.pad_token_id = tokenizer.pad_token_id
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    model.config.pad_token_id = before
    may_be_left = args.task != "squad"  # whose spans are counted from the left
    return "left" if may_be_left and is_neutral(model, tokenizer, row, length, "left") else None


def is_neutral(
    model: Any, tokenizer: PreTrainedTokenizerBase, row: BatchEncoding, length: int, side: str
) -> bool:
    """True where the model gives the same for the row, alone and padded on this side (to `length`, or 64 tokens)."""
    count = row["input_ids"].shape[1]
    options: dict[str, Any] = {"max_length": max(count, min(length, 64)), "padding_side": side}
    longer = tokenizer.pad(copy.copy(row), "max_length", return_tensors="pt", **options)
    if refusal(model, row) or refusal(
        model, longer
    ):  # Reformer takes multiples of its chunks alone
        return False
    alone, padded = outputs(model, row), outputs(model, longer)
    if padded.shape != alone.shape:  # an output for each token
        padded = padded[:, :count] if side == "right" else padded[:, -count:]
    seen = alone.abs() < 1e4  # what is masked is no scale
    if (
        padded.shape != alone.shape or not seen.any()
    ):  # NaN is named where the whole network is tried
        return padded.shape == alone.shape and not alone.isfinite().any()
    return bool((padded - alone)[seen].abs().max() <= 1e-4 * alone[seen].abs().max())
