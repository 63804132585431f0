"""Accelerate, as the flags ask for it."""

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

log = logging.getLogger("lth_scale")


def make_accelerator(args: Training) -> Accelerator:
    """Accelerate's state for this process. Raises BadInput where launcher and flags do not fit."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    accelerator = launch.connect(precision, args.gradient_accumulation_steps, args.ddp_timeout)
    if args.full_determinism:
        enable_full_determinism(args.seed)
    overruled = launched_precision().keys() - {accelerator.mixed_precision}
    if overruled and accelerator.is_main_process:
        log.warning(
            "the launcher's precision, %s, is overruled: this is %s",
            *overruled,
            accelerator.mixed_precision,
        )
    if accelerator.device.type == "cpu":
        take_cores()
        if (
            accelerator.mixed_precision == "bf16"
            and accelerator.is_main_process
            and imitates_bf16()
        ):
            log.warning(
                "--bf16: this CPU has no bf16 instructions, and imitating them can take twice as long as fp32 "
                "does; leave it out, in another --output_dir"
            )
    return accelerator


def in_force(accelerator: Accelerator) -> dict[str, Any]:
    """Precision, compile backend and threads as they are, whoever has set them: flags, the launcher or an engine."""
    dynamo = accelerator.state.dynamo_plugin
    return {
        "precision": accelerator.mixed_precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": "no" if dynamo.backend == DynamoBackend.NO else dynamo.to_dict(),
        "threads": torch.get_num_threads()
        * int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # of this machine
    }


def imitates_bf16() -> bool:
    """True where torch multiplies bf16 by way of fp32: on an x86 CPU with neither AVX512_BF16 nor AMX."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not compat.has_bf16_instructions()


def take_cores() -> None:
    """Take this process's share of the cores: `accelerate launch` gives a CPU process one thread by default."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
