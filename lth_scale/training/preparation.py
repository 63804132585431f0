"""What a run does before its first stage: load and check everything, and only then write."""

import logging
import os
import platform
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.flags import is_local
from lth_scale.config.resolution import launched_precision
from lth_scale.distributed import compat, launch, watchdog
from lth_scale.distributed.pieces import base_model
from lth_scale.pruning import prunable_set
from lth_scale.pruning.ticket import Ticket
from lth_scale.tasks import data, registry
from lth_scale.tasks.task import RecordsFacts, Task
from lth_scale.tracking import console
from lth_scale.tracking.machine import usable_cores
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.training import networks
from lth_scale.training.networks import Network

Flags = TypeVar("Flags", bound=Training)


def with_earlier_defaults(args: Flags, run_directory: RunDirectory) -> Flags:
    """Return the flags with `keep_head` None if the run was started before there was --keep_head.

    Such a run uses the head of the checkpoint as far as it has one.
    """
    arguments = run_directory.saved_arguments()
    if arguments and "keep_head" not in arguments and not args.keep_head:
        return replace(args, keep_head=None)
    return args


def prepare(args: Training, dense: str | None = None, with_teacher: bool = False) -> Network:
    """Load and prepare the network of the flags for its first restart. Raises BadInput.

    dense: --dense of a search. with_teacher: keep a copy to distill from.
    """
    quiet_libraries()
    accelerator = make_accelerator(args)
    watchdog.start(accelerator, args.ddp_timeout)
    task = registry.load_task(args)
    matrices = _recorded_prunable_set(args, dense, task)
    if not matrices:  # a new run
        model, ignore = task.model, args.ignore or ()
        prunable_set.check(model, ignore, f"--model_name_or_path {args.model_name_or_path}")
        lines = prunable_set.describe_kinds(model), prunable_set.describe_dense(model, ignore)
        for line in filter(None, lines):
            warn(line)
    return networks.prepare(accelerator, task, args, matrices, with_teacher)


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # DeepSpeed's use of it, not the user's.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


def make_accelerator(args: Training) -> Accelerator:
    """Create the `Accelerator` of this process. Raises BadInput if launcher and flags conflict."""
    flag = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    accelerator = launch.connect(flag, args.gradient_accumulation_steps, args.ddp_timeout)
    if args.full_determinism:
        transformers.enable_full_determinism(args.seed)
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    # `accelerate launch` sets one thread on the CPU: take this process's share of the cores.
    if accelerator.device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, len(usable_cores()) // _local_ranks()))
    precision = accelerator.mixed_precision
    for overridden in launched_precision().keys() - {precision}:
        warn("the launcher's precision, %s, is overridden: this run uses %s", overridden, precision)
    if precision == "bf16" and accelerator.device.type == "cpu" and emulates_bf16():
        warn(
            "--bf16: this CPU has no bf16 instructions, and emulating them can take twice as long "
            "as fp32; omit it, in another --output_dir"
        )
    return accelerator


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def emulates_bf16() -> bool:
    """Return True on an x86 CPU without AVX512_BF16 and AMX: torch multiplies in fp32 there."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not compat.has_bf16_instructions()


def _recorded_prunable_set(args: Training, dense: str | None, task: Task) -> tuple[str, ...]:
    """Return the prunable set of the tickets in --output_dir, else in --dense, else ().

    Another version may have started the run, with another prunable set. Raises BadInput if the
    tickets are of another network.
    """
    tickets = [
        (flag, directory, path)
        for flag, directory in (("output_dir", args.output_dir), ("dense", dense))
        for pattern in ("rounds/00/ticket.safetensors", "seeds/*/ticket.safetensors")
        for path in (sorted(Path(directory).glob(pattern)) if directory else ())
    ]
    if not tickets:
        return ()
    flag, directory, path = tickets[0]
    names = tuple(Ticket.load(path).masks)
    known = dict(base_model(task.model).named_parameters())
    if missing := [name for name in names if name not in known]:
        raise BadInput(
            f"--{flag} {directory}: its tickets prune {missing[0]}, which the model does not have; "
            "use another directory"
        )
    return names


def provenance_of(net: Network) -> dict[str, Any]:
    """Return the facts of `provenance` that are known once everything is loaded."""
    dynamo, commits = net.accelerator.state.dynamo_plugin, {"model": net.task.revision}
    task = net.task
    if not (net.args.dataset_path or net.args.train_file or is_local(net.args.dataset_name or "")):
        commits["data"] = data.hub_revision(task.train)
    return {
        "precision": net.accelerator.mixed_precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": "no" if dynamo.backend == DynamoBackend.NO else dynamo.to_dict(),
        "threads": torch.get_num_threads() * _local_ranks(),
        "base_sha256": net.base_sha256,
        "revisions": {name: commit for name, commit in commits.items() if commit},
        **({"data": task.facts} if isinstance(task, RecordsFacts) and task.facts else {}),
    }


def open_run(run_directory: RunDirectory, net: Network, facts: dict[str, Any]) -> None:
    """Write arguments.json, or compare it with that of the run that is resumed.

    facts: as in `provenance`. Raises BadInput if the run began with others.
    """
    run_directory.check_facts(facts)
    if net.accelerator.is_main_process:
        for line in (*run_directory.notices(facts), *net.task.remark.split("\n")):
            if line:
                console.print_line(line)
        run_directory.begin(facts)
    net.accelerator.wait_for_everyone()
