"""An export on disk: written, read back, and compared with the network it was made from."""

import copy
import inspect
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lth_scale.config import files
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief, printable
from lth_scale.pruning.digests import digest
from lth_scale.shipping.export.formats import FORMATS, Parts, targets, unique_state
from lth_scale.shipping.export.locations import FORMAT, KINDS, read_verified, write_manifest
from lth_scale.shipping.export.source import Source, class_of, read_config, real_inputs, takes
from lth_scale.tasks.library_logs import quiet
from lth_scale.tracking.versions import versions

CLOSE = (
    1e-4  # how far, relative to the largest output, a format in fp32 may be from the dense network
)


def describe(source: Source, kind: str, dtype: str) -> dict[str, Any]:
    """What export.json says before anything is written."""
    state = unique_state(source.model)
    return {
        "format": FORMAT,
        "kind": kind,
        "dtype": dtype,
        "architecture": type(source.model).__name__,
        "source": printable(without_secrets(str(source.path))),
        "source_sha256": digest(state),
        "sparsity": source.sparsity,
        "pruned": source.pruned,
        "prunable": source.prunable,
        "dense_bytes": sum(each.nbytes for each in state.values()),
        "versions": versions(),
    }


def fill(directory: Path, source: Source, content: dict[str, Any]) -> dict[str, Any]:
    """Write an export, read it back and compare; returns export.json.

    Raises BadInput for a value beyond the dtype, and Stopped where an export in fp32 does not answer as the source,
    or one in int8 with no numbers.
    """
    kind, dtype, config = content["kind"], content["dtype"], copy.deepcopy(source.model.config)
    config.architectures, config.dtype = (
        [content["architecture"]],
        dtype if kind == "2:4" else "float32",
    )
    config.save_pretrained(directory)
    if source.tokenizer:
        source.tokenizer.save_pretrained(
            directory
        )  # before it is used: it would keep how it padded
    batches, inputs = real_inputs(source)
    if kind == "onnx":
        content["outputs"] = write_onnx(source, directory, batches[0])
    else:
        write(source, kind, dtype, directory)
    write_manifest(directory, content | {"difference": {}})
    apart = difference(source.model, load_network(directory), batches)
    if not apart["relative"] < (CLOSE if dtype == "float32" else float("inf")):
        raise Stopped(
            f"--format {kind}: read back, it is {apart['relative']:.1e} of the largest output off; nothing "
            "was kept: give another --format"
        )
    content["difference"] = {**apart, "inputs": inputs}
    if kind == "onnx":
        other = read_onnx(directory / "model.int8.onnx", source.model.config, content["outputs"])
        content["difference_int8"] = apart = difference(source.model, other, batches)
        if not math.isfinite(apart["relative"]):
            raise Stopped(
                "--format onnx: model.int8.onnx answers with NaN or infinity; nothing was kept: give another"
            )
    return write_manifest(directory, content)


def write(source: Source, kind: str, dtype: str, directory: Path) -> None:
    """Write the weights of a kind other than onnx. Raises BadInput for a value that `dtype` cannot hold."""
    known = targets(source.model)
    tensors: Parts = {}
    stored, pack = getattr(torch, dtype.replace("int8", "float32")), FORMATS[kind].pack
    for name, tensor in unique_state(source.model).items():
        cast = tensor.to(stored) if tensor.is_floating_point() else tensor
        if not cast.isfinite().all() and tensor.isfinite().all():
            raise BadInput(f"--dtype {dtype}: {name} has values beyond it; give another")
        parts = pack(cast, dtype) if pack and name in known else {}
        tensors |= {f"{name}.{part}": each for part, each in parts.items()} or {name: cast}
    files.write_tensors(directory / KINDS[kind].file, tensors, {"format": "pt"})


def load_network(directory: Path, dense: bool = False) -> PreTrainedModel:
    """The network of an export, in eval mode; with `dense`, its plain fp32 form, and not the one for speed.

    Raises BadInput where a file is damaged or missing, is no network of transformers, or cannot run here.
    """
    made = read_verified(directory)
    kind, file = made["kind"], directory / KINDS[made["kind"]].file
    if dense and kind in ("2:4", "onnx"):
        raise BadInput(
            f"{directory}: is an export to {kind}, which nothing else is made from; give what it was made from"
        )
    try:
        config = read_config(str(directory))
        if kind == "onnx":
            return read_onnx(file, config, made["outputs"])
        dtype = getattr(torch, made["dtype"]) if kind == "2:4" else torch.float32
        model, packed = _read(file, config, FORMATS[kind].unpack, dtype)
    except BadInput:
        raise
    except (
        Exception
    ) as problem:  # what is read may be anybody's, and meets the constructors of transformers
        raise BadInput(
            f"{file}: is no whole {kind} export ({brief(without_secrets(str(problem)))}); export or copy it again"
        ) from problem
    finish = None if dense else FORMATS[kind].finish
    return finish(model, packed).requires_grad_(False) if finish else model


