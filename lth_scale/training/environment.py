"""Accelerate's process state, as flags and launcher ask for it."""

import logging
import os
import platform
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from transformers import enable_full_determinism

from lth_scale.config.arguments import Training
from lth_scale.config.resolution import launched_precision
from lth_scale.distributed import compat, launch
from lth_scale.tracking.machine import usable_cores

log = logging.getLogger("lth_scale")


def make_accelerator(args: Training) -> Accelerator:
    """Create the `Accelerator` of this process. Raises BadInput if launcher and flags conflict."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    accelerator = launch.connect(precision, args.gradient_accumulation_steps, args.ddp_timeout)
    if args.full_determinism:
        enable_full_determinism(args.seed)
    if accelerator.device.type == "cpu":
        use_all_cores()
    if accelerator.is_main_process:
        warn_of_precision(accelerator)
    return accelerator


def warn_of_precision(accelerator: Accelerator) -> None:
    """Warn of a precision that overrides the launcher's, and of bf16 on a CPU that emulates it."""
    precision = accelerator.mixed_precision
    for overridden in launched_precision().keys() - {precision}:
        log.warning(
            "the launcher's precision, %s, is overridden: this run uses %s", overridden, precision
        )
    if precision == "bf16" and accelerator.device.type == "cpu" and emulates_bf16():
        log.warning(
            "--bf16: this CPU has no bf16 instructions, and emulating them can take twice as long "
            "as fp32; leave it out, in another --output_dir"
        )


def settings_in_force(accelerator: Accelerator) -> dict[str, Any]:
    """Return precision, compile backend and threads of this machine, whoever has set them."""
    dynamo = accelerator.state.dynamo_plugin
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {
        "precision": accelerator.mixed_precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": "no" if dynamo.backend == DynamoBackend.NO else dynamo.to_dict(),
        "threads": torch.get_num_threads() * local_ranks,
    }


def emulates_bf16() -> bool:
    """Return True on an x86 CPU without AVX512_BF16 and AMX: torch multiplies in fp32 there."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not compat.has_bf16_instructions()


def use_all_cores() -> None:
    """Give this process its share of the cores: `accelerate launch` sets one thread on the CPU."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(usable_cores()) // local_ranks))
