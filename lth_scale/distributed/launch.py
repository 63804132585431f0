"""Starting the ranks: process group, launcher, device."""

import itertools
import os
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from lth_scale.config.errors import BadInput, Stopped

ON_CPU = "accelerate_configs/*_cpu.yaml"


def connect(precision: str | None, accumulate: int, timeout: float) -> Accelerator:
    """Accelerate's state for this process, on GPU or CPU; ranks wait `timeout` seconds for each other.

    Raises BadInput where launcher and flags do not fit.
    """
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = (
        "false"  # or transformers would read θ₀ on the first rank alone
    )
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            _meet("nccl" if torch.cuda.is_available() else "gloo", group.timeout)
        if not torch.cuda.is_available():
            _settle_for_cpu(group)
        accelerator = Accelerator(
            mixed_precision=precision,
            # a plugin, because the launcher's variable would overrule the plain argument
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            kwargs_handlers=[group],
        )
    except (ValueError, ImportError) as problem:
        raise BadInput(
            f"--{precision or 'config_file'}: {problem}; change one of them"
        ) from problem
    except RuntimeError as problem:  # dist.DistError and what gloo says
        raise Stopped(
            f"--ddp_timeout {timeout:g}: the ranks have not found each other ({problem}); see to it that all "
            "are started, or give them longer"
        ) from problem
    unset_hf_deepspeed_config()  # or transformers would cut θ₀ up, and round it, as it reads it (ZeRO-3)
    _check_launch(accelerator)
    return accelerator


def _meet(backend: str, timeout: timedelta) -> None:
    """Start the process group without what an attempt that failed has left in the launcher's store.

    torch 2.13 shares one store among all attempts (pytorch #135712): a rank that comes early would take an address of
    the last one. So rank 0 gives its attempt a name, and repeats it until all have heard it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    soon = min(
        timeout, timedelta(minutes=1)
    )  # a launcher has its store up before it starts anything
    store: Any = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False, soon
    )
    store.set_timeout(timeout)
    key, met, name = "lth_scale.attempt", threading.Event(), uuid.uuid4().hex
    if rank == 0:
        own = store.clone()  # the main thread's connection will be busy waiting

        def repeat() -> None:
            for count in itertools.count():
                own.set(key, f"{name} {count}")
                if met.wait(0.1):
                    return

        threading.Thread(target=repeat, daemon=True).start()
    else:
        before, until = store.get(key), time.monotonic() + timeout.total_seconds()
        while (heard := store.get(key)) == before:
            if time.monotonic() > until:
                raise RuntimeError("rank 0 has not come")
            time.sleep(0.05)
        name = heard.decode().split()[0]
    dist.init_process_group(
        backend, store=dist.PrefixStore(name, store), rank=rank, world_size=world, timeout=timeout
    )
    met.set()


def _settle_for_cpu(group: InitProcessGroupKwargs) -> None:
    """Let DeepSpeed and FSDP run on gloo ranks.

    Accelerate 1.15 takes FSDP up on accelerators alone, and on CPU would train the ranks apart without a word.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        group.backend = "gloo"
        _compile_nothing()
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true" and "LOCAL_RANK" in os.environ:
        PartialState(cpu=True, **group.to_kwargs()).distributed_type = DistributedType.MULTI_GPU


def _compile_nothing() -> None:
    """DeepSpeed compiles a collective for inference (deepspeed/comm/torch.py), a minute that training has no use for.

    So no compiler is needed, and a compile that is killed leaves no lock at which later runs would wait for ever.
    """
    from deepspeed import ops

    vars(ops)["__compatible_ops__"] = {}


def _check_launch(accelerator: Accelerator) -> None:
    kind, precision, device = (
        accelerator.distributed_type,
        accelerator.mixed_precision,
        accelerator.device.type,
    )
    if precision == "fp16" and device == "cpu" and kind != DistributedType.DEEPSPEED:
        raise BadInput("--fp16: has no loss scaling on cpu; take a GPU, or --bf16")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise BadInput("fsdp_version 1: its flat parameters are not supported; set fsdp_version: 2")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise BadInput(
            f"--num_processes {launched}: this process is alone ({accelerator.num_processes} of {launched}); on CPU "
            f"launch with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, or take {ON_CPU}"
        )