def skeleton(config: PreTrainedConfig, names: set[str]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The network on the meta device, and the options that it is made with; nothing is allocated."""
    kind = class_of(config)
    if not 0 < config.num_hidden_layers <= len(names):
        raise ValueError(f"config.json wants {config.num_hidden_layers} layers")
    lacks_pooler = takes(kind, "add_pooling_layer") and not any(
        name.startswith("pooler.") for name in names
    )
    options = {"add_pooling_layer": False} if lacks_pooler else {}
    with torch.device("meta"), quiet():
        return kind(config, **options), options


def _read(
    path: Path, config: PreTrainedConfig, unpack: Any, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Parts]]:
    with safe_open(path, framework="pt") as file:
        shell, options = skeleton(config, set(file.keys()))
        shapes, known = (
            {name: each.shape for name, each in unique_state(shell).items()},
            targets(shell),
        )
        plain = {name for name in shapes if name not in known or not unpack}
        held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if wrong := [name for name in plain if held.get(name) != tuple(shapes[name])]:
            raise ValueError(f"{min(wrong)} is missing, or of another shape than config.json says")
        if wrong := [
            name
            for name in held.keys() - plain
            if not unpack or name.rpartition(".")[0] not in known
        ]:
            raise ValueError(f"{min(wrong)} is no part of the network")
        state: Parts = {name: file.get_tensor(name) for name in plain}
        packed: dict[str, Parts] = {known[name]: {} for name in shapes if name not in plain}
        for name in held.keys() - plain:
            weight, _, part = name.rpartition(".")
            packed[known[weight]][part] = file.get_tensor(name)
    for name in shapes.keys() - plain:
        try:
            state[name] = unpack(packed[known[name]], shapes[name])
        except ValueError as problem:
            raise ValueError(f"{name}: {problem}") from None
        if state[name].shape != shapes[name]:
            raise ValueError(f"{name} has another shape than config.json says")
    kind: Any = type(shell)
    with quiet():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, **options
        )
    assert not info["missing_keys"], info
    return model.eval(), packed


def write_onnx(source: Source, directory: Path, example: dict[str, Tensor]) -> list[str]:
    """Write model.onnx and model.int8.onnx; returns the name of the class of the outputs, and their names."""
    from lth_scale.shipping.export import onnx

    onnx.write(source.model, example, directory / "model.onnx")
    onnx.quantize(directory / "model.onnx", directory / "model.int8.onnx")
    with torch.inference_mode():
        outputs = source.model(**example)
    return [
        type(outputs).__name__,
        *(key for key, value in outputs.items() if isinstance(value, Tensor)),
    ]


def read_onnx(path: Path, config: PreTrainedConfig, outputs: list[str]) -> PreTrainedModel:
    """A model without weights of its own whose forward runs the file, with torch's number of threads, on the CPU.

    It takes input_ids, attention_mask and token_type_ids, and returns the ModelOutput named first in `outputs`.
    """
    from lth_scale.shipping.export import onnx

    kind, run = class_of(config), onnx.session(path, torch.get_num_threads())
    answer = getattr(sys.modules[kind.__module__], outputs[0], None)
    if not (isinstance(answer, type) and issubclass(answer, ModelOutput)):
        raise ValueError(f"{outputs[0]!r} is no class of outputs")
    names = [*inspect.signature(kind.forward).parameters][1:]

    def forward(*args: Any, **given: Any) -> Any:
        given |= dict(zip(names, args, strict=False))
        as_dict, ids, batch = given.pop("return_dict", True), given["input_ids"], {}
        for name, default in {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }.items():
            value = given.pop(name, None)
            batch[name] = default if value is None else value.long()
        if other := [
            name for name, value in given.items() if value is not None and value is not False
        ]:
            raise ValueError(f"an ONNX export takes no {other[0]}")
        made = answer(**dict(zip(outputs[1:], run(batch), strict=True)))
        return made if as_dict in (True, None) else made.to_tuple()

    model: Any = kind.__new__(kind)
    PreTrainedModel.__init__(model, config)
    model.register_parameter(
        "placeholder", nn.Parameter(torch.empty(0), requires_grad=False)
    )  # a device and a dtype
    model.forward = forward
    return model.eval()


def difference(
    source: PreTrainedModel, other: PreTrainedModel, batches: list[dict[str, Tensor]]
) -> dict[str, float]:
    """The largest difference of any floating output over all batches: absolute, and relative to the largest |output|.

    Relative is of each output (logits, start_logits, …) by itself, and the largest; NaN where an output is no number.
    """
    apart: dict[str, float] = {}
    sizes: dict[str, float] = {}
    with torch.inference_mode():
        for batch in batches:
            ours, theirs = (
                source(**batch),
                other(**{name: each.to(other.device) for name, each in batch.items()}),
            )
            for name, value in ours.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    apart[name] = _larger(
                        apart.get(name, 0.0), (theirs[name].float().cpu() - value).abs().max()
                    )
                    sizes[name] = _larger(sizes.get(name, 0.0), value.abs().max())
    relative = torch.tensor([apart[name] / max(sizes[name], 1e-30) for name in apart])
    return {
        "absolute": float(torch.tensor([*apart.values()]).max()),
        "relative": float(relative.max()),
    }


def _larger(known: float, found: Tensor) -> float:
    return float(torch.maximum(torch.tensor(known), found.float()))  # unlike max(), keeps NaN
