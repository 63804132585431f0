"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import get_scheduler

from lth_scale.config.arguments import Training
from lth_scale.config.checks import parse_optim_args
from lth_scale.config.errors import BadInput


def make_optimizer(args: Training, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of --optim over all parameters; matrices decay, vectors do not. Raises BadInput."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {
            "params": [weight for weight in trainable if weight.ndim >= 2],
            "weight_decay": args.weight_decay,
        },
        {"params": [weight for weight in trainable if weight.ndim < 2], "weight_decay": 0.0},
    ]
    kinds: dict[str, tuple[type, dict]] = {
        "adamw_torch": (torch.optim.AdamW, {"eps": 1e-8}),
        "adamw_torch_fused": (torch.optim.AdamW, {"eps": 1e-8, "fused": True}),
        "sgd": (torch.optim.SGD, {}),
    }
    if args.optim == "adamw_bnb_8bit":
        kinds[args.optim] = (_bitsandbytes_adamw(device), {"eps": 1e-8})
    kind, options = kinds[args.optim]
    return kind(
        groups, lr=args.learning_rate, **options | parse_optim_args(args.optim_args, args.optim)
    )


def _bitsandbytes_adamw(device: torch.device) -> type:
    if device.type != "cuda":
        raise BadInput(
            f"--optim adamw_bnb_8bit: needs a CUDA GPU, this is {device.type}; use --optim adamw_torch"
        )
    try:
        import bitsandbytes
    except ImportError as problem:
        raise BadInput(
            "--optim adamw_bnb_8bit: needs bitsandbytes; pip install 'lth_scale[gpu]'"
        ) from problem
    return bitsandbytes.optim.AdamW8bit


def learning_rates(args: Training, total: int) -> Callable[[int], float]:
    """step → learning rate under --lr_scheduler_type over `total` steps."""
    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    warmup = (
        math.ceil(args.warmup_steps * total) if args.warmup_steps < 1 else int(args.warmup_steps)
    )
    factor = get_scheduler(args.lr_scheduler_type, nothing, warmup, max(1, total)).lr_lambdas[0]
    return lambda step: args.learning_rate * factor(step)
