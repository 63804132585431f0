"""Starting the ranks: process group, launcher, device."""

import os
import sys
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.exit_codes import PROCESS
from lth_scale.distributed import compat
from lth_scale.distributed.rendezvous import init_process_group

CPU_CONFIGS = "accelerate_configs/*_cpu.yaml"


def connect(precision: str | None, accumulate: int, timeout: float) -> Accelerator:
    """Start the process group and return Accelerate's state for this process, on GPU or CPU.

    precision: "bf16", "fp16" or None for the launcher's. accumulate: micro-batches in an optimizer
    step. timeout: seconds that ranks wait for each other. Raises BadInput if the launcher's
    configuration and the flags do not fit, and Stopped if the ranks do not find each other.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        PROCESS.exit = exit_rank
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    # otherwise transformers would read θ₀ on the first rank alone
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # a plugin, because the launcher's variable would override the plain argument
    accumulation = GradientAccumulationPlugin(num_steps=accumulate)
    try:
        if compat.uses_agent_store():
            init_process_group("nccl" if torch.cuda.is_available() else "gloo", group.timeout)
        if not torch.cuda.is_available():
            _use_gloo(group)
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=accumulation,
            kwargs_handlers=[group],
        )
    except (ValueError, ImportError) as problem:
        name = f"--{precision or 'config_file'}"
        raise BadInput(f"{name}: {problem}; change the flag or the configuration") from problem
    except RuntimeError as problem:  # dist.DistError and gloo's errors
        raise Stopped(
            f"--ddp_timeout {timeout:g}: the ranks did not connect ({problem}); check that all are "
            "started, or increase it"
        ) from problem
    # otherwise transformers would shard and round θ₀ as it loads it (ZeRO-3)
    unset_hf_deepspeed_config()
    _check_launch(accelerator)
    return accelerator


def exit_rank(code: int) -> NoReturn:
    """End this process without finalizing the interpreter, which gloo's threads would crash."""
    compat.run_exit_handlers()
    sys.stdout.flush()
    os._exit(code)


def _use_gloo(group: InitProcessGroupKwargs) -> None:
    """Let DeepSpeed and FSDP run on the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        group.backend = "gloo"
        compat.disable_op_builders()
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true" and "LOCAL_RANK" in os.environ:
        compat.enable_fsdp_on_cpu(group)


def _check_launch(accelerator: Accelerator) -> None:
    kind, device = accelerator.distributed_type, accelerator.device.type
    scales_no_loss = device == "cpu" and kind != DistributedType.DEEPSPEED
    if accelerator.mixed_precision == "fp16" and scales_no_loss:
        raise BadInput("--fp16: has no loss scaling on the CPU; use a GPU or --bf16")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise BadInput("fsdp_version 1: flat parameters are not supported; set fsdp_version: 2")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise BadInput(
            f"--num_processes {launched}: this process is alone ({accelerator.num_processes} of "
            f"{launched}); on the CPU, launch with ACCELERATE_USE_CPU=true accelerate launch "
            f"--multi_gpu --num_processes N, or use {CPU_CONFIGS}"
        )
