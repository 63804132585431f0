"""Checks of a tokenizer, alone and against its model."""

import importlib.util
import re
from pathlib import Path

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.texts import brief
from lth_scale.tasks.probes import SHORTEST, adds_separator, position_tables, special_tokens_around

NO_TOKENIZER = "has no tokenizer; save one next to the model"
NO_PACKAGE = "needs the package {0}, which is not installed; pip install {0}"
# How transformers names the package that a tokenizer needs.
PACKAGE = re.compile(
    r"install (?!the\b)([\w-]+)|The (\w+) (?:dictionary|library) is not|requires the (\w+) library"
)


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
    vocabulary = {**tokenizer.get_vocab(), **tokenizer.added_tokens_encoder}
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if embeddings is not None and largest >= embeddings:
        raise BadInput(
            f"{flag}: its tokenizer has more tokens than its embeddings ({brief(repr(token), 40)} "
            f"is {largest}, and the last one is {embeddings - 1}); use a model with its own "
            "tokenizer, or call its resize_token_embeddings"
        )


def check_offsets(task: str, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput if the tokenizer does not report where its tokens are in the text."""
    if not tokenizer.is_fast:
        raise BadInput(
            f"--task {task}: {type(tokenizer).__name__}, the tokenizer of {model}, does not report "
            "where tokens are in the text; use a model with a tokenizer.json, or another task"
        )


def warn_about_padding(
    flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn if the model counts positions from another pad token (as RoBERTa does) than is used."""
    pad = tokenizer.pad_token_id
    ids = [getattr(model.config, "pad_token_id", None)]
    ids += [table.padding_idx for table in position_tables(model)]
    other = next((id for id in ids if id not in (None, pad)), None)
    if other is not None:
        warn(
            f"{flag}: its config.json or its positions take {other} as the id of padding, and its "
            f"tokenizer pads with {pad}: if a text contains {other}, positions may shift; use the "
            "model's own tokenizer"
        )


def warn_about_special_tokens(
    flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: int
) -> None:
    """Warn if the tokenizer adds no CLS, no separator, or ignores emoji for lack of a package."""
    before, after = special_tokens_around(tokenizer)
    is_encoder = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    lacks_cls = tokenizer.cls_token_id not in [None, *before, *after]
    if lacks_cls or (is_encoder and not before + after):
        warn(
            f"{flag}: its tokenizer does not add {tokenizer.cls_token or '[CLS]'}, which encoders "
            "are pre-trained with and heads read; save the tokenizer with its post-processor"
        )
    elif texts == 2 and not adds_separator(tokenizer):
        warn(
            f"{flag}: its tokenizer adds no token between two texts, so they run into each other; "
            "save it with a post-processor that does"
        )
    if getattr(tokenizer, "normalization", False) and getattr(tokenizer, "demojizer", True) is None:
        warn(f"{flag}: its tokenizer does not convert emoji; pip install emoji==0.6.0")


def explain_load_error(error: Exception, directory: Path) -> str | None:
    """The reason and the remedy if transformers' error names neither; None if it does.

    error: raised while a model or tokenizer was loaded from `directory`.
    """
    text = str(error).replace(str(directory), "")
    no_class = "instantiate the backend tokenizer" in text
    if "custom code" in text or "trust_remote_code" in text:
        return _custom_code(directory)
    if no_class and _has_code(directory / "tokenizer_config.json"):
        return _custom_code(directory)
    if "tiktoken" in text or "sentencepiece" in text.lower():
        return _sentencepiece(directory)
    if isinstance(error, ImportError) and (match := PACKAGE.search(text)):
        package = next(filter(None, match.groups()))
        return NO_PACKAGE.format(package.lower().replace("_", "-"))
    return None


def _custom_code(directory: Path) -> str:
    names = ("config.json", "tokenizer_config.json")
    files = [name for name in names if _has_code(directory / name)]
    return (
        f"requires custom code (auto_map in {' and '.join(files) or 'config.json'}), which is not "
        "run; use a model and a tokenizer that transformers has classes for"
    )


def _sentencepiece(directory: Path) -> str:
    if directory.is_dir() and not any(directory.glob("*.model")):
        return NO_TOKENIZER
    if importlib.util.find_spec("sentencepiece") is None:
        return f"its tokenizer {NO_PACKAGE.format('sentencepiece')}"
    return (
        "its SentencePiece model cannot be read; replace it with a complete file, or save the "
        "tokenizer as tokenizer.json"
    )


def _has_code(path: Path) -> bool:
    return path.is_file() and b'"auto_map"' in path.read_bytes()
