"""Starting the ranks: process group, launcher, device."""

import os
import sys
import threading
import time
import uuid
from datetime import timedelta
from itertools import count
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.exit_codes import PROCESS
from lth_scale.distributed import compat

KEY = "lth_scale.attempt"


def connect(precision: str | None, accumulate: int, timeout: float) -> Accelerator:
    """Start the process group and return Accelerate's state for this process, on GPU or CPU.

    precision: "bf16", "fp16" or None for the launcher's. accumulate: micro-batches in an optimizer
    step. timeout: seconds that ranks wait for each other. Raises BadInput if the launcher's
    configuration and the flags do not fit, and Stopped if the ranks do not find each other.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        PROCESS.exit = _exit_rank
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    # otherwise transformers would read θ₀ on the first rank alone
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # a plugin, because the launcher's variable would override the plain argument
    accumulation = GradientAccumulationPlugin(num_steps=accumulate)
    try:
        has_gpu = torch.cuda.is_available()
        if compat.uses_agent_store():
            _init_process_group("nccl" if has_gpu else "gloo", group.timeout)
        if not has_gpu:
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


def _exit_rank(code: int) -> NoReturn:
    """End this process without finalizing the interpreter, which gloo's threads would crash."""
    compat.run_exit_handlers()
    sys.stdout.flush()
    os._exit(code)


def _use_gloo(group: InitProcessGroupKwargs) -> None:
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
            "--multi_gpu --num_processes N, or use accelerate_configs/*_cpu.yaml"
        )


def _init_process_group(backend: str, timeout: timedelta) -> None:
    """Start the process group of a launcher whose store outlives the attempts.

    The keys of a failed attempt stay in the store (pytorch/pytorch#135712), and a rank that starts
    early would connect to addresses of the last attempt. So rank 0 names its attempt, repeatedly
    until every rank is connected, and all keys have that name as a prefix.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # one minute, because the launcher starts its store before the ranks
    store = dist.TCPStore(address, port, world_size, False, min(timeout, timedelta(minutes=1)))
    store.set_timeout(timeout)
    connected = threading.Event()
    name = _announce(store, connected) if rank == 0 else _next_attempt(store, timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    connected.set()


def _announce(store: dist.TCPStore, connected: threading.Event) -> str:
    """Set the name of a new attempt every 0.1 s, in a thread, until `connected`."""
    name = uuid.uuid4().hex
    own = compat.cloned(store)  # the main thread's connection will be waiting

    def repeat() -> None:
        for number in count():
            own.set(KEY, f"{name} {number}")
            if connected.wait(0.1):
                return

    threading.Thread(target=repeat, daemon=True).start()
    return name


def _next_attempt(store: dist.TCPStore, timeout: timedelta) -> str:
    """Return the name that rank 0 sets from now on, not one left by an earlier attempt."""
    before, until = store.get(KEY), time.monotonic() + timeout.total_seconds()
    while (announced := store.get(KEY)) == before:
        if time.monotonic() > until:
            raise RuntimeError("rank 0 did not start")
        time.sleep(0.05)
    return announced.decode().split()[0]
