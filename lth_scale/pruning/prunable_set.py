"""Which weights a ticket is about, read off the structure of the network and not off its names."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from torch import nn

from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model

# How the classes of modules end that hold embeddings or norms.
EMBEDDING, NORM = re.compile(r"Embed(ding(s|Bag)?|der)$"), re.compile(r"Norm(\dd)?$")
POOLER = "pooler."


class Weight(NamedTuple):
    """A parameter of two dimensions or more in the encoder's stack or its pooler. name: in the base model."""

    name: str
    parameter: nn.Parameter
    module: nn.Module
    kind: str  # matrix, depthwise or other

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.parameter.numel()


def prunable(
    model: nn.Module, ignore: Iterable[str] = (), fresh: Collection[str] = ()
) -> dict[str, nn.Parameter]:
    """The prunable set: the weight of every matrix inside the encoder's stack of layers, and of the pooler.

    A matrix is an `nn.Linear`, transformers' `Conv1D` or a convolution of width 1, with groups or without. The stack is
    found as the members of `nn.ModuleList`s of the base model, so embeddings (and their projections), biases, norms,
    task heads and tied decoders are never in it; neither is a depthwise filter, which is like a gain.

    ignore: regular expressions; what one of them finds (`re.search`) in a name is left out. fresh: names in the model
    that no checkpoint gave; a pooler among them is left out. Keys are names in the base model, in the order of its
    parameters; values are the parameters themselves. For BERT-base: 72 matrices (84,934,656 weights), 73 with the
    pooler (paper_reference, pruned_parameters).
    """
    names = {parameter: name for name, parameter in model.named_parameters()} if fresh else {}
    return {
        weight.name: weight.parameter
        for weight in stack(model)
        if weight.kind == "matrix"
        and not is_ignored(weight.name, ignore)
        and not (weight.name.startswith(POOLER) and names.get(weight.parameter) in fresh)
    }


def stack(model: nn.Module) -> Iterator[Weight]:
    """The weights of the encoder from its first layer on, but for embeddings, norms and biases, in their order.

    Matrices are those in the layers and the pooler alone. What else lies between the layers or after them, and is no
    matrix, is there too: a convolution of DeBERTa-v2 is part of its encoder.
    """
    base = base_model(model)
    modules = dict(base.named_modules())
    embeddings = tuple(
        f"{name}." for name, each in modules.items() if name and _is_a(EMBEDDING, each)
    )
    lists = (f"{name}." for name, each in modules.items() if isinstance(each, nn.ModuleList))
    layers, begun = tuple(name for name in lists if not name.startswith(embeddings)), False
    for name, parameter in base.named_parameters():
        begun = begun or name.startswith(layers)
        module = modules[name.rpartition(".")[0]]
        if (
            parameter.ndim < 2
            or name.startswith(embeddings)
            or name.endswith("bias")
            or _is_a(NORM, module)
        ):
            continue
        kind = _kind(name, parameter, module)
        if name.startswith((*layers, POOLER)) or (begun and kind == "other"):
            yield Weight(name, parameter, module, kind)


def _is_a(kind: re.Pattern[str], module: nn.Module) -> bool:
    return kind.search(type(module).__name__) is not None


def _kind(name: str, parameter: nn.Parameter, module: nn.Module) -> str:
    if not name.endswith(".weight"):
        return "other"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1 and parameter.shape[1] == 1:
        return "depthwise"
    narrow = isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1}
    return "matrix" if narrow or isinstance(module, nn.Linear | _conv1d()) else "other"


@cache
def _conv1d() -> type[nn.Module]:
    """The linear layer of GPT-2, whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """True where one of these regular expressions is found in a name."""
    return any(re.search(regex, name) for regex in ignore)


def transposed(model: nn.Module) -> frozenset[str]:
    """The names of the prunable weights that are (inputs, outputs); all others are (outputs, inputs, …)."""
    return frozenset(weight.name for weight in stack(model) if isinstance(weight.module, _conv1d()))


def not_linear(model: nn.Module) -> dict[str, str]:
    """Those of the prunable weights whose module is no `nn.Linear`, and the name of its class."""
    matrices = (weight for weight in stack(model) if weight.kind == "matrix")
    return {
        each.name: type(each.module).__name__
        for each in matrices
        if not isinstance(each.module, nn.Linear)
    }


def kinds(model: nn.Module) -> str:
    """A line on what the matrices are, where they are not all of nn.Linear; else empty."""
    matrices = [weight for weight in stack(model) if weight.kind == "matrix"]
    counts = Counter(type(each.module).__name__ for each in matrices)
    if all(isinstance(each.module, nn.Linear) for each in matrices):
        return ""
    return f"matrices of the encoder: {', '.join(f'{count} of {kind}' for kind, count in counts.items())}"


def check(model: nn.Module, ignore: Sequence[str], name: str) -> None:
    """Raise BadInput where the stack holds what can be neither pruned nor passed over, or `ignore` is wrong.

    name: the flag of the model and its value.
    """
    known = [each for each, _ in base_model(model).named_parameters()]
    for regex in ignore:
        if not any(re.search(regex, each) for each in known):
            raise BadInput(
                f"--ignore {regex}: is found in no name of a weight of {type(base_model(model)).__name__}, such as "
                f"{known[-1]}; give another, or leave it out"
            )
    others = [
        weight
        for weight in stack(model)
        if weight.kind == "other" and not is_ignored(weight.name, ignore)
    ]
    if others:
        raise BadInput(
            f"{name}: {_described(others)}, which cannot be pruned: matrices are nn.Linear, Conv1D and convolutions of "
            f"width 1; {_remedy(others)}"
        )
    if not any(not each.startswith(POOLER) for each in prunable(model, ignore)):
        why = (
            f"no matrix is left in its layers with --ignore {' '.join(ignore)}"
            if ignore
            else "no layers of matrices"
        )
        raise BadInput(
            f"{name}: {type(model).__name__} has {why} to prune; give an encoder like BERT"
        )


def _described(others: list[Weight]) -> str:
    first = max(others, key=lambda weight: weight.size)
    rest = sum(weight.size for weight in others) - first.size
    shape = "×".join(map(str, first.parameter.shape))
    more = f" and {len(others) - 1} more ({rest:,} numbers)" if len(others) > 1 else ""
    return f"its layers hold {first.name} ({type(first.module).__name__}, {shape}, {first.size:,} numbers){more}"


def _remedy(others: list[Weight]) -> str:
    """The flag that leaves these weights dense, in all layers."""
    names = dict.fromkeys(
        re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(weight.name)) for weight in others
    )
    regex = next(iter(names)) if len(names) == 1 else f"({'|'.join(names)})"
    return f"to leave all that dense, give --ignore '^{regex}$'"


def passed_over(model: nn.Module, ignore: Iterable[str] = ()) -> str:
    """A line on the depthwise filters of the stack, which stay dense; empty where there are none."""
    found = [
        each
        for each in stack(model)
        if each.kind == "depthwise" and not is_ignored(each.name, ignore)
    ]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    count = sum(weight.size for weight in found)
    return f"not pruned: the depthwise filters {found[0].name}{more} ({count:,} weights), one input a channel"
