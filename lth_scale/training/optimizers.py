"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import get_scheduler

from lth_scale.config.arguments import Training
from lth_scale.config.checks import parse_optim_args
from lth_scale.config.errors import BadInput
from lth_scale.training.optimizer_registry import OPTIMIZERS


def make_optimizer(args: Training, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
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
    matrices = [weight for weight in trainable if weight.ndim >= 2]
    vectors = [weight for weight in trainable if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    options = {**optimizer.defaults, **parse_optim_args(args.optim_args, args.optim)}
    try:
        return optimizer.make(groups, lr=args.learning_rate, **options)
    except ImportError as problem:
        raise BadInput(
            f"--optim {args.optim}: needs {problem.name}; pip install 'lth_scale[gpu]'"
        ) from problem


def learning_rates(args: Training, total: int) -> Callable[[int], float]:
    """Return the function step → learning rate of --lr_scheduler_type over `total` steps."""
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    steps = args.warmup_steps
    warmup = math.ceil(steps * total) if steps < 1 else int(steps)
    schedule = get_scheduler(args.lr_scheduler_type, placeholder, warmup, max(1, total))
    factor = schedule.lr_lambdas[0]
    return lambda step: args.learning_rate * factor(step)
