"""Which weights a ticket covers, by the structure of the network, and digests of weights."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lth_scale.config.errors import BadInput
from lth_scale.distributed.pieces import base_model

# the ends of the class names of modules that hold embeddings or norms
EMBEDDING, NORM = re.compile(r"Embed(ding(s|Bag)?|der)$"), re.compile(r"Norm(\dd)?$")
POOLER = "pooler."


class Weight(NamedTuple):
    """A parameter of two or more dimensions in the encoder's stack or its pooler.

    name: in the base model. kind: matrix, depthwise or other.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    kind: str

    @property
    def class_name(self) -> str:
        """The class of the module that holds the weight."""
        return type(self.module).__name__


def prunable(
    model: nn.Module, ignore: Iterable[str] = (), fresh: Collection[str] = ()
) -> dict[str, nn.Parameter]:
    """The prunable set: the weight of every matrix in the encoder's stack of layers and the pooler.

    A matrix is an `nn.Linear`, transformers' `Conv1D` or a convolution of width 1, grouped or not.
    The stack consists of the members of `nn.ModuleList`s of the base model, so that embeddings (and
    their projections), biases, norms, task heads and tied decoders are never included; neither are
    depthwise filters, which act like gains.

    ignore: regular expressions; a weight whose name matches one (`re.search`) is left out. fresh:
    names in the model of parameters that the checkpoint lacks; a pooler among them is left out.
    Returns the parameters by name in the base model, in its order. For BERT-base: 72 matrices
    (84,934,656 weights), 73 with the pooler (paper_reference, pruned_parameters).
    """
    names = {parameter: name for name, parameter in model.named_parameters()} if fresh else {}
    return {
        weight.name: weight.parameter
        for weight in _stack(model)
        if weight.kind == "matrix"
        and not is_ignored(weight.name, ignore)
        and not (weight.name.startswith(POOLER) and names.get(weight.parameter) in fresh)
    }


def _stack(model: nn.Module) -> Iterator[Weight]:
    """The encoder's weights from its first layer on, without embeddings, norms and biases.

    Only layers and pooler have matrices. Weights of other kinds between or after the layers are
    included too, such as a convolution of DeBERTa-v2.
    """
    base = base_model(model)
    modules = dict(base.named_modules())
    embeddings = tuple(
        f"{name}."
        for name, module in modules.items()
        if name and EMBEDDING.search(type(module).__name__)
    )
    lists = (f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList))
    layers = tuple(name for name in lists if not name.startswith(embeddings))
    in_stack = False
    for name, parameter in base.named_parameters():
        in_stack = in_stack or name.startswith(layers)
        module = modules[name.rpartition(".")[0]]
        is_vector = parameter.ndim < 2 or name.endswith("bias")
        if is_vector or name.startswith(embeddings) or NORM.search(type(module).__name__):
            continue
        kind = _kind(name, parameter, module)
        if name.startswith((*layers, POOLER)) or (in_stack and kind == "other"):
            yield Weight(name, parameter, module, kind)


def _kind(name: str, parameter: nn.Parameter, module: nn.Module) -> str:
    if not name.endswith(".weight"):
        return "other"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups > 1 and parameter.shape[1] == 1:
            return "depthwise"
        return "matrix" if set(module.kernel_size) == {1} else "other"
    return "matrix" if isinstance(module, nn.Linear | _conv1d()) else "other"


