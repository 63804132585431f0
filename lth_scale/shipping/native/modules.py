"""Modules that call our operators, and which modules of transformers they stand for."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

TILE = 64  # tokens
ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3}
# The names in a layer: query, key, value, attention output, intermediate, output; the two norms.
BERT = (
    (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
DISTILBERT = (
    (
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    ),
    ("sa_layer_norm", "output_layer_norm"),
)
# model_type → the module that holds the stack, the names in each layer, and what it returns.
FUSED: dict[str, tuple[str, tuple, Any]] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        ("encoder", BERT, BaseModelOutputWithPastAndCrossAttentions),
    ),
    "distilbert": ("transformer", DISTILBERT, BaseModelOutput),
}


class NativeLinear(nn.Module):
    """y = W x + b for fp32 x (…, features), W as `pack_linear` made it."""

    packed: Tensor

    def __init__(self, packed: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("packed", packed)
        self.bias = bias
        _, self.out_features, self.in_features, *_ = packed[:8].tolist()

    def forward(self, x: Tensor) -> Tensor:
        """x: fp32 (…, in_features) → (…, out_features)."""
        return torch.ops.lth_scale.linear(x, self.packed, self.out_features, self.bias)


class NativeEncoder(nn.Module):
    """A stack of post-norm layers, one operator each; activations stay in tiles from the first to the last."""

    def __init__(self, layers: nn.ModuleList, names: tuple, config: Any, output: type):
        super().__init__()
        self.layer, self.names, self.output = layers, names, output
        self.heads, self.activation = config.num_attention_heads, ACTIVATIONS[activation_of(config)]

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        """hidden_states: fp32 (batch, tokens, features); attention_mask: (batch, 1, queries, keys), bool or added.

        Returns the encoder's output with its `last_hidden_state` alone. Raises ValueError for a mask that differs
        from query to query.
        """
        length = hidden_states.shape[1]
        x = torch.ops.lth_scale.enter(hidden_states)
        for layer in self.layer:
            linears: Any = [layer.get_submodule(name) for name in self.names[0]]
            norms: Any = [layer.get_submodule(name) for name in self.names[1]]
            x = torch.ops.lth_scale.layer(
                x,
                length,
                attention_mask,
                [each.packed for each in linears],
                [each.bias for each in linears],
                [part for norm in norms for part in (norm.weight, norm.bias)],
                self.heads,
                (linears[0].out_features // self.heads) ** -0.5,
                norms[0].eps,
                self.activation,
            )
        return self.output(last_hidden_state=torch.ops.lth_scale.leave(x, length))


def activation_of(config: Any) -> str:
    """The name of the feed-forward activation."""
    return str(getattr(config, "hidden_act", None) or getattr(config, "activation", ""))


def fuse(base: nn.Module) -> None:
    """Put a NativeEncoder in the place of a stack that is all of NativeLinear, where its make is known."""
    config: Any = base.config
    path, names, output = FUSED.get(config.model_type, ("", ((), ()), None))
    if not path or activation_of(config) not in ACTIVATIONS or getattr(config, "is_decoder", False):
        return
    layers: Any = base.get_submodule(path).layer
    linears = [layer.get_submodule(name) for layer in layers for name in names[0]]
    if all(isinstance(each, NativeLinear) and each.bias is not None for each in linears):
        base.set_submodule(path, NativeEncoder(layers, names, config, output))
        base.register_forward_pre_hook(_refuse, with_kwargs=True)


def _refuse(base: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    config: Any = base.config
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.get(name) or (kwargs.get(name) is None and getattr(config, name, False)):
            raise ValueError(
                f"{name}: a native encoder keeps its last layer alone; load the dense or csr export"
            )
