"""A digest of what determines the ids that a tokenizer assigns."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

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
    state = json.dumps([attributes, content], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


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
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    fields = {
        name: value
        for name, value in config.items()
        if name not in NEUTRAL and not name.endswith("_file")
    }
    return {**digests, "config": fields}


def forget_truncation(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reset what the last call set: saved files must not depend on whether data was cached."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
