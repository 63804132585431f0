"""The optimizers of --optim, one line an entry. Does not import torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lth_scale.config.registry import Registry, lazy

Option = Callable[[str, str], float | bool]


@dataclass(frozen=True)
class Optimizer:
    """A value of --optim.

    make: (parameter groups, lr=…, **options) → `torch.optim.Optimizer`. defaults: options that are
    set unless --optim_args sets them. options: what --optim_args may set, each a function
    (name, text) → value that raises ValueError. device_type: the only one it runs on, if any.
    """

    make: Callable[..., Any]
    defaults: Mapping[str, float | bool] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    device_type: str = ""


def number(least: float, greatest: float) -> Option:
    """Return a parser of numbers from `least` to `greatest`."""

    def parse(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= greatest:
            raise ValueError(f"is not {name}=NUMBER; use one from {least:g} to {greatest:g}")
        return value

    return parse


def switch(name: str, text: str) -> bool:
    """Parse `true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"is not {name}=true or {name}=false; use one of them")
    return text.lower() == "true"


# With an eps that fp32 rounds to 0, a weight without a gradient becomes NaN.
EPS = {"eps": number(1e-30, 1.0)}
ADAM = {**EPS, "amsgrad": switch}
SGD = {"momentum": number(0.0, 1.0), "dampening": number(0.0, 1.0), "nesterov": switch}
ADAMW, ADAMW_8BIT = lazy("torch.optim:AdamW"), lazy("bitsandbytes.optim:AdamW8bit")

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
register_optimizer = OPTIMIZERS.register
register_optimizer("adamw_torch", Optimizer(ADAMW, {"eps": 1e-8}, ADAM))
register_optimizer("adamw_torch_fused", Optimizer(ADAMW, {"eps": 1e-8, "fused": True}, ADAM))
register_optimizer("sgd", Optimizer(lazy("torch.optim:SGD"), {}, SGD))
register_optimizer("adamw_bnb_8bit", Optimizer(ADAMW_8BIT, {"eps": 1e-8}, EPS, "cuda"))
