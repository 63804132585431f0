"""Modules that call our operators, and models in which they replace those of transformers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from lth_scale.distributed.pieces import base_model
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.native import kernels
from lth_scale.shipping.native.packing import pack_linear

ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3}  # as in native.cpp


class Architecture(NamedTuple):
    """Names in a post-norm encoder.

    stack: module with the list `layer`. linears: query, key, value, attention output, intermediate
    and output of a layer. norms: after the attention and after the feed-forward network. output:
    the class that the stack returns.
    """

    stack: str
    linears: tuple[str, ...]
    norms: tuple[str, str]
    output: type[Any]


BERT = Architecture(
    "encoder",
    (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    BaseModelOutputWithPastAndCrossAttentions,
)
DISTILBERT = Architecture(
    "transformer",
    (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        *("ffn.lin1", "ffn.lin2"),
    ),
    ("sa_layer_norm", "output_layer_norm"),
    BaseModelOutput,
)
ARCHITECTURES = {  # by `model_type`
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "distilbert": DISTILBERT,
}


class NativeLinear(nn.Module):
    """y = W x + b with W from `pack_linear`; fp32, no gradients."""

    packed: Tensor

    def __init__(self, packed: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("packed", packed)
        self.bias = bias
        self.out_features = int(packed[1])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, fp32 (…, in_features), to (…, out_features)."""
        return torch.ops.lth_scale.linear(x, self.packed, self.out_features, self.bias)


class NativeEncoder(nn.Module):
    """A stack of post-norm layers, one operator each; activations stay in tiles between layers."""

    def __init__(self, layers: nn.ModuleList, architecture: Architecture, config: PreTrainedConfig):
        super().__init__()
        self.layer, self.architecture = layers, architecture
        self.heads = config.num_attention_heads
        self.activation = ACTIVATIONS[_activation(config)]

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        """Run the stack on fp32 (batch, tokens, features); returns only `last_hidden_state`.

        attention_mask: (batch, 1, queries, keys), bool or additive. Raises ValueError if it differs
        between queries.
        """
        length = hidden_states.shape[1]
        x = torch.ops.lth_scale.enter(hidden_states)
        for layer in self.layer:
            linears: list[Any] = [layer.get_submodule(name) for name in self.architecture.linears]
            norms: list[Any] = [layer.get_submodule(name) for name in self.architecture.norms]
            x = torch.ops.lth_scale.layer(
                x,
                length,
                attention_mask,
                [linear.packed for linear in linears],
                [linear.bias for linear in linears],
                [parameter for norm in norms for parameter in (norm.weight, norm.bias)],
                self.heads,
                (linears[0].out_features // self.heads) ** -0.5,
                norms[0].eps,
                self.activation,
            )
        states = torch.ops.lth_scale.leave(x, length)
        return self.architecture.output(last_hidden_state=states)


def convert(model: PreTrainedModel, dtype: str = "float32") -> PreTrainedModel:
    """Replace the prunable matrices by packed ones, in place. Raises BadInput as `install`."""
    packed = {name: pack_linear(weight, dtype) for name, weight in prunable(model).items()}
    return install(model, packed)


def install(model: PreTrainedModel, packed: Mapping[str, Mapping[str, Tensor]]) -> PreTrainedModel:
    """Replace `nn.Linear`s, by the names of their weights in `prunable`, by packed ones in place.

    The stack of a known architecture becomes one `NativeEncoder`. The packed matrices have no
    gradients. Raises BadInput if the kernel cannot run here.
    """
    kernels.require()
    base: Any = base_model(model)
    for name, parts in packed.items():
        path = name.removesuffix(".weight")
        bias = base.get_submodule(path).bias
        base.set_submodule(path, NativeLinear(parts["packed"], bias))
    fuse(base)
    return model.eval()


def fuse(base: Any) -> None:
    """Replace a stack of `NativeLinear`s by a `NativeEncoder`, if its architecture is known."""
    config = base.config
    architecture = ARCHITECTURES.get(config.model_type)
    is_decoder = getattr(config, "is_decoder", False)
    if architecture is None or _activation(config) not in ACTIVATIONS or is_decoder:
        return
    layers = base.get_submodule(architecture.stack).layer
    linears = [layer.get_submodule(name) for layer in layers for name in architecture.linears]
    if all(isinstance(linear, NativeLinear) and linear.bias is not None for linear in linears):
        base.set_submodule(architecture.stack, NativeEncoder(layers, architecture, config))
        base.register_forward_pre_hook(_refuse_intermediate_outputs, with_kwargs=True)


def _activation(config: PreTrainedConfig) -> str:
    return str(getattr(config, "hidden_act", None) or getattr(config, "activation", ""))


def _refuse_intermediate_outputs(base: Any, args: Any, kwargs: dict[str, Any]) -> None:
    for name in ("output_attentions", "output_hidden_states"):
        requested = kwargs.get(name)
        if requested or (requested is None and getattr(base.config, name, False)):
            raise ValueError(
                f"{name}: a native encoder returns only its last layer; use a dense or csr export"
            )
