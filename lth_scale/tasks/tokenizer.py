"""A tokenizer: whether a task can use it, and a digest of the ids that it assigns."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief

SHORTEST = 5  # tokens of a row: two texts of one token between CLS, SEP and SEP
NO_TOKENIZER = "has no tokenizer; save one next to the model"
# Fields of tokenizer_config.json that change no id: rows are cut and padded as the flags say.
NEUTRAL = {
    "model_max_length",
    "padding_side",
    "clean_up_tokenization_spaces",
    "backend",
    "is_local",
    "local_files_only",
    "name_or_path",
    "chat_template",
    "processor_class",
    "transformers_version",
}


def check_tokenizer(flag: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput if a tokenizer has no vocabulary or pad token, or leaves no room for a text.

    flag: the flag of the model and its value.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadInput(f"{flag}: {NO_TOKENIZER}")
    if tokenizer.pad_token_id is None:
        raise BadInput(
            f"{flag}: its tokenizer has no pad token; set pad_token in tokenizer_config.json, or "
            "tokenizer.pad_token before saving it"
        )
    length = tokenizer.model_max_length
    if not (isinstance(length, int | float) and length >= SHORTEST):
        raise BadInput(
            f"{flag}: its tokenizer_config.json has model_max_length {brief(repr(length))}; set it "
            "to the model's maximum number of tokens, or remove it"
        )


def check_ids(flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput if the tokenizer (or an added token) has an id without an embedding."""
    try:
        embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE hashes characters and has no table
        return
    vocabulary = tokenizer.get_vocab() | tokenizer.added_tokens_encoder
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if embeddings is not None and largest >= embeddings:
        raise BadInput(
            f"{flag}: its tokenizer has more tokens than its embeddings ({brief(repr(token), 40)} "
            f"is {largest}, and the last one is {embeddings - 1}); use a model with its own "
            "tokenizer, or call its resize_token_embeddings"
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that determines the ids of a text, and nothing else.

    It depends neither on where the files are nor on what was padded or truncated before.
    """
    attributes = {
        "class": type(tokenizer).__qualname__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": tokenizer.split_special_tokens,
        "truncation_side": tokenizer.truncation_side,
        "inputs": list(tokenizer.model_input_names),
    }
    content = _backend(tokenizer) or _saved(tokenizer)
    return hashlib.sha256(json.dumps([attributes, content], sort_keys=True).encode()).hexdigest()


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The content of tokenizer.json, or None if a part of the tokenizer is written in Python."""
    if not tokenizer.is_fast:
        return None
    try:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # "Custom PreTokenizer cannot be serialized", as a bare Exception
        return None
    return state | {"truncation": None, "padding": None}  # left over from the last call


def _saved(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Digests of the saved files, and the fields of tokenizer_config.json that change ids."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    config = json.loads(files.pop("tokenizer_config.json", b"{}"))
    neutral = NEUTRAL | {name for name in config if name.endswith("_file")}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {**digests, "config": {name: config[name] for name in config.keys() - neutral}}


def forget_truncation(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reset what the last call set: saved files must not depend on whether data was cached."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
