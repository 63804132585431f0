"""The optimizers of --optim, one line an entry. Does not import torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lth_scale.config.arguments import Training
from lth_scale.config.checks import parse_optim_args
from lth_scale.config.errors import BadInput
from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    import torch
    from torch import nn

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


def _number(least: float, greatest: float) -> Option:
    def parse(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= greatest:
            raise ValueError(f"is not {name}=NUMBER; use one from {least:g} to {greatest:g}")
        return value

    return parse


def _switch(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"is not {name}=true or {name}=false; use one of them")
    return text.lower() == "true"


# With an eps that fp32 rounds to 0, a weight without a gradient becomes NaN.
EPS = {"eps": _number(1e-30, 1.0)}
ADAM = {**EPS, "amsgrad": _switch}
SGD = {"momentum": _number(0.0, 1.0), "dampening": _number(0.0, 1.0), "nesterov": _switch}
ADAMW, ADAMW_8BIT = lazy("torch.optim:AdamW"), lazy("bitsandbytes.optim:AdamW8bit")

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
register_optimizer = OPTIMIZERS.register
register_optimizer("adamw_torch", Optimizer(ADAMW, {"eps": 1e-8}, ADAM))
register_optimizer("adamw_torch_fused", Optimizer(ADAMW, {"eps": 1e-8, "fused": True}, ADAM))
register_optimizer("sgd", Optimizer(lazy("torch.optim:SGD"), {}, SGD))
register_optimizer("adamw_bnb_8bit", Optimizer(ADAMW_8BIT, {"eps": 1e-8}, EPS, "cuda"))


def make_optimizer(
    args: Training, model: "nn.Module", device: "torch.device"
) -> "torch.optim.Optimizer":
    """Create the optimizer of --optim over all parameters, with weight decay on matrices only.

    Raises BadInput if the optimizer does not run on the device or its package is not installed.
    """
    optimizer = OPTIMIZERS[args.optim]
    if optimizer.device_type not in ("", device.type):
        raise BadInput(
            f"--optim {args.optim}: needs a {optimizer.device_type.upper()} GPU, this is "
            f"{device.type}; use --optim adamw_torch"
        )
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trainable if w.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [w for w in trainable if w.ndim < 2], "weight_decay": 0.0},
    ]
    options = {**optimizer.defaults, **parse_optim_args(args.optim_args, args.optim)}
    try:
        return optimizer.make(groups, lr=args.learning_rate, **options)
    except ImportError as problem:
        raise BadInput(
            f"--optim {args.optim}: needs {problem.name}; pip install 'lth_scale[gpu]'"
        ) from problem
