"""Checks of a checkpoint's files before its weights are read."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.distributed import compat

LARGEST_COUNT = 100_000  # labels, or layers
LFS_POINTER = b"version https://git-lfs"  # how a Git LFS pointer starts
COUNT = re.compile(r"(layers?|groups|group_num)$")  # config fields of which transformers makes many
# Constants of attention that older versions stored with the weights: masks and frequencies.
CONSTANT = re.compile(r"(attn|attention)\.(masked_)?bias$|\.inv_freq$|\.position_ids$")


def check_counts(path: str, revision: str | None = None) -> None:
    """Raise ValueError if config.json counts more labels or layers than any network has.

    Call it before the config is made, which allocates as many. Raises what from_pretrained raises.
    """
    written, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for name, value in _fields(written):
        has = f"config.json has {name}"
        if name == "num_labels" and not (type(value) is int and 1 <= value <= LARGEST_COUNT):
            raise ValueError(f"{has} {value!r}; it must be 1 to {LARGEST_COUNT:,}")
        if type(value) is int and COUNT.search(name) and value > LARGEST_COUNT:
            raise ValueError(f"{has} {value}, more than any checkpoint has tensors")
        if name == "id2label" and value is not None:
            keys = map(str, value) if isinstance(value, dict) else [""]
            if not all(re.fullmatch(r"\d+", key) for key in keys):
                raise ValueError(f"{has} {brief(repr(value))}; its keys must be numbers")
            if len(value) > LARGEST_COUNT:
                raise ValueError(f"{has} of {len(value):,} labels; use at most {LARGEST_COUNT:,}")


def _fields(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _fields(value)


def check_encoder(flag: str, config: PreTrainedConfig) -> None:
    """Raise BadInput if a config asks for a decoder, causal attention or quantization."""
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(
            f"{flag}: is an encoder-decoder ({config.model_type}), and only encoders are trained; "
            "use one such as BERT"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        raise BadInput(
            f"{flag}: config.json has quantization_config {brief(repr(quantization))}, and a "
            "quantized encoder cannot be trained; use the network before quantization"
        )
    for name in ("is_decoder", "add_cross_attention", "causal"):
        if value := getattr(config, name, None):
            raise BadInput(
                f"{flag}: config.json has {name} {brief(repr(value))}, and only bidirectional "
                "encoders are trained; set it to false"
            )


def check_checkpoint(path: str, revision: str | None, config: PreTrainedConfig) -> None:
    """Raise ValueError for weights that are not floating-point safetensors, or impossible values.

    A million layers would take hours to build before the checkpoint is found to lack them.
    """
    dtypes = tensor_dtypes(path, revision)
    for name, dtype in dtypes.items():
        is_weight = re.search(r"(weight|bias)$", name) and not CONSTANT.search(name)
        if is_weight and not dtype.startswith(("F", "BF")):
            raise ValueError(f"its {name} is {dtype}, and weights are floating-point numbers")
    for name, value in config.to_dict().items():
        has = f"config.json has {name} {value}"
        if dtypes and type(value) is int and COUNT.search(name) and value > len(dtypes):
            raise ValueError(f"{has}, and the checkpoint has {len(dtypes)} tensors")
        smallest = 0 if name.endswith("_eps") else -math.inf
        if isinstance(value, float) and not smallest < value < math.inf:
            raise ValueError(has)
    if other := getattr(config, "transformers_weights", None):
        raise ValueError(
            f"config.json has transformers_weights {brief(repr(other))}; "
            f"only {SAFE_WEIGHTS_NAME} is read"
        )
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ValueError(f"config.json has num_hidden_layers {config.num_hidden_layers}")


def tensor_dtypes(path: str, revision: str | None) -> dict[str, str]:
    """The dtypes of a safetensors checkpoint's tensors (such as `F32`), or {} for other formats.

    Raises ValueError if an index and its parts disagree.
    """

    def cached(file: str) -> str | None:
        return compat.cached_checkpoint_file(path, file, revision or "main")

    index, names = cached(SAFE_WEIGHTS_INDEX_NAME), f"{SAFE_WEIGHTS_INDEX_NAME} names"
    parts = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
    for part in parts.values():
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", part):
            raise ValueError(f"{names} {part!r}, which is not a safetensors file next to it")
    if cached(SAFE_WEIGHTS_NAME):  # transformers prefers it to the parts
        parts = {"": SAFE_WEIGHTS_NAME}
    dtypes: dict[str, str] = {}
    for part in sorted({*parts.values()}):
        file = cached(part)
        if file is None:
            raise ValueError(f"{names} {part}, which is missing")
        with open(file, "rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(
                    f"its {part} is a Git LFS pointer, not the file; run git lfs pull there"
                )
        with safe_open(file, framework="numpy") as tensors:
            keys = tensors.keys()
            dtypes |= {name: tensors.get_slice(name).get_dtype() for name in keys}
    if missing := sorted(parts.keys() - dtypes.keys() - {""}):
        raise ValueError(f"{names} {missing[0]}, which {parts[missing[0]]} lacks")
    return dtypes


def check_tokenizer_class(path: str, revision: str | None = None) -> None:
    """Raise ValueError if the tokenizer's class is the checkpoint's own code.

    transformers would use another class.
    """
    config = get_tokenizer_config(path, revision=revision)
    name = config.get("tokenizer_class") or "none"
    if config.get("auto_map") and not tokenizer_class_from_name(name):
        raise ValueError("its tokenizer needs trust_remote_code")