def _conv1d() -> type[nn.Module]:
    """The linear layer of GPT-2, whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """True if a regex of --ignore occurs in the name."""
    return any(re.search(regex, name) for regex in ignore)


def transposed(model: nn.Module) -> frozenset[str]:
    """The names of prunable weights (inputs, outputs); the others are (outputs, inputs, …)."""
    conv1d = _conv1d()
    return frozenset(weight.name for weight in _stack(model) if isinstance(weight.module, conv1d))


def not_linear(model: nn.Module) -> dict[str, str]:
    """The names of matrices that are not of an `nn.Linear`, and the classes of their modules."""
    return {
        weight.name: weight.class_name
        for weight in _stack(model)
        if weight.kind == "matrix" and not isinstance(weight.module, nn.Linear)
    }


def describe_kinds(model: nn.Module) -> str:
    """A line on the modules of the matrices; empty if all are nn.Linear."""
    if not not_linear(model):
        return ""
    counts = Counter(weight.class_name for weight in _stack(model) if weight.kind == "matrix")
    kinds = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return f"matrices of the encoder: {kinds}"


def describe_dense(model: nn.Module, ignore: Iterable[str] = ()) -> str:
    """A line on the depthwise filters, which stay dense; empty without any."""
    filters = _not_ignored(model, "depthwise", ignore)
    if not filters:
        return ""
    more = f" and {len(filters) - 1} more" if len(filters) > 1 else ""
    size = sum(weight.parameter.numel() for weight in filters)
    return f"not pruned: the depthwise filters {filters[0].name}{more} ({size:,} weights)"


def _not_ignored(model: nn.Module, kind: str, ignore: Iterable[str]) -> list[Weight]:
    weights = (weight for weight in _stack(model) if weight.kind == kind)
    return [weight for weight in weights if not is_ignored(weight.name, ignore)]


def check(model: nn.Module, ignore: Sequence[str], name: str) -> None:
    """Raise BadInput if the stack has weights that are neither prunable nor ignored, or no matrix.

    Also if a regular expression in `ignore` matches nothing. name: the model's flag and its value.
    """
    base = base_model(model)
    known = [parameter for parameter, _ in base.named_parameters()]
    for regex in ignore:
        if not any(re.search(regex, parameter) for parameter in known):
            raise BadInput(
                f"--ignore {regex}: matches no weight of {type(base).__name__}, "
                f"for example {known[-1]}; correct it or omit it"
            )
    if others := _not_ignored(model, "other", ignore):
        raise BadInput(
            f"{name}: {_describe(others)}, which cannot be pruned: matrices are nn.Linear, Conv1D "
            f"and convolutions of width 1; {_remedy(others)}"
        )
    if all(parameter.startswith(POOLER) for parameter in prunable(model, ignore)):
        after = f" with --ignore {' '.join(ignore)}" if ignore else ""
        raise BadInput(
            f"{name}: {type(model).__name__} has no matrix to prune in its layers{after}; "
            "use an encoder such as BERT"
        )


def _describe(others: list[Weight]) -> str:
    sizes = [weight.parameter.numel() for weight in others]
    largest = max(sizes)
    first = others[sizes.index(largest)]
    shape = "×".join(map(str, first.parameter.shape))
    rest = f"{sum(sizes) - largest:,} numbers"
    more = f" and {len(others) - 1} more ({rest})" if len(others) > 1 else ""
    about = f"{first.class_name}, {shape}, {largest:,} numbers"
    return f"its layers hold {first.name} ({about}){more}"


def _remedy(others: list[Weight]) -> str:
    names = dict.fromkeys(
        re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(weight.name)) for weight in others
    )
    regex = next(iter(names)) if len(names) == 1 else f"({'|'.join(names)})"
    return f"to leave all of them dense, use --ignore '^{regex}$'"


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and little-endian fp32 bytes of each weight, in the order given."""
    sha = hashlib.sha256()
    for name, weight in weights.items():
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        numbers = weight.detach().cpu().float().contiguous().numpy()
        sha.update(numbers.astype("<f4", copy=False).data)
    return sha.hexdigest()


def base_digest(model: nn.Module, fresh: Collection[str] = ()) -> str:
    """`base_sha256`: the digest of the encoder's parameters, sorted by name in the base model.

    Tied parameters count once. The pooler and the parameters that the checkpoint lacks (`fresh`, by
    their names in `model`) are left out, so that the digest depends on the checkpoint's weights
    alone: not on its file format, its dtype (bf16 and fp16 are widened to fp32) or the head.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    return digest(
        {
            name: weight
            for name, weight in sorted(base_model(model).named_parameters())
            if not name.startswith(POOLER) and names[weight] not in fresh
        }
    )
